"""TFDS sets that were prepared as ArrayRecord files, read without TensorFlow."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.data import base, decode
from jaxdiff.data.base import Example, Source
from jaxdiff.errors import UserError, first_line, require

INFO = "dataset_info.json"
VERSION = re.compile(r"\d+\.\d+\.\d+")  # a directory with another name is no finished set
DEFAULT_DIR = "~/tensorflow_datasets"


def open_records(where: str, split: str, skip_unreadable: bool) -> Source:
  """A prepared set by its directory, or by its name; one that is not prepared is, if TensorFlow is installed."""
  del skip_unreadable
  # On disk first: asking TFDS for a set that is not there retries the network for minutes.
  folder = find(where) or prepare_by_tensorflow(where)
  tfds = require("tensorflow_datasets", "tensorflow-datasets", f"data source 'tfds:{where}'")
  builder = tfds.builder_from_directory(str(folder))
  info = builder.info
  check_format(folder, info)
  known = sorted(info.splits)
  if split not in known:
    raise base.NoSplit(f"{folder} has no split {split!r} (config.data.split). Known: {', '.join(known)}.")
  image_key, label_key = keys(tfds, folder, info)
  data = builder.as_data_source(split=split, decoders={image_key: tfds.decode.SkipDecoding()})
  if not len(data):
    raise UserError(f"the split {split!r} of {folder} is empty (config.data.split).")
  channels = 1 if info.features[image_key].shape[-1] == 1 else 3
  reader = RecordReader(data, image_key, label_key, channels, str(folder))
  return Source(len(data), reader, label_names(info.features[label_key], reader), mark(info, split, data))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RecordReader:
  """Reads and decodes records of a tfds data source that gives encoded images."""

  data: Any
  image_key: str
  label_key: str
  channels: int
  name: str  # for messages

  def __call__(self, rows: Sequence[int]) -> list[Example]:
    return [self.decoded(i, record) for i, record in zip(rows, self.data.__getitems__(rows), strict=True)]

  def decoded(self, i: int, record: Any) -> Example:
    name = f"record {i} of {self.name}"
    image = decode.decode(record[self.image_key], self.channels, name)
    if image is None:
      raise UserError(f"{name} holds no readable image: the set is damaged, prepare it again.")
    return {"image": image, "label": int(record[self.label_key])}

  def largest_label(self) -> int:
    parts = np.array_split(np.arange(len(self.data)), 1 + len(self.data) // 1024)
    records = (record for part in parts for record in self.data.__getitems__(part.tolist()))
    return max(int(record[self.label_key]) for record in records)


def find(where: str) -> Path | None:
  """The directory of a prepared set, or None if a name was given and nothing is prepared under it.

  Raises:
    UserError: a directory was given and it holds no prepared set, or several.
  """
  name, _, data_dir = where.partition("?")
  as_path = Path(name).expanduser()
  if name.startswith(("/", ".", "~")) or ("/" in name and as_path.is_dir()):
    found = newest(as_path, where)
    if found is None:
      raise UserError(
        f"there is no finished TFDS set (a {INFO}) in {as_path} (config.data.source=tfds:{where})."
      )
    return found
  return newest(roots(data_dir) / name.replace(":", "/"), where)


def roots(data_dir: str) -> Path:
  return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or DEFAULT_DIR).expanduser()


def newest(root: Path, where: str) -> Path | None:
  """The highest version of the one set that lies in root: as itself, or as [name/][config/]version.

  Raises:
    UserError: several sets lie there.
  """
  if (root / INFO).is_file():
    return root
  below = [path.parent for depth in ("*", "*/*", "*/*/*") for path in root.glob(f"{depth}/{INFO}")]
  versions = [path for path in below if VERSION.fullmatch(path.name)]
  sets = sorted({path.parent for path in versions})
  if len(sets) > 1:
    known = ", ".join(path.relative_to(root).as_posix() for path in sets)
    raise UserError(
      f"{root} holds several TFDS sets (config.data.source=tfds:{where}). Name one of: {known}."
    )
  return max(versions, key=lambda path: tuple(map(int, path.name.split("."))), default=None)


def prepare_by_tensorflow(where: str) -> Path:
  """Downloads and prepares a named set as TFDS does, which for most sets needs TensorFlow.

  Raises:
    UserError: TensorFlow is not installed, TFDS knows no such set, or it could not prepare it: network, disk, files that
      have to be fetched by hand.
  """
  name, _, data_dir = where.partition("?")
  root = roots(data_dir)
  if importlib.util.find_spec("tensorflow") is None:
    raise UserError(
      f"tfds:{name} is not prepared in {root}, and preparing it needs TensorFlow: pip install tensorflow and start"
      " again, or set TFDS_DATA_DIR to where it is prepared, or make a set from your own files with --mode prepare."
    )
  tfds = require("tensorflow_datasets", "tensorflow-datasets", f"data source 'tfds:{name}'")
  try:
    builder = tfds.builder(name.replace(":", "/"), data_dir=str(root), file_format="array_record")
    builder.download_and_prepare(file_format="array_record")
  except tfds.core.DatasetNotFoundError:
    raise UserError(f"TFDS knows no set {name!r} (config.data.source=tfds:{where}).") from None
  except Exception as error:
    reason = f"{type(error).__name__}: {first_line(error)}"
    raise UserError(
      f"TFDS could not prepare tfds:{where} (config.data.source) in {root}: {reason}"
    ) from error
  return Path(builder.data_dir)


def check_format(folder: Path, info: Any) -> None:
  found = info.file_format.value if info.file_format else "no"
  if found != "array_record":
    raise UserError(
      f"{folder} was prepared as {found} files, which cannot be read at random. Prepare it again with"
      " builder.download_and_prepare(file_format='array_record')."
    )


def keys(tfds: Any, folder: Path, info: Any) -> tuple[str, str]:
  """The names of the image and the label feature: the set's supervised keys, else "image" and "label".

  Raises:
    UserError: there is no 8- or 16-bit image, or no integer label, under these names.
  """
  image_key, label_key = info.supervised_keys or ("image", "label")
  features = dict(info.features.items())
  image, label = features.get(image_key), features.get(label_key)
  if not isinstance(image, tfds.features.Image) or not np.issubdtype(image.np_dtype, np.unsignedinteger):
    raise UserError(
      f"{folder} has no image feature {image_key!r}. Its features: {', '.join(sorted(features))}."
    )
  if label is None or label.shape != () or not np.issubdtype(label.np_dtype, np.integer):
    raise UserError(
      f"{folder} has no integer label {label_key!r}. Its features: {', '.join(sorted(features))}."
    )
  return image_key, label_key


def label_names(feature: Any, reader: RecordReader) -> tuple[str, ...]:
  """The class names of the set; numbers up to the largest label if it has none."""
  if getattr(feature, "names", None):
    return tuple(feature.names)
  count = getattr(feature, "num_classes", None) or 1 + reader.largest_label()
  return tuple(str(i) for i in range(count))


def mark(info: Any, split: str, data: Any) -> str:
  """The fingerprint: what the set says of itself, and its first and last labels and images."""
  sizes = [(name, s.num_examples, s.num_bytes) for name, s in sorted(info.splits.items())]
  ends = [sorted(data[i].items(), key=lambda item: item[0]) for i in (0, len(data) - 1)]
  return f"tfds-{len(data)}-{base.digest(info.full_name, split, sizes, repr(ends))}"
