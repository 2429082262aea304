"""What of an image the model sees: its size, channels, crop and flip. All uint8, all on the host."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from jaxdiff import errors
from jaxdiff.errors import UserError

MIN_CROP = (
  0.8  # of the shorter side: how much of an image a random crop keeps at least (guided-diffusion's value)
)


class View(NamedTuple):
  """How an image becomes a training image. With `random_crop`, `resize` is not used."""

  size: int
  channels: int  # 1: gray, 3: RGB
  resize: str  # a key of RESIZES
  random_crop: bool
  random_flip: bool


def view(data: Any, *, train: bool) -> View:
  """The view that the config's data section describes; without augmentation unless `train`.

  Raises:
    UserError: a value that is not one of the known ones.
  """
  if data.channels not in (1, 3):
    raise UserError(
      f"config.data.channels is {data.channels}. Use 1 (gray) or 3 (RGB); no source reads latents."
    )
  if data.image_size < 1:
    raise UserError(f"config.data.image_size is {data.image_size}. Use a number of pixels, as 32.")
  if data.resize not in RESIZES:
    raise errors.unknown("resize (config.data.resize)", data.resize, RESIZES)
  if data.random_crop and data.resize == "pad":
    raise UserError(
      "config.data.random_crop=True crops images, config.data.resize='pad' never does. Choose one."
    )
  return View(
    data.image_size, data.channels, data.resize, train and data.random_crop, train and data.random_flip
  )


def scale(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """The image at another size: averaged over areas to shrink it (no aliasing), cubic to enlarge it."""
  return _resize(image, height, width, cv2.INTER_CUBIC)


def linear(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """As scale, but linear to enlarge it: no value lies outside the range of the old ones."""
  return _resize(image, height, width, cv2.INTER_LINEAR)


def nearest(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """The image at another size, each pixel the old one that its centre lies in: no new values, as labels need it."""
  rows, columns = (
    ((np.arange(new) + 0.5) * old / new).astype(int)
    for new, old in zip((height, width), image.shape, strict=False)
  )
  return image[rows[:, None], columns]


def _resize(image: np.ndarray, height: int, width: int, to_enlarge: int) -> np.ndarray:
  if image.shape[:2] == (height, width):
    return image
  method = cv2.INTER_AREA if height <= image.shape[0] and width <= image.shape[1] else to_enlarge
  resized = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=method)
  return resized.reshape(height, width, image.shape[-1])


class Geometry(NamedTuple):
  """How the values of an image, or of a map that belongs to it, are brought to another size."""

  scale: Callable[[np.ndarray, int, int], np.ndarray] = scale
  surround: Callable[[np.ndarray], int] = lambda image: 0  # what lies around one that is padded


OF_IMAGES = Geometry()


def fit(image: np.ndarray, v: View) -> np.ndarray:
  """The part of a view that is the same each time; fitting twice changes nothing.

  Shapes: image: uint8[H,W,1 or 3].  Returns uint8[S,S,C], or [h,w,C] of any shape where a random crop follows.
  """
  if image.shape == (v.size, v.size, v.channels) and not v.random_crop:
    return image  # as all are that lie in memory
  return fit_map(with_channels(image, v.channels), v, OF_IMAGES)


def fit_map(values: np.ndarray, v: View, g: Geometry) -> np.ndarray:
  """`fit` of a map of any type and number of channels, [H,W,C], that belongs to an image."""
  if v.random_crop:
    return shrink(values, math.ceil(v.size / MIN_CROP), g)
  return RESIZES[v.resize](values, v.size, g)


def augment(
  images: Sequence[np.ndarray], index: np.ndarray, seed: int, v: View, g: Geometry = OF_IMAGES
) -> np.ndarray:
  """The random part of a view: for each image a function of (seed, index) only, whatever batch it lies in.

  So maps are moved as the images that they belong to.
  Shapes: images: B fitted ones, of any one type; index: uint32[B].  Returns [B,S,S,C] of this type.
  """
  if v.random_crop:
    draws = np.stack([uniform(seed, index, which) for which in (1, 2, 3)], axis=-1)
    images = [window(image, draw, v.size, g) for image, draw in zip(images, draws, strict=True)]
  out = np.stack(images)
  if v.random_flip:
    flipped = uniform(seed, index, 0) < 0.5
    out[flipped] = out[flipped, :, ::-1]
  return out


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
  """RGB from gray by repetition, gray from RGB by its luma (ITU-R BT.601)."""
  if image.shape[-1] == channels:
    return image
  return np.repeat(image, 3, axis=-1) if channels == 3 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]


def cover(image: np.ndarray, size: int, g: Geometry = OF_IMAGES) -> np.ndarray:
  """The central square, scaled: the shorter side becomes `size`, what exceeds it on the longer is cut."""
  height, width = image.shape[:2]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  # Cut first: scaling a very long image first could need any amount of memory.
  return g.scale(image[top : top + side, left : left + side], size, size)


def pad(image: np.ndarray, size: int, g: Geometry = OF_IMAGES) -> np.ndarray:
  """The whole image with zeros (what `g` says) around it; one that is larger than `size` is shrunk to fit."""
  if image.shape[:2] == (size, size):
    return image
  longer = max(image.shape[:2])
  if longer > size:
    height, width = (max(1, round(n * size / longer)) for n in image.shape[:2])
    image = g.scale(image, height, width)
  height, width, channels = image.shape
  top, left = (size - height) // 2, (size - width) // 2
  out = np.full((size, size, channels), g.surround(image), image.dtype)  # np.pad takes ten times as long
  out[top : top + height, left : left + width] = image
  return out


RESIZES: dict[str, Callable[[np.ndarray, int, Geometry], np.ndarray]] = {"auto": cover, "pad": pad}


def shrink(image: np.ndarray, side: int, g: Geometry = OF_IMAGES) -> np.ndarray:
  """The image with its shorter side at `side`, unless it already is at most that."""
  shorter = min(image.shape[:2])
  if shorter <= side:
    return image
  height, width = (max(side, round(n * side / shorter)) for n in image.shape[:2])
  return g.scale(image, height, width)


def window(image: np.ndarray, draw: np.ndarray, size: int, g: Geometry = OF_IMAGES) -> np.ndarray:
  """A square of MIN_CROP to 1 of the shorter side, scaled to `size`; draw: f64[3] in [0, 1): side, top, left."""
  u_side, u_top, u_left = draw
  height, width = image.shape[:2]
  longest = min(height, width)
  shortest = math.ceil(longest * MIN_CROP)
  side = shortest + int(u_side * (longest - shortest + 1))
  top, left = int(u_top * (height - side + 1)), int(u_left * (width - side + 1))
  return g.scale(image[top : top + side, left : left + side], size, size)


def uniform(seed: int, index: np.ndarray, which: int) -> np.ndarray:
  """A number in [0, 1) for each index, by counting instead of by state: SplitMix64's mixing function.

  Shapes: index: uint32[B].  Returns f64[B].
  Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", with the constants of
  Stafford's variant 13, applied to the seed, then to the seed's hash plus (draw, index).
  """
  stream = _mix(np.array([(seed << 8) + which], np.uint64))
  return (_mix(stream + index.astype(np.uint64)) >> np.uint64(11)) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
  x = x + np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))
