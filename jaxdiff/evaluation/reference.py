"""What generated images are compared with: statistics of a set's features, made of a data source or read from a file.

A file is an .npz with mu f64[D] and sigma f64[D,D], as guided-diffusion and pytorch-fid name them, and beside them the
number of images, features of some, and what made them. Files of others are read as far as they go: mu and sigma give
the Frechet distance alone; images in arr_0 give all scores.
"""

from __future__ import annotations

import logging
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdiff import data, distributed, reporting
from jaxdiff.data import transforms
from jaxdiff.data.base import digest
from jaxdiff.errors import UserError
from jaxdiff.evaluation import features, gather, images
from jaxdiff.evaluation.features import Extractor, Shape
from jaxdiff.evaluation.gather import Gathered
from jaxdiff.files import write_atomically
from jaxdiff.scores import frechet

logger = logging.getLogger("jaxdiff")


class Statistics(NamedTuple):
  """A set of images, as its features know it."""

  num: int  # images; 0: not known
  mean: np.ndarray  # f64[D]
  covariance: np.ndarray  # f64[D,D]
  kept: np.ndarray | None  # f32[M,D], features of some
  rows: np.ndarray | None  # i64[M], which images of the set those are
  extractor: str  # the fingerprint of what made them; empty: not known
  resize: str  # how images came to the size the network reads; empty: not known
  data: str  # which images: their source's fingerprint and how they are seen


def of(config: Any, extractor: Extractor, workdir: Path) -> Statistics:
  """The statistics that config.eval asks for.  Raises UserError for a file that was made in another way."""
  file = config.eval.reference
  if file:
    return load(Path(file).expanduser(), extractor, config.data)
  return of_split(config, split(config), extractor, workdir)


def split(config: Any) -> str:
  """The split of config.data.source that is compared with."""
  return config.eval.reference_split or config.data.split


def of_split(config: Any, split: str, extractor: Extractor, cache: Path | None) -> Statistics:
  """The statistics of a split of config.data.source; kept in a folder `cache`, if one is given, for the next time."""
  source = images.open_split(config.data, split)
  mark = fingerprint(source, config.data)
  file = cache and cache / "evaluation" / f"reference-{digest(mark, extractor.fingerprint)}.npz"
  if file and file.is_file():
    return load(file, extractor, config.data)
  if len(source) < 2:
    raise UserError(
      f"the split {split!r} has one image; statistics need two or more (config.eval.reference_split)."
    )
  settings = data.without_hints(config.data)
  batches = ((b["image"], b["label"]) for b in data.epoch(source, settings, images.BATCH))
  with reporting.progress(len(source), desc=f"features of {split}") as bar:
    found = gather.gather(batches, len(source), extractor, tell=bar.update)
  made = of_gathered(found, extractor, resize(config.data, extractor), mark)
  if file and distributed.is_first():
    save(file, made)
  return made


def of_gathered(found: Gathered, extractor: Extractor, resize: str, data: str) -> Statistics:
  """The statistics of images that were gone through."""
  moments = found.moments
  return Statistics(
    moments.num,
    moments.mean,
    frechet.covariance(moments),
    found.kept,
    found.rows,
    extractor.fingerprint,
    resize,
    data,
  )


def fingerprint(source: data.Source, settings: Any) -> str:
  """What the images of a source are, as the config's data section has them seen without augmentation."""
  view = transforms.view(settings, train=False)
  return f"{source.fingerprint} {view.resize} {view.size}x{view.size}x{view.channels}"


def resize(settings: Any, extractor: Extractor) -> str:
  """How an image comes to the size that the network reads."""
  view = transforms.view(settings, train=False)
  return f"{view.resize} to {view.size}x{view.size}x{view.channels}; in the network: {extractor.resize}"


def check_name(path: Path) -> None:
  """Raises UserError for a file that NumPy would not know again."""
  if path.suffix != ".npz":
    raise UserError(f"{str(path)!r} (config.eval.make_reference) should end in .npz.")


