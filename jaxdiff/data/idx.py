"""IDX files, the format in which MNIST and Fashion-MNIST are shipped.

Layout: two zero bytes, a type byte (8: unsigned byte), the number of dimensions, each dimension as a
big-endian int32, then the data in C order.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from jaxdiff.data import base
from jaxdiff.data.base import Source
from jaxdiff.errors import UserError

PREFIXES = {"train": "train", "test": "t10k"}
UNSIGNED_BYTE = 8


def open_idx(where: str, split: str, skip_unreadable: bool) -> Source:
  """The images and labels in a directory of IDX files; classes are named by their number."""
  del skip_unreadable
  root = Path(where).expanduser()
  if not root.is_dir():
    raise UserError(
      f"there is no directory {root} (config.data.source=idx:{where}). Give that of a set's IDX files; of Fashion-MNIST they "
      "come with Debian's package dataset-fashion-mnist."
    )
  if split not in PREFIXES:
    raise base.NoSplit(f"IDX files have the splits 'train' and 'test', not {split!r} (config.data.split).")
  images_path = find(root, split, "images", 3)
  labels_path = find(root, split, "labels", 1)
  images, labels = read(images_path, 3), read(labels_path, 1)
  if len(images) != len(labels):
    raise UserError(f"{images_path} holds {len(images)} images, but {labels_path} {len(labels)} labels.")
  if not len(images):
    raise UserError(f"{images_path} holds no images.")
  names = tuple(str(i) for i in range(int(labels.max()) + 1))
  return base.from_arrays("idx", images[..., None], labels, names)


def find(root: Path, split: str, what: str, rank: int) -> Path:
  """The file of one split, compressed or not.

  Raises:
    NoSplit: there is none.
  """
  stem = f"{PREFIXES[split]}-{what}"
  names = [f"{stem}{dash}idx{rank}-ubyte{end}" for dash in "-." for end in ("", ".gz")]
  for name in names:
    if (root / name).is_file():
      return root / name
  raise base.NoSplit(
    f"{root} has no {names[0]} (or {names[1]}), which the split {split!r} of an IDX set needs."
  )


def read(path: Path, rank: int) -> np.ndarray:
  """The array in an IDX file of unsigned bytes.

  Shapes: uint8 with `rank` dimensions.
  Raises:
    UserError: another type or rank, or another length than the header says.
  """
  try:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
  except (EOFError, zlib.error, OSError) as e:
    raise UserError(f"{path} cannot be read: truncated or no gzip file ({e}). Fetch it again.") from None
  magic = bytes([0, 0, UNSIGNED_BYTE, rank])
  if data[:4] != magic:
    found = data[:4].hex() or "nothing"
    raise UserError(f"{path} is no IDX file of {rank} dimensions: it starts with {found}, not {magic.hex()}.")
  offset = 4 + 4 * rank
  shape = tuple(int(n) for n in np.frombuffer(data[4:offset].ljust(4 * rank, b"\0"), ">i4"))
  if len(data) != offset + math.prod(shape):
    size = "x".join(map(str, shape))
    raise UserError(
      f"{path} should hold {size} bytes after its header, but has {len(data) - offset}. Fetch it again."
    )
  return np.frombuffer(data, np.uint8, offset=offset).reshape(shape)
