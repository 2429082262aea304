"""One image file at a time, as the model of a config sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.data import decode, transforms
from jaxdiff.errors import UserError


def read_image(path: str, data: Any, channels: int) -> np.ndarray:
  """An image file brought to the size that config.data describes, without augmentation: u8[S,S,channels].

  Raises UserError for a file that is not there or cannot be decoded, and for a config of latents.
  """
  view = transforms.view(data, train=False)._replace(channels=channels)
  try:
    content = Path(path).expanduser().read_bytes()
  except OSError as error:
    raise UserError(f"cannot read the image {path!r}: {error.strerror}.") from None
  image = decode.decode(content, channels)
  if image is None:
    raise UserError(f"{path!r} is not an image that can be read. Use a PNG, JPEG or WebP file.")
  return transforms.fit(image, view)
