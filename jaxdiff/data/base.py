"""What every data source is: a random-access, picklable sequence of images with labels."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxdiff.errors import UserError

# "image" uint8[H,W,C] with C of 1 or 3, "label" int; perhaps "maps", what belongs to the image: {"segmentation":
# uint8[H,W] labels, "depth": uint8 or uint16 [H,W], larger where something is nearer}
Example = dict[str, Any]
# "image" uint8[B,S,S,C], "label" int32[B], "index" uint32[B]; "hint" uint8[B,S,S,Ch] where config.data.hint asks for it
HostBatch = dict[str, np.ndarray]


class NoSplit(UserError):
  """The source is there, but has no split of that name."""


AT_A_TIME = 256  # examples that are decoded for their labels alone


@dataclasses.dataclass(frozen=True, eq=False, repr=False)  # Grain writes a repr: it must not hold the data
class Source:
  """A random-access data source (what Grain calls one), decoded an example at a time.

  All images of a source have the same number of channels; their sizes may differ.
  Labels lie in [0, num_classes), or are -1 (types.NULL_LABEL) where a set has unlabelled examples.
  """

  size: int
  read: Callable[[Sequence[int]], list[Example]]  # picklable, safe to call from several threads
  label_names: tuple[str, ...]
  fingerprint: str  # the same data gives the same string on every machine, wherever it lies
  # what can be read off any image of this kind: name of a map -> function u8[H,W,C] -> the map [H,W]
  detectors: Mapping[str, Callable[[np.ndarray], np.ndarray]] = dataclasses.field(default_factory=dict)
  files: tuple[str, ...] = ()  # of a folder: each example's file, relative to the folder that was named

  @property
  def num_classes(self) -> int:
    return len(self.label_names)

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, i: int) -> Example:
    if not 0 <= i < self.size:
      raise IndexError(f"example {i} of a data source with {self.size}")
    return self.read([int(i)])[0]

  def take(self, rows: Iterable[int]) -> list[Example]:
    """Several examples, which some sources read faster than one by one (ArrayRecord five times as fast)."""
    return self.read([int(row) for row in rows])

  def labels_of(self, rows: np.ndarray) -> np.ndarray:
    """The labels of several examples, i32[N]; few of their images are in memory at a time."""
    parts = np.array_split(rows, 1 + len(rows) // AT_A_TIME)
    return np.asarray([example["label"] for part in parts for example in self.take(part)], np.int32)


def from_arrays(kind: str, images: np.ndarray, labels: np.ndarray, label_names: tuple[str, ...]) -> Source:
  """A source over arrays in memory.

  Shapes: images: uint8[N,H,W,C]; labels: an integer type, [N].
  """
  # The first and last images stand for all: hashing a large file at every start would cost seconds.
  mark = digest(images.shape, labels.astype(np.int64), images[:1], images[-1:])
  return Source(len(images), ArrayReader(images, labels), label_names, f"{kind}-{len(images)}-{mark}")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ArrayReader:
  """Reads examples from sequences: images uint8[H,W,C], their labels int[N], and perhaps the maps of each."""

  images: Any
  labels: np.ndarray
  maps: Sequence[dict[str, np.ndarray]] = ()

  def __call__(self, rows: Sequence[int]) -> list[Example]:
    return [
      {"image": self.images[i], "label": int(self.labels[i])} | ({"maps": self.maps[i]} if self.maps else {})
      for i in rows
    ]


def digest(*parts: Any) -> str:
  """Twelve hexadecimal digits that identify arrays (by their bytes) and plain values (by their repr)."""
  sha = hashlib.sha256()
  for part in parts:
    sha.update(np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    sha.update(b"\0")
  return sha.hexdigest()[:12]
