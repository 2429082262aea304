"""Encoded images to uint8 arrays and back, through OpenCV."""

from __future__ import annotations

import re
import struct

import cv2
import numpy as np

from jaxdiff.errors import UserError

MAX_PIXELS = 2**26  # a larger image is taken for a decompression bomb: a few bytes that would fill the memory
MARKER = re.compile(rb"\xff([^\x00\xff])")  # of a JPEG file; decoders skip what lies between them


def decode(data: bytes, channels: int = 3, name: str = "an image") -> np.ndarray | None:
  """A PNG, JPEG or WebP image as OpenCV reads it, or None if it is broken or of another kind.

  Rotated as its EXIF tag says, unless it has an alpha channel; 16 bits are reduced to 8; a palette is looked up; what is
  transparent is laid over white, because the colours stored under it are arbitrary.

  Shapes: uint8[H,W,channels], channels of 1 (gray) or 3 (RGB).
  Raises UserError, which begins with `name`, for an image of more than MAX_PIXELS, before it is decoded.
  """
  if not is_image(data, name):
    return None
  array = np.frombuffer(data, np.uint8)
  if has_alpha(data):
    image = _imdecode(array, cv2.IMREAD_UNCHANGED)
    if image is not None and image.ndim == 2:
      image = np.dstack([image, image, image, _alpha_of_gray(data, image)])
    return _over_white(image, channels)
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


def is_image(data: bytes, name: str) -> bool:
  """Whether a file begins as a PNG, JPEG or WebP image.

  Raises UserError, which begins with `name`, for one whose header says that it has more than MAX_PIXELS.
  """
  found = size(data)
  if found is not None and found[0] * found[1] > MAX_PIXELS:
    raise UserError(
      f"{name} has {found[0]}x{found[1]} pixels, more than the {MAX_PIXELS} that are decoded. Make it smaller."
    )
  return found is not None


def size(data: bytes) -> tuple[int, int] | None:
  """(width, height) as the header of a PNG, JPEG or WebP file says, or None for anything else."""
  if data[:8] == b"\x89PNG\r\n\x1a\n":
    return struct.unpack(">II", data[16:24]) if data[12:16] == b"IHDR" and len(data) >= 24 else None
  if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30:
    return _size_of_webp(data)
  return _size_of_jpeg(data) if data[:3] == b"\xff\xd8\xff" else None


def _size_of_webp(data: bytes) -> tuple[int, int] | None:
  """Source: RFC 9649, sections 2.5 to 2.7."""
  kind, number = data[12:16], int.from_bytes
  if kind == b"VP8X":
    return 1 + number(data[24:27], "little"), 1 + number(data[27:30], "little")
  if kind == b"VP8L":
    bits = number(data[21:25], "little")
    return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
  if kind == b"VP8 ":
    return number(data[26:28], "little") & 0x3FFF, number(data[28:30], "little") & 0x3FFF
  return None


def _size_of_jpeg(data: bytes) -> tuple[int, int] | None:
  """Goes from marker to marker to the one that begins a frame.  Source: ITU-T T.81, annex B."""
  at = 2
  while found := MARKER.search(data, at):
    marker, at = found[1][0], found.end()
    if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
      height, width = struct.unpack(">HH", data[at + 3 : at + 7]) if at + 7 <= len(data) else (0, 0)
      return (width, height) if width else None
    if marker != 0x01 and not 0xD0 <= marker <= 0xD7:  # all others say how long they are
      at += max(2, int.from_bytes(data[at : at + 2], "big"))  # which counts its own two bytes
  return None


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


def _alpha_of_gray(data: bytes, image: np.ndarray) -> np.ndarray:
  """The alpha channel of a gray PNG one of whose values is transparent, which OpenCV leaves to its caller: uint8[H,W] or uint16.

  Source: PNG specification, third edition, section 11.3.1.1 (tRNS), and 13.12 for gray of less than 8 bits.
  """
  at, depth = data.find(b"tRNS") + 4, data[24]
  key = int.from_bytes(data[at : at + 2], "big") * (255 // (2**depth - 1) if depth < 8 else 1)
  most = np.iinfo(image.dtype).max
  return np.where(image == key, 0, most).astype(image.dtype)


def _imdecode(array: np.ndarray, flags: int) -> np.ndarray | None:
  try:
    return cv2.imdecode(array, flags)
  except cv2.error:  # an empty file, or a size beyond OpenCV's own limit
    return None


def _over_white(image: np.ndarray | None, channels: int) -> np.ndarray | None:
  """A colour image as IMREAD_UNCHANGED gives it (BGR or BGRA, 8 or 16 bits), on a white background."""
  if image is None:
    return None
  if image.dtype == np.uint16:
    image = (image >> 8).astype(np.uint8)
  if image.shape[-1] != 4:
    image = cv2.cvtColor(image, cv2.COLOR_BGR2BGRA)
  alpha = image[..., 3:].astype(np.float32) / 255
  colour = image[..., 2::-1] * alpha + 255 * (1 - alpha)
  rgb = np.round(colour).astype(np.uint8)
  return rgb if channels == 3 else cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None]
