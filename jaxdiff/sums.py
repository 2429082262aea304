"""SHA-256 sums of the files in a folder, kept in it, so that what a disk has changed since is noticed.

SHA256SUMS is in the format of coreutils: `sha256sum -c SHA256SUMS` in the folder checks it without this program.  Its
first line, a comment, says how many files there are, so that a list that has lost its end is not taken for a whole one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator

from jaxdiff import stores
from jaxdiff.stores import Folder

NAME = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64})  (.+)")


class Damaged(Exception):
  """A file is not what it was when its sum was taken; the message names it, relative to the folder."""


def write(folder: Folder, leave_out: Collection[str] = ()) -> None:
  """Writes the sums of all files below a folder, except those directly in it that leave_out names.

  For a folder that nobody reads yet: the list itself does not appear at once.
  """
  names = sorted(path.relative_to(folder).as_posix() for path in _files(folder))
  kept = [name for name in names if name not in {NAME, *leave_out}]
  lines = [_header(len(kept)), *(f"{sha256(folder / name)}  {name}" for name in kept)]
  (folder / NAME).write_text("".join(f"{line}\n" for line in lines))


def exist(folder: Folder) -> bool:
  """Whether a folder has sums."""
  return (folder / NAME).is_file()


def text(folder: Folder) -> str:
  """The sums of a folder, as they are written there; empty where it has none."""
  return (folder / NAME).read_text() if exist(folder) else ""


def check(folder: Folder, below: str = "") -> None:
  """Reads the files of a folder, or of its part `below`, and compares them with their sums.

  Raises Damaged at the first file that differs, is missing or, on a file system, cannot be read, the list of sums among them; and
  what a bucket's client raises.  Files without a sum are not looked at.
  """
  for name, wanted in _listed(folder).items():
    if not name.startswith(below):
      continue
    try:
      found = sha256(folder / name)
    except FileNotFoundError:
      raise Damaged(f"{name} is missing") from None
    except OSError as error:
      if stores.is_bucket(folder):  # not permitted, no network
        raise
      raise Damaged(f"{name} cannot be read: {error.strerror}") from None
    if found != wanted:
      raise Damaged(f"{name} has changed since it was written: its SHA-256 is not the one in {NAME}")


def sha256(path: Folder) -> str:
  """The SHA-256 of a file, in hexadecimal digits."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _listed(folder: Folder) -> dict[str, str]:
  """name -> sum.  Raises Damaged for a list that is not as it was written."""
  try:
    content = (folder / NAME).read_bytes()
  except OSError as error:
    if stores.is_bucket(folder) and not isinstance(error, FileNotFoundError):
      raise
    raise Damaged(f"{NAME} is damaged") from None
  try:
    header, *lines = content.decode().split("\n")[:-1]
    found = [match for line in lines if (match := LINE.fullmatch(line))]
    whole = len(found) == len(lines) and header == _header(len(found))
  except ValueError:  # no text, or no line in it
    whole = False
  if not whole:
    raise Damaged(f"{NAME} is damaged")
  return {match[2]: match[1] for match in found}


def _files(folder: Folder) -> Iterator[Folder]:
  for path in folder.iterdir():
    if path.is_dir():
      yield from _files(path)
    else:
      yield path


def _header(count: int) -> str:
  return f"# {count} files; check them here with: sha256sum -c {NAME}"
