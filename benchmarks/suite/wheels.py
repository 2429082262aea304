"""Which wheels are missing here, and what is left out for it. A plain checkout runs where JAX, Flax and Optax are."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

# module -> the wheel that brings it
WHEELS = {
  "jax": "jax",
  "flax": "flax",
  "optax": "optax",
  "einops": "einops",
  "cv2": "opencv-python-headless",
  "ml_collections": "ml_collections",
  "grain": "grain",
  "orbax.checkpoint": "orbax-checkpoint",
  "matplotlib": "matplotlib",
  "tensorboardX": "tensorboardX",
  "tqdm": "tqdm",
  "sklearn": "scikit-learn",
  "torch": "torch",
  "diffusers": "diffusers",
}
ALWAYS = ("jax", "flax", "optax", "einops", "cv2")


def missing(modules: Any = tuple(WHEELS)) -> list[str]:
  """The wheels of those modules that cannot be imported here."""
  return [WHEELS[module] for module in modules if not _is_here(module)]


def _is_here(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # of a package above it
    return False


class ConfigDict(dict):
  """As much of ml_collections.ConfigDict as a config needs that is not changed from a command line."""

  def __getattr__(self, key: str) -> Any:
    try:
      return self[key]
    except KeyError:
      raise AttributeError(key) from None

  def __setattr__(self, key: str, value: Any) -> None:
    self[key] = value


def stand_in() -> None:
  """Where ml_collections is missing, lets ConfigDict take its place, in this process."""
  if "ml_collections" not in sys.modules and not _is_here("ml_collections"):
    module = types.ModuleType("ml_collections")
    module.ConfigDict = ConfigDict  # type: ignore[attr-defined]
    sys.modules["ml_collections"] = module
