"""Maps in files: hints that are ready, labels and depths, one beside each image of a folder."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from jaxdiff.data import base, decode, folder
from jaxdiff.data.base import Example, Source
from jaxdiff.data.hints import maps
from jaxdiff.errors import UserError, require

SUFFIX = ".png"
BIT_DEPTH = 24  # where a PNG's header says how many bits a sample has
KEY = "config.data.hint_maps"


def attach(source: Source, where: str, name: str) -> Source:
  """The source with the maps of a folder as maps of the hint `name`: for cat/a.jpg its cat/a.png.

  Raises UserError for a source that is no folder, and for missing maps.
  """
  return dataclasses.replace(source, read=PairReader(source, *find(source, where), name))


def find(source: Source, where: str) -> tuple[Path, tuple[str, ...]]:
  """The folder of maps, and in it a map's name for each example.  Raises UserError as attach."""
  root = Path(where).expanduser()
  if not source.files:
    raise UserError(f"{KEY} pairs files, and config.data.source is no folder of files: use folder:<dir>.")
  if not root.is_dir():
    raise UserError(f"there is no directory {root} ({KEY}).")
  files = tuple(str(PurePosixPath(file).with_suffix(SUFFIX)) for file in source.files)
  missing = [file for file in files if not (root / file).is_file()]
  if missing:
    raise UserError(
      f"{len(missing)} of {len(files)} images have no map in {root} ({KEY}), the first {missing[0]!r}."
    )
  return root, files


def mark(source: Source, where: str) -> str:
  """What the maps are, by their names and sizes: the same wherever they lie."""
  root, files = find(source, where)
  return base.digest(files, [(root / file).stat().st_size for file in files])


def check(paired: Source) -> None:
  """Reads each map of a small folder once, as its images were when it was opened.  Raises UserError."""
  if len(paired) <= folder.FULL_CHECK:
    with concurrent.futures.ThreadPoolExecutor() as pool:
      collections.deque(pool.map(paired.__getitem__, range(len(paired))), maxlen=0)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PairReader:
  """Reads examples with the maps of files, whose names are relative to root."""

  source: Source
  root: Path
  files: tuple[str, ...]
  name: str  # of the hint

  def __call__(self, rows: Sequence[int]) -> list[Example]:
    return [
      example | {"maps": {self.name: self.one(i, example["image"])}}
      for i, example in zip(rows, self.source.take(rows), strict=True)
    ]

  def one(self, i: int, image: np.ndarray) -> np.ndarray:
    path = self.root / self.files[i]
    found = read(path, self.name)
    if found.shape[:2] != image.shape[:2]:
      sizes = ["x".join(map(str, a.shape[1::-1])) for a in (found, image)]
      raise UserError(
        f"the map {path} is {sizes[0]} pixels, its image {sizes[1]} ({KEY}). Make them of one size."
      )
    return found


def read(path: str | Path, name: str) -> np.ndarray:
  """A file as a map for the hint `name`, [H,W,C] as hints.maps reads it.

  1 to 16 bits; of a palette, and of gray of less than 8 bits, the numbers are labels for a segmentation, else the colours count;
  alpha is dropped.
  Raises UserError for a file that cannot be read or does not suit.
  """
  pil: Any = require("PIL.Image", "pillow", "a hint's map")
  told = f"the map {str(path)!r}"
  try:
    content = Path(path).expanduser().read_bytes()
    if not decode.is_image(content, told):
      raise ValueError
    with pil.open(io.BytesIO(content)) as image:
      found = _converted(image, name, content)
  except (OSError, ValueError) as error:
    why = getattr(error, "strerror", None) or "it is no image"
    raise UserError(f"cannot read {told}: {why}.") from None
  return maps.read(name, found, told)


def _converted(image: Any, name: str, content: bytes) -> np.ndarray:
  """A PIL image as 8-bit gray or RGB, or of 16 bits as it is; for labels the numbers of the file."""
  if image.mode == "P" and name == "segmentation":
    return np.asarray(image)
  if image.mode.startswith("I"):
    return np.asarray(image).astype(np.uint16)
  found = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
  bits = content[BIT_DEPTH] if image.format == "PNG" and image.mode in ("1", "L") else 8
  return found // (255 // (2**bits - 1)) if name == "segmentation" else found
