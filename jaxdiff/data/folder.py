"""Folders of image files: one subfolder a class."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxdiff.data import base, decode
from jaxdiff.data.base import Example, Source
from jaxdiff.errors import UserError, require

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
FULL_CHECK = 20_000  # up to this many files each is decoded once when the folder is opened
SKIP = "--config.data.skip_unreadable=True"

log = logging.getLogger("jaxdiff")


def open_folder(where: str, split: str, skip_unreadable: bool) -> Source:
  """The images below <dir>/<split>, or below <dir> itself, which then is the split 'train'.

  A class is a subfolder, in sorted order, of <dir>/train where there is one: a class has one number in all splits.  Its files
  may lie in subfolders of it. Hidden files are ignored.
  All files are checked first: decoded if there are few or if broken ones shall be skipped, else by header only.
  """
  given = Path(where).expanduser()
  if not given.is_dir():
    raise UserError(f"there is no directory {given} (config.data.source=folder:{where}).")
  root = split_dir(given, split)
  classes = class_names(given, root)
  if not classes:
    raise UserError(f"{root} has no subfolders: folder: wants one subfolder a class (config.data.source).")
  files = [(name, label) for label, c in enumerate(classes) for name in image_files(root, c)]
  if not files:
    raise UserError(
      f"{root} holds no images: none of its {len(classes)} subfolders has {', '.join(SUFFIXES)} files."
    )
  full = skip_unreadable or len(files) <= FULL_CHECK
  files = without_broken(root, files, broken_files(root, [name for name, _ in files], full), skip_unreadable)
  empty = sorted(set(range(len(classes))) - {label for _, label in files})
  if empty:
    log.warning("%s: class %s has no images.", root, ", ".join(repr(classes[label]) for label in empty))
  names = tuple(name for name, _ in files)
  labels = np.array([label for _, label in files], np.int32)
  mark = base.digest(classes, names, [os.path.getsize(root / name) for name in names])
  return Source(
    size=len(files),
    read=FileReader(root, names, labels),
    label_names=classes,
    fingerprint=f"folder-{len(files)}-{mark}",
    files=tuple((root.relative_to(given) / name).as_posix() for name in names),
  )


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FileReader:
  """Reads and decodes files: names relative to root, labels int32[N]."""

  root: Path
  names: tuple[str, ...]
  labels: np.ndarray

  def __call__(self, rows: Sequence[int]) -> list[Example]:
    return [self.one(i) for i in rows]

  def one(self, i: int) -> Example:
    path = self.root / self.names[i]
    try:
      image = decode.decode(path.read_bytes(), name=str(path))
    except OSError as e:
      raise UserError(f"cannot read {path}: {e.strerror}.") from None
    if image is None:
      raise UserError(f"{path} is no readable image. Repair or delete it, or drop such files with {SKIP}.")
    return {"image": image, "label": int(self.labels[i])}


def split_dir(root: Path, split: str) -> Path:
  """<root>/<split> if it holds classes, else root itself for the split 'train'.

  Raises:
    NoSplit: neither.
  """
  if (root / split).is_dir() and subfolders(root / split):
    return root / split
  if split == "train":
    return root
  raise base.NoSplit(
    f"{root} has no split {split!r}: no {root / split} with one subfolder a class (config.data.split)."
  )


def class_names(given: Path, root: Path) -> tuple[str, ...]:
  """The classes of a split below `root`: those of the split 'train' beside it.  Raises UserError for one that is not among them."""
  own, train = subfolders(root), given / "train"
  if root in (given, train) or not train.is_dir():
    return own
  known = subfolders(train) or own
  if others := sorted(set(own) - set(known)):
    raise UserError(f"{root} has a class {others[0]!r}, which {train} does not have: {', '.join(known)}.")
  return known


def subfolders(root: Path) -> tuple[str, ...]:
  return tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")))


def image_files(root: Path, folder: str) -> list[str]:
  """Names, relative to root, of the images below a class's folder, sorted; links are followed."""
  names = []
  for where, folders, files in os.walk(root / folder, followlinks=True):
    folders[:] = [f for f in folders if not f.startswith(".")]
    found = [f for f in files if f.lower().endswith(SUFFIXES) and not f.startswith(".")]
    names += [(Path(where) / f).relative_to(root).as_posix() for f in found]
  return sorted(names)


def broken_files(root: Path, names: list[str], full: bool) -> dict[str, str]:
  """Name -> what is wrong with it, for those files that cannot be read."""
  require("PIL.Image", "pillow", "data source 'folder'")
  check = functools.partial(what_is_wrong, full=full)
  with concurrent.futures.ThreadPoolExecutor() as pool:
    wrong = pool.map(check, [root / name for name in names])
    return {name: reason for name, reason in zip(names, wrong, strict=True) if reason}


def what_is_wrong(path: Path, full: bool) -> str:
  """Why a file cannot be used, or nothing; looks at the header first, which bounds what decoding may allocate."""
  from PIL import Image

  try:
    with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
      width, height = image.size
  except Image.DecompressionBombError:
    return f"more than {decode.MAX_PIXELS} pixels"
  except OSError as e:
    return e.strerror or "not an image"
  except ValueError:
    return "not an image"
  if width * height > decode.MAX_PIXELS:
    return f"{width}x{height} is more than {decode.MAX_PIXELS} pixels"
  if full and decode.decode(path.read_bytes()) is None:
    return "damaged or truncated"
  return ""


def without_broken(
  root: Path, files: list[tuple[str, int]], broken: dict[str, str], skip: bool
) -> list[tuple[str, int]]:
  """The files that are left, if broken ones may be skipped.

  Raises:
    UserError: some may not, or none is left.
  """
  if not broken:
    return files
  listed = ", ".join(f"{name} ({reason})" for name, reason in list(broken.items())[:10])
  more = f" and {len(broken) - 10} more" if len(broken) > 10 else ""
  told = f"{len(broken)} of {len(files)} images below {root} cannot be read: {listed}{more}."
  if not skip:
    raise UserError(f"{told} Repair or delete them, or drop them with {SKIP}.")
  if len(broken) == len(files):
    raise UserError(f"{told} None is left.")
  log.warning("%s They are skipped.", told)
  return [(name, label) for name, label in files if name not in broken]
