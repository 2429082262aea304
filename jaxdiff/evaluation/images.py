"""Sets of images to score: an .npz file, a folder, a split of the config's data source; read in batches, never as a whole."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdiff import data
from jaxdiff.data import decode, folder, transforms
from jaxdiff.errors import UserError
from jaxdiff.evaluation.features import Shape, size
from jaxdiff.evaluation.gather import Batches
from jaxdiff.types import NULL_LABEL

BATCH = 256  # images read at a time
KEY = "config.eval.images"


class Images(NamedTuple):
  """A set of images of one shape."""

  name: str  # where they come from
  num: int
  shape: Shape
  batches: Callable[[], Batches]  # goes through all in order, each time it is called


def given(config: Any) -> Images:
  """The set that config.eval.images names.  Raises UserError where there is none, or it cannot be read."""
  spec = config.eval.images
  kind, _, where = spec.partition(":")
  if kind == "data":
    return of_split(config.data, where)
  path = Path(spec).expanduser()
  if path.is_dir():
    return of_folder(path, config.data, config.model.num_classes)
  if path.suffix != ".npz":
    raise UserError(
      f"{spec!r} ({KEY}) is neither a folder nor an .npz file. Give one of them, or data:SPLIT."
    )
  found = of_npz(path, KEY)
  if found.shape != shape(config.data):
    raise UserError(
      f"{spec!r} ({KEY}) holds images of {size(found.shape)}, config.data has {size(shape(config.data))}. "
      "Set --config.data.image_size and --config.data.channels."
    )
  return found


def shape(settings: Any) -> Shape:
  """The shape of images as the config's data section has them seen."""
  return settings.image_size, settings.image_size, settings.channels


def pick(images: Images, rows: np.ndarray) -> np.ndarray:
  """These images of a set, in the order of rows: u8[len(rows),H,W,C].  Goes through the set."""
  found, start = np.empty((len(rows), *images.shape), np.uint8), 0
  for batch, _ in images.batches():
    here = np.flatnonzero((rows >= start) & (rows < start + len(batch)))
    found[here] = batch[rows[here] - start]
    start += len(batch)
  return found


def first(images: Images, num: int) -> tuple[np.ndarray, np.ndarray]:
  """The first images of a set and their labels (NULL_LABEL where they have none): u8[n,H,W,C], i32[n]."""
  parts, count = [], 0
  for batch, labels in images.batches():
    parts.append((batch, np.full(len(batch), NULL_LABEL) if labels is None else labels))
    count += len(batch)
    if count >= num:
      break
  batches, labels_of = zip(*parts, strict=True)
  return np.concatenate(batches)[:num], np.concatenate(labels_of)[:num].astype(np.int32)


def take(settings: Any, split: str, rows: np.ndarray) -> np.ndarray:
  """These images of a split, as a model sees them, in the order of rows: u8[len(rows),H,W,C]."""
  view = transforms.view(settings, train=False)
  examples = open_split(settings, split).take(rows)
  return np.stack([transforms.fit(example["image"], view) for example in examples])


def open_split(settings: Any, split: str) -> data.Source:
  """A split of the source that the config's data section names.  Raises UserError where there is none."""
  return data.load(settings.source, split, skip_unreadable=settings.skip_unreadable)


def of_split(settings: Any, split: str) -> Images:
  """A split of the data source, as a model sees it, without augmentation."""
  source = open_split(settings, split)

  def batches() -> Batches:
    for batch in data.epoch(source, data.without_hints(settings), BATCH):
      yield batch["image"], batch["label"]

  return Images(f"{settings.source} {split}", len(source), shape(settings), batches)


