"""One image file at a time, as the model of a config sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.data import decode, transforms
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


def _read(path: str, channels: int) -> np.ndarray:
  try:
    content = Path(path).expanduser().read_bytes()
  except OSError as error:
    raise UserError(f"cannot read the image {path!r}: {error.strerror}.") from None
  image = decode.decode(content, channels)
  if image is None:
    raise UserError(f"{path!r} is not an image that can be read. Use a PNG, JPEG or WebP file.")
  return image
