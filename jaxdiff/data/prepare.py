"""Writing a source as a TFDS ArrayRecord set, without TensorFlow: what clusters read."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdiff.data import base, decode, sources
from jaxdiff.data.base import Source
from jaxdiff.errors import UserError, require

NAME = re.compile(r"[a-z][a-z0-9_]*")
VERSION = "1.0.0"
SPLITS = ("train", "test")


def prepare(
  spec: str,
  out_dir: str | Path,
  name: str,
  *,
  splits: Sequence[str] | None = None,
  skip_unreadable: bool = False,
) -> Path:
  """Writes the splits of a source (by default those of train and test that it has) to <out_dir>/<name>/1.0.0.

  Images are stored as PNG, in the source's order, with the names of the classes. `tfds:<path>` reads the set back,
  and so does tfds.data_source. It gets its final name when it is complete: what an interruption leaves behind is
  never taken for a set.

  Returns the directory of the set.
  Raises:
    UserError: the source cannot be opened, the name is none for TFDS, or the set is already there.
  """
  if not NAME.fullmatch(name):
    raise UserError(
      f"{name!r} is no name for a TFDS set (config.prepare.name): use a-z, 0-9 and _, as 'my_set'."
    )
  target = Path(out_dir).expanduser() / name / VERSION
  if target.exists():
    raise UserError(f"{target} is already there. Delete it, or choose another config.prepare.name.")
  tfds = require("tensorflow_datasets", "tensorflow-datasets", "--mode prepare")
  opened = open_splits(spec, splits, skip_unreadable)
  write(tfds, opened, target.parent.parent, name)
  return target


def open_splits(spec: str, splits: Sequence[str] | None, skip_unreadable: bool) -> dict[str, Source]:
  """The sources to write, by split; asked for by name they must exist."""
  opened = {}
  for split in splits or SPLITS:
    try:
      opened[split] = sources.load(spec, split, skip_unreadable=skip_unreadable)
    except base.NoSplit:
      if splits or split == "train":
        raise
  names = {source.label_names for source in opened.values()}
  if len(names) > 1:
    raise UserError(f"the splits of {spec} have different classes: {' and '.join(map(str, sorted(names)))}.")
  return opened


def write(tfds: Any, opened: Mapping[str, Source], out_dir: Path, name: str) -> None:
  """Runs a TFDS builder over the sources."""
  builder_class = make_builder(tfds, opened)
  builder_class.name = name
  try:
    out_dir.mkdir(parents=True, exist_ok=True)
    if not os.access(out_dir, os.W_OK):
      raise PermissionError(13, "not writable")
    builder = builder_class(data_dir=str(out_dir), file_format="array_record")
    # TFDS tells on stdout of a download that does not happen, and its own bars know no total.
    tfds.disable_progress_bar()
    with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare(download_dir=downloads, file_format="array_record")
  except OSError as e:
    raise UserError(f"cannot write to {out_dir} (config.prepare.out): {e.strerror or e}.") from e


def make_builder(tfds: Any, opened: Mapping[str, Source]) -> Any:
  """A builder class over the sources. It yields encoded images: from arrays TFDS would make them by TensorFlow."""
  source = next(iter(opened.values()))
  channels = source[0]["image"].shape[-1]

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    VERSION = tfds.core.Version(VERSION)

    def _info(self) -> Any:
      features = {
        "image": tfds.features.Image(shape=(None, None, channels), encoding_format="png"),
        "label": tfds.features.ClassLabel(names=list(source.label_names)),
      }
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(features),
        supervised_keys=("image", "label"),
        disable_shuffling=True,  # the stream shuffles; so the set is equal to its source, row by row
      )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
      del dl_manager
      return {split: self._generate_examples(split) for split in opened}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
      yield from encoded_examples(opened[split], split)

  return Builder


def encoded_examples(source: Source, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
  from tqdm import tqdm

  for i in tqdm(range(len(source)), desc=f"writing {split}", unit="image", mininterval=0.5):
    example = source[i]
    yield i, {"image": decode.encode_png(example["image"]), "label": example["label"]}