def of_folder(path: Path, settings: Any, num_classes: int) -> Images:
  """The images below a folder, sorted by name, brought to size as the config's data section says.

  Labels are what its subfolders give, sorted, if there are as many of them as classes; images that lie in the folder itself
  have none.  Raises UserError where there is none, and for one that cannot be read.
  """
  classes = folder.subfolders(path)
  labels = range(num_classes) if len(classes) == num_classes else [NULL_LABEL] * len(classes)
  files = [
    (name, label) for label, c in zip(labels, classes, strict=True) for name in folder.image_files(path, c)
  ]
  loose = sorted(p.name for p in path.iterdir() if p.is_file() and p.name.lower().endswith(folder.SUFFIXES))
  files = [(name, NULL_LABEL) for name in loose if not name.startswith(".")] + files
  if not files:
    raise UserError(f"{str(path)!r} ({KEY}) holds no images ({', '.join(folder.SUFFIXES)}).")
  view = transforms.view(settings, train=False)

  def read(name: str) -> np.ndarray:
    try:
      content = (path / name).read_bytes()
    except OSError as error:
      raise UserError(f"cannot read {str(path / name)!r} ({KEY}): {error.strerror}.") from None
    image = decode.decode(content, name=f"{str(path / name)!r} ({KEY})")
    if image is None:
      raise UserError(f"{str(path / name)!r} ({KEY}) is not an image that can be read.")
    return transforms.fit(image, view)

  def batches() -> Batches:
    for start in range(0, len(files), BATCH):
      part = files[start : start + BATCH]
      yield np.stack([read(name) for name, _ in part]), np.array([label for _, label in part], np.int32)

  return Images(str(path), len(files), shape(settings), batches)


def of_npz(path: Path, key: str) -> Images:
  """The images in arr_0 of an .npz file, with the labels in arr_1, if it has any; arr_0 is never held as a whole.

  Raises UserError, which names `key`, for a file that cannot be read or holds no u8[N,H,W,1 or 3].
  """
  if not path.is_file():
    raise UserError(f"there is no file {str(path)!r} ({key}).")
  found = npz_shape(path, key)
  if found is None:
    raise UserError(f"{path} ({key}) has no arr_0 with images.")
  num, *image = found
  labels = _labels(path, num, key)

  def batches() -> Batches:
    start = 0
    for batch in _stream(path, key):
      yield batch, None if labels is None else labels[start : start + len(batch)]
      start += len(batch)

  return Images(str(path), num, (image[0], image[1], image[2]), batches)


def npz_shape(path: Path, key: str = KEY) -> tuple[int, ...] | None:
  """The shape of arr_0 in an .npz file, or None if there is none.  Raises UserError if it is not images."""
  try:
    with zipfile.ZipFile(path) as archive:
      if "arr_0.npy" not in archive.namelist():
        return None
      with archive.open("arr_0.npy") as file:
        shape, fortran, dtype = _header(file)
  except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
    raise UserError(f"cannot read {path} ({key}) as an .npz file: {error}.") from None
  if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or fortran or not shape[0]:
    raise UserError(f"arr_0 of {path} ({key}) is {dtype}{list(shape)}; it should be uint8[N,H,W,1 or 3].")
  return shape


def _labels(path: Path, num: int, key: str) -> np.ndarray | None:
  try:
    with np.load(path, allow_pickle=False) as file:
      labels = file["arr_1"] if "arr_1" in file.files else None
  except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
    raise UserError(f"cannot read arr_1 of {path} ({key}): {error}.") from None
  if labels is not None and (labels.shape != (num,) or labels.dtype.kind not in "iu"):
    raise UserError(
      f"arr_1 of {path} ({key}) is {labels.dtype}{list(labels.shape)}; labels of its {num} images are int[{num}]."
    )
  return labels


def _stream(path: Path, key: str) -> Iterator[np.ndarray]:
  """arr_0 in batches."""
  try:
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
      shape, _, _ = _header(file)
      each = int(np.prod(shape[1:]))
      for start in range(0, shape[0], BATCH):
        count = min(BATCH, shape[0] - start)
        yield np.frombuffer(file.read(count * each), np.uint8).reshape(count, *shape[1:])
  except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
    raise UserError(f"arr_0 of {path} ({key}) is damaged: {error}.") from None


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
  version = np.lib.format.read_magic(file)
  read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
  if version not in read:
    raise ValueError(f"version {version} of the .npy format")
  return read[version](file)
