"""Encoded images to uint8 arrays and back, through OpenCV."""

from __future__ import annotations

import cv2
import numpy as np


def decode(data: bytes, channels: int = 3) -> np.ndarray | None:
  """A PNG, JPEG or WebP image as OpenCV reads it, or None if it is broken.

  Rotated as its EXIF tag says; 16 bits are reduced to 8; a palette is looked up; what is transparent is laid
  over white, because the colours stored under it are arbitrary.

  Shapes: uint8[H,W,channels], channels of 1 (gray) or 3 (RGB).
  """
  array = np.frombuffer(data, np.uint8)
  if has_alpha(data):
    return _over_white(_imdecode(array, cv2.IMREAD_UNCHANGED), channels)
  image = _imdecode(array, cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR)
  if image is None:
    return None
  return image[..., None] if channels == 1 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def encode_png(image: np.ndarray) -> bytes:
  """The PNG file of an image.

  Shapes: image: uint8[H,W,1] or uint8[H,W,3], RGB.
  """
  ok, data = cv2.imencode(".png", image[..., ::-1] if image.shape[-1] == 3 else image)
  assert ok, f"OpenCV could not encode an image of shape {image.shape}"
  return data.tobytes()


def has_alpha(data: bytes) -> bool:
  """Whether a PNG or WebP file says in its header that it is partly transparent."""
  if data[:4] == b"\x89PNG":
    # Bit 2 of the colour type, or a transparency chunk, which lies before the pixels.
    return bool(data[25:26] and data[25] & 4) or b"tRNS" in data[33 : max(33, data.find(b"IDAT"))]
  if data[:4] == b"RIFF" and data[12:16] == b"VP8X":
    return bool(data[20:21] and data[20] & 0x10)
  if data[:4] == b"RIFF" and data[12:16] == b"VP8L":
    return bool(data[24:25] and data[24] & 0x10)
  return False


def _imdecode(array: np.ndarray, flags: int) -> np.ndarray | None:
  try:
    return cv2.imdecode(array, flags)
  except cv2.error:  # an empty file, or a size beyond OpenCV's own limit
    return None


def _over_white(image: np.ndarray | None, channels: int) -> np.ndarray | None:
  """An image as IMREAD_UNCHANGED gives it (BGRA, 8 or 16 bits), on a white background."""
  if image is None:
    return None
  if image.dtype == np.uint16:
    image = (image >> 8).astype(np.uint8)
  if image.ndim == 2 or image.shape[-1] != 4:
    image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGRA if image.ndim == 2 else cv2.COLOR_BGR2BGRA)
  alpha = image[..., 3:].astype(np.float32) / 255
  colour = image[..., 2::-1] * alpha + 255 * (1 - alpha)
  rgb = np.round(colour).astype(np.uint8)
  return rgb if channels == 3 else cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None]
