"""Opening data sources by name: `digits`, `shapes`, `tfds:<set>`, `idx:<dir>`, `folder:<dir>`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxdiff import errors
from jaxdiff.data import base, folder, idx, records, shapes, splits
from jaxdiff.data.base import Source
from jaxdiff.errors import UserError, require


def load(spec: str, split: str = "train", *, skip_unreadable: bool = False) -> Source:
  """The data source that `spec` names, as config.data.source does.

  `digits`                    scikit-learn's 1,797 real 8x8 digits, which come inside its wheel
  `shapes[:<size>]`           scenes drawn when they are read, 32x32 or <size> from 32 to 128, with maps of kind and depth;
                              50,000 to train, 5,000 to test; 0.2 ms each at 32x32, so that in_memory=True draws for 12 s first
  `tfds:<name>[/config]`      a TFDS set prepared as ArrayRecord, in $TFDS_DATA_DIR or ~/tensorflow_datasets,
                              or in DIR with `tfds:<name>?DIR`; `tfds:<directory>` reads a prepared directory
  `idx:<dir>`                 IDX files as MNIST and Fashion-MNIST ship them, .gz or not
  `folder:<dir>`              PNG, JPEG and WebP files in one subfolder a class, below <dir>/<split> if it exists

  `split` may be a share of one, as `train[:90%]`: see splits.share.
  `skip_unreadable` drops files of a folder that cannot be decoded, with one warning that names them.

  Raises:
    UserError: no such source, split, directory or file, or broken data; NoSplit if only the split is missing.
  """
  kind, _, where = spec.partition(":")
  if kind not in OPENERS:
    raise errors.unknown("data source", kind, OPENERS)
  if kind in WHERE and not where:
    raise UserError(
      f"data source {spec!r} does not say where: write {kind}:<{WHERE[kind]}> (config.data.source)."
    )
  name, bounds = splits.parse(split)
  if bounds is None:
    return OPENERS[kind](where, split, skip_unreadable)
  return splits.share(OPENERS[kind](where, name, skip_unreadable), split, bounds)


def open_digits(where: str, split: str, skip_unreadable: bool) -> Source:
  """The digits of scikit-learn: 1,797 images, 8x8, gray, values 0..16 scaled to 0..255."""
  del skip_unreadable
  if where:
    raise UserError(f"data source 'digits' takes no argument, found {where!r} (config.data.source).")
  if split != "train":
    raise base.NoSplit(f"data source 'digits' has one split, 'train', and no {split!r} (config.data.split).")
  datasets = require("sklearn.datasets", "scikit-learn", "data source 'digits'")
  digits = datasets.load_digits()
  images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  return base.from_arrays("digits", images, digits.target, tuple(map(str, digits.target_names)))


OPENERS: dict[str, Callable[[str, str, bool], Source]] = {
  "digits": open_digits,
  "shapes": shapes.open_shapes,
  "tfds": records.open_records,
  "idx": idx.open_idx,
  "folder": folder.open_folder,
}
# What those that cannot do without it ask for.
WHERE = {"tfds": "name or directory", "idx": "directory", "folder": "directory"}
