"""What every detector does with its image and its numbers first."""

from __future__ import annotations

import cv2
import numpy as np

from jaxdiff.errors import UserError


def gray(image: np.ndarray) -> np.ndarray:
  """The luma (ITU-R BT.601) of an image uint8[H,W,1 or 3] as uint8[H,W].  Raises TypeError for any other array."""
  check(image)
  return image[..., 0] if image.shape[-1] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def rgb(image: np.ndarray) -> np.ndarray:
  """An image uint8[H,W,1 or 3] as uint8[H,W,3].  Raises TypeError for any other array."""
  check(image)
  return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else np.ascontiguousarray(image)


def check(image: np.ndarray) -> None:
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3) or not image.size:
    raise TypeError(f"a hint is made of an image uint8[H,W,1 or 3], not {image.dtype}{list(image.shape)}")


def at_least(least: float, hint: str, **values: float) -> None:
  """Raises UserError where a parameter of a hint is below what it can be."""
  for name, value in values.items():
    if not value >= least:
      raise UserError(f"{name} of hint {hint!r} is {value} (config.data.hint). Use at least {least:g}.")


def side(image: np.ndarray) -> int:
  """The shorter side: lengths in a hint's parameters are shares of it, so that they suit images of any size."""
  return min(image.shape[:2])
