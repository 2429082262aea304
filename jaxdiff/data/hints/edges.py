"""Edges, one pixel wide."""

from __future__ import annotations

import cv2
import numpy as np

from jaxdiff.data.hints import inputs
from jaxdiff.errors import UserError


def canny(
  image: np.ndarray,
  *,
  low: float = 50.0,
  high: float = 150.0,
  blur: float = 0.8,
  spread: float = 0.0,
  seed: int = 0,
) -> np.ndarray:
  """Canny's edges: 255 on an edge, 0 elsewhere.

  1. Smoothing with a Gaussian of standard deviation `blur` (pixels; 0: none): differences amplify noise.
  2. Gradient: Sobel's 3x3 differences along x and y, each 4 times a step's height; its length is the strength of an
     edge, its direction runs across it. Of three colours the one with the strongest gradient counts, pixel by pixel, so
     that an edge between two colours of equal brightness is seen as well.
  3. Non-maximum suppression: a pixel stays only if it is at least as strong as its two neighbours along the gradient,
     which thins an edge to one pixel.
  4. Hysteresis: what is stronger than `high` is an edge; what is stronger than `low` is one if a chain of such pixels
     joins it to one that is. So a contour that fades is not cut into dashes, and weak noise far from it is dropped.

  With `spread` both thresholds are multiplied by exp(u), u uniform within +-log(1 + spread): an augmentation, by which
  a model learns hints with few lines and with many.

  Shapes: image: uint8[H,W,1 or 3].  Returns uint8[H,W,1], 0 or 255.
  Source: Canny 1986, "A computational approach to edge detection"; the steps are OpenCV's.
  """
  inputs.check(image)
  check("canny", low, high, blur)
  inputs.at_least(0, "canny", spread=spread)
  if spread:
    u = np.random.Generator(np.random.PCG64(seed)).uniform(-1, 1)
    low, high = low * (1 + spread) ** u, high * (1 + spread) ** u
  return find(image, low, high, blur)[..., None]


def find(image: np.ndarray, low: float, high: float, blur: float) -> np.ndarray:
  """The steps of `canny` alone, as uint8[H,W]."""
  image = np.ascontiguousarray(image)
  if blur:
    image = cv2.GaussianBlur(image, (0, 0), blur, borderType=cv2.BORDER_REPLICATE)
  return cv2.Canny(image, low, high, L2gradient=True)


def check(hint: str, low: float, high: float, blur: float) -> None:
  """Raises UserError for parameters that `find` cannot have."""
  inputs.at_least(0, hint, low=low, blur=blur)
  if high < low:
    raise UserError(f"low of hint {hint!r} is {low}, above high, {high} (config.data.hint). Exchange them.")
