"""One run at a time in a workdir: a lock that the operating system lets go of when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from jaxdiff.errors import UserError
from jaxdiff.files import writing
from jaxdiff.stores import KEY, Folder, is_bucket

logger = logging.getLogger("jaxdiff")

NAME = ".lock"
TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


@contextlib.contextmanager
def hold(*folders: Folder) -> Iterator[None]:
  """Within this context no other run trains in these folders: a workdir, and where its checkpoints lie.

  Their files stay: deleting one would let two runs lock two files.
  Raises UserError where another process, on any host that shares a folder, trains there, and where the lock's file cannot
  be written.  On a file system without locks this is only a warning; in a bucket, which has none, nothing.
  """
  with contextlib.ExitStack() as stack:
    for folder in dict.fromkeys(folders):
      if not is_bucket(folder):
        _take(stack.enter_context(_open(folder)), folder)
    yield


def _open(folder: Path) -> IO[bytes]:
  with writing(folder / NAME):
    # Without a buffer, as closing would once more write what a full disk has refused.
    return (folder / NAME).open("a+b", buffering=0)


def _take(file: IO[bytes], folder: Path) -> None:
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in TAKEN:
      raise UserError(
        f"{_holder(file)} trains in {str(folder)!r}. Wait for it or stop it, or use another folder (--workdir, {KEY})."
      ) from None
    logger.warning(
      "%s could not be locked (%s): take care that no second run trains there.", folder, error.strerror
    )
    return
  with writing(folder / NAME):
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())


def _holder(file: IO[bytes]) -> str:
  """Who holds a lock: what it has written, which it does right after taking it."""
  file.seek(0)
  return file.read(200).decode(errors="replace").strip() or "another process"
