"""One image or hint file at a time, as the model of a config sees it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.data import decode, hinted, hints, pairs, transforms
from jaxdiff.data.hints import maps
from jaxdiff.errors import UserError


def read_image(path: str, mask_path: str, data: Any) -> tuple[np.ndarray, np.ndarray | None]:
  """(image, mask) brought to the size that config.data describes, without augmentation.

  Shapes: image u8[S,S,C]; mask bool[S,S,1], True where its file is white (above 127), None without a path.
  Raises UserError for a file that is not there or cannot be decoded, sizes that differ, and a config of latents.
  """
  view = transforms.view(data, train=False)
  image = _read(path, view.channels)
  if not mask_path:
    return transforms.fit(image, view), None
  mask = _read(mask_path, 1)
  if mask.shape[:2] != image.shape[:2]:
    sizes = ["x".join(map(str, a.shape[1::-1])) for a in (mask, image)]
    raise UserError(
      f"the mask {mask_path!r} is {sizes[0]} pixels, its image {sizes[1]}. Make them of one size."
    )
  return transforms.fit(image, view), transforms.fit(mask, view._replace(channels=1)) > 127


def read_hint(
  path: str, data: Any, is_map: bool, find: Callable[[np.ndarray], np.ndarray] | None = None
) -> np.ndarray:
  """A file as the hint that config.data.hint describes, without augmentation: uint8[S,S,Ch].

  An image, of any size, in which the hint is found, by `find` (u8[N,S,S,C] -> u8[N,S,S,Ch]) or as config.data.hint says; or with
  `is_map` a hint that is ready: a drawing of any size for a scribble, else a map of the model's size: edges or lines, labels or
  colours, depths.
  Raises UserError for a file that cannot be read or does not suit, and a hint in which there is nothing to follow.
  """
  hint = hinted.asked(data, train=False)
  if hint is None:
    raise UserError("config.data.hint is empty: this model follows no hints.")
  view = transforms.view(data, train=False)
  if not is_map:
    image = transforms.fit(_read(path, view.channels), view)
    found = find(image[None])[0] if find else hints.detect(hint, image)
  elif hint.name == "scribble":
    resize = functools.partial(transforms.fit, v=view._replace(channels=1))
    found = maps.from_drawing(_read(path, 3), resize, view.size)
  else:
    found = maps.READINGS[hint.name].finish(pairs.read(path, hint.name), hint.arguments)
  hints.check_map(found, hint.channels, view.size, f"the hint {hint.name!r} of {path!r}")
  return found


def _read(path: str, channels: int) -> np.ndarray:
  try:
    content = Path(path).expanduser().read_bytes()
  except OSError as error:
    raise UserError(f"cannot read the image {path!r}: {error.strerror}.") from None
  image = decode.decode(content, name=f"the image {path!r}")
  if image is None:
    raise UserError(f"{path!r} is not an image that can be read. Use a PNG, JPEG or WebP file.")
  return transforms.with_channels(image, channels)
