"""Networks. `build` makes the one that a config's model section describes.

Every network is called as module.apply({"params": p}, z, t, cond, train=False) -> f32[B,H,W,C], where z is
f32[B,H,W,C], t f32[B] the model time (NoiseSchedule.model_time) and cond a types.Cond. With train=True it
may need rngs={"dropout": key}. A new network is a file here and a line in MODELS.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from jaxdiff import errors
from jaxdiff.models.classifier import DiTClassifier, UNetClassifier
from jaxdiff.models.controlnet import DiTControl, UNetControl
from jaxdiff.models.dit import DiT
from jaxdiff.models.unet import UNet

Table = Mapping[str, type[DiT | UNet]]
MODELS: Table = {"dit": DiT, "unet": UNet}
CLASSIFIERS: Table = {
  "dit": DiTClassifier,
  "unet": UNetClassifier,
}  # called (z, t, train=False) -> f32[B,num_classes]
CONTROLS: Table = {"dit": DiTControl, "unet": UNetControl}  # called as a network, return its residuals


def build(config_model: Any, table: Table = MODELS) -> nn.Module:
  """The Linen module that a config's model section describes: `name` says which of the table, the other keys its fields.

  Raises: UserError for an unknown name or key, and for settings that do not fit together.
  """
  settings = _items(config_model)
  name = settings.pop("name", None)
  if name not in table:
    raise errors.unknown("model (config.model.name)", name, table)
  known = [field.name for field in dataclasses.fields(table[name]) if field.name not in ("parent", "name")]
  for key in settings:
    if key not in known:
      raise errors.unknown(f"key of a {name} in config.model", key, known)
  module = table[name](**{key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()})
  module.check()
  return module


def tokens(config_model: Any, image_size: int) -> int:
  """How many positions the network works on for one image: patches of a DiT, pixels of a UNet."""
  return (image_size // _items(config_model).get("patch_size", 1)) ** 2


def _items(config_model: Any) -> dict[str, Any]:
  """A mapping's (or ConfigDict's) or object's entries as a dict."""
  if isinstance(config_model, Mapping) or hasattr(config_model, "items"):
    return dict(config_model.items())
  return dict(vars(config_model))