def save(path: Path, statistics: Statistics) -> None:
  """Writes statistics, whole or not at all.  Raises UserError where that is not possible."""
  s = statistics
  arrays: dict[str, Any] = {"mu": s.mean, "sigma": s.covariance, "num": np.int64(s.num)}
  arrays |= {"kept": s.kept, "rows": s.rows} if s.kept is not None else {}
  arrays |= {"extractor": np.array(s.extractor), "resize": np.array(s.resize), "data": np.array(s.data)}
  write_atomically(path, lambda file: np.savez(file, **arrays))


def load(path: Path, extractor: Extractor, settings: Any) -> Statistics:
  """Statistics from a file, which must have been made by the same network of images resized in the same way.

  `settings` is the config's data section: how images are seen here.  What a file of others does not say is not checked, but the number of features is.
  Raises UserError for a file that cannot be read, or was made in another way, or of other features.
  """
  arrays = _read(path, ("mu", "sigma", "num", "kept", "rows", "extractor", "resize", "data"))
  if "extractor" in arrays:
    found = _own(path, arrays)
    _check_same(path, "extractor", found.extractor, extractor.fingerprint)
    _check_same(path, "resize", found.resize, resize(settings, extractor))
    return found
  own_images = images.npz_shape(path)
  if own_images is None and not {"mu", "sigma"} <= arrays.keys():
    raise UserError(
      f"{path} (config.eval.reference) holds no statistics: it has neither mu and sigma nor images in arr_0."
    )
  seen = _of_images(path, extractor) if own_images else None
  if "mu" not in arrays or (seen and arrays["mu"].shape != seen.mean.shape):
    assert seen is not None  # for mypy: one of the two is there
    return seen
  mean, covariance = (np.asarray(arrays[key], np.float64) for key in ("mu", "sigma"))
  _check_dimension(path, mean, extractor, images.shape(settings))
  if seen:
    return seen._replace(mean=mean, covariance=covariance)
  return Statistics(0, mean, covariance, None, None, "", "", path.name)


def _own(path: Path, arrays: dict[str, np.ndarray]) -> Statistics:
  try:
    text = {key: str(arrays[key]) for key in ("extractor", "resize", "data")}
    kept, rows = arrays.get("kept"), arrays.get("rows")
    return Statistics(int(arrays["num"]), arrays["mu"], arrays["sigma"], kept, rows, **text)
  except KeyError as error:
    raise UserError(
      f"{path} (config.eval.reference) has no {error}. Make it anew: --config.eval.make_reference."
    ) from None


def _of_images(path: Path, extractor: Extractor) -> Statistics:
  given = images.of_npz(path, "config.eval.reference")
  extractor.check(given.shape)
  with reporting.progress(given.num, desc=f"features of {path.name}") as bar:
    found = gather.gather(given.batches(), given.num, extractor, tell=bar.update)
  return of_gathered(found, extractor, "", path.name)


def _check_same(path: Path, what: str, there: str, here: str) -> None:
  if there != here:
    raise UserError(
      f"{path} (config.eval.reference) was made with the {what} {there!r}, this evaluation has {here!r}. Make it anew with "
      f"--config.eval.make_reference={path}, or use its {what}."
    )


def _check_dimension(path: Path, mean: np.ndarray, extractor: Extractor, shape: Shape) -> None:
  dim = features.dimension(extractor, shape)
  if mean.shape != (dim,):
    raise UserError(
      f"{path} (config.eval.reference) holds mu of shape {list(mean.shape)}; {extractor.name!r} (config.eval.features) "
      f"gives {dim} features. Use the network that made it: published files are of inception, 2048."
    )


def _read(path: Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
  """Those arrays of an .npz file that are there.  Raises UserError for a file that cannot be read."""
  if not path.is_file():
    raise UserError(f"there is no file {str(path)!r} (config.eval.reference).")
  try:
    with np.load(path, allow_pickle=False) as file:
      return {key: file[key] for key in keys if key in file.files}
  except (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
    raise UserError(f"cannot read {path} (config.eval.reference) as an .npz file: {error}.") from None
