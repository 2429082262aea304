"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from jaxdiff.errors import UserError


def _umask() -> int:
  umask = os.umask(0)
  os.umask(umask)
  return umask


# Read once: to read it is to set it for the whole process, in which other threads make files.
UMASK = _umask()


def write_atomically(path: str | os.PathLike[str], write: Callable[[IO[bytes]], Any]) -> None:
  """Lets `write` fill a temporary file beside `path` and renames it, so that no reader sees half a file.

  Whatever goes wrong, `path` is left as it was and nothing else is left behind. A full disk or a folder
  that cannot be written is a UserError.
  """
  target = Path(path)
  temporary = None
  try:
    with writing(target):
      target.parent.mkdir(parents=True, exist_ok=True)
      with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        temporary = Path(file.name)
        write(file)
      temporary.chmod(target.stat().st_mode if target.exists() else 0o666 & ~UMASK)
      temporary.replace(target)
  finally:
    if temporary is not None:
      temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
  """In this context `path` is written: an OSError is a UserError that names it."""
  try:
    yield
  except OSError as error:
    raise UserError(
      f"cannot write {path}: {error.strerror or error}. Make room there, or choose another place."
    ) from error
