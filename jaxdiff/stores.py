"""Where checkpoints lie: a folder on a file system, or one in a bucket of Google Cloud Storage, `gs://bucket/folder`.

A folder is a pathlib.Path or, in a bucket, an epath.Path (etils' over gcsfs, as Orbax uses it).  Both are used alike; here is what
differs.  A bucket has no renames and no folders without files: what is whole there is marked by a file, and an object appears whole.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import orbax.checkpoint as ocp
from etils import epath

from jaxdiff.errors import Outage, UserError, first_line, require
from jaxdiff.files import write_atomically

Folder = Any  # pathlib.Path | epath.Path, which have no class in common

SCHEME = "gs://"
KEY = "config.train.checkpoint_dir"
MARK = "commit_success.txt"  # Orbax's, of a folder in a bucket that is whole
# in what a bucket's clients say where trying again is of no use
OURS = re.compile(
  r"forbidden|denied|unauthenticated|credentials|project|not exist|not found|\b40[0134]\b", re.IGNORECASE
)
PROBE_BYTES = 4096  # that a folder is tried with: an empty file fits on a full disk
UNFINISHED = ocp.path.step.TMP_DIR_SUFFIX  # Orbax's, in the name of a folder on a file system that is not

# Before the first path is made: gcsfs also where TensorFlow is installed, whose files are other ones; and no listings that are kept,
# as other processes, and TensorStore in this one, write there too.
os.environ.setdefault("EPATH_USE_TF", "false")
fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False


def of(config: Any, workdir: Path) -> Folder:
  """The folder below which the checkpoints of a config's run lie: config.train.checkpoint_dir, or else the workdir.

  Raises UserError as `at`.
  """
  given = config.train.checkpoint_dir
  return at(given) if given else workdir.absolute()


def at(address: str) -> Folder:
  """The folder of an address, from the root.

  Raises UserError for one that Orbax does not save to, and where gcsfs is not installed.
  """
  if not address.startswith(SCHEME):
    if re.match(r"[a-z0-9]+:/", address):
      raise UserError(
        f"{address!r} ({KEY}) is no folder; of buckets Orbax saves to gs://bucket/folder alone."
      )
    return Path(address).expanduser().absolute()
  if not _bucket_of(address):
    raise UserError(f"{address!r} ({KEY}) names no bucket: write gs://bucket/folder.")
  require("gcsfs", "gcsfs", f"{address} ({KEY})")
  return epath.Path(address)


def is_bucket(folder: Folder) -> bool:
  """Whether a folder is in a bucket."""
  return str(folder).startswith(SCHEME)


def prepare(workdir: Path, store: Folder) -> None:
  """Makes the folder of a run and, where that is another, of its checkpoints.

  Raises UserError for one that cannot be written to, or, in a bucket, not deleted from.
  """
  make_writable(workdir)
  if store != workdir.absolute():
    make_writable(store, f"Give another with --{KEY}=DIR.")


def make_writable(folder: Folder, advice: str = "Give another with --workdir DIR.") -> None:
  """Makes a folder, if it is not there, and tries to write to it: what takes long learns at once that it would be in vain.

  Raises UserError, which ends with the advice, where that fails; for a bucket also where deleting does.
  """
  try:
    _try(folder)
  except Exception as error:
    if not (isinstance(error, OSError) or is_bucket(folder)):
      raise
    text = f"cannot write to {str(folder)!r}: {_why(error)}. {advice}"
    raise (_kind(error) if is_bucket(folder) else UserError)(text) from None


def _try(folder: Folder) -> None:
  if is_bucket(folder):
    # Orbax asks for the bucket itself, by this client, when it looks for checkpoints and when it has deleted one.
    storage = require("google.cloud.storage", "google-cloud-storage", str(folder))
    storage.Client().get_bucket(_bucket_of(folder))
  else:
    folder.mkdir(parents=True, exist_ok=True)
  probe = folder / f".write-test-{os.getpid()}"
  try:
    probe.write_bytes(bytes(PROBE_BYTES))
  except OSError:
    with contextlib.suppress(OSError):
      probe.unlink()
    raise
  probe.unlink()


def write(folder: Folder, name: str, text: str) -> None:
  """Writes a file, which appears whole or not at all.  Raises UserError where that is not possible."""
  if is_bucket(folder):
    with reached(folder):
      (folder / name).write_text(text)
  else:
    write_atomically(folder / name, lambda file: file.write(text.encode()))


def listed(folder: Folder) -> list[Folder]:
  """What is in a folder; nothing where there is no such folder."""
  try:
    return list(folder.iterdir())
  except FileNotFoundError:
    return []


@contextlib.contextmanager
def reached(folder: Folder) -> Iterator[None]:
  """In this context what a bucket's clients raise is a UserError (of authentication, permission) or an Outage."""
  try:
    yield
  except Exception as error:
    if isinstance(error, UserError) or not is_bucket(folder):
      raise
    raise out_of_reach(folder, error) from error


def out_of_reach(folder: Folder, error: Exception) -> UserError:
  """The UserError or Outage for what a bucket's client has raised."""
  return _kind(error)(f"{folder} ({KEY}) cannot be reached: {_why(error)}.")


def is_whole(folder: Folder) -> bool:
  """Whether what Orbax writes into a folder was written to its end."""
  return (folder / MARK).exists() if is_bucket(folder) else UNFINISHED not in folder.name


def delete(folder: Folder) -> None:
  """Deletes what Orbax has written; killed on the way, what is left does not count as whole, and Orbax clears it away."""
  if is_bucket(folder):
    (folder / MARK).unlink()
    folder.rmtree(missing_ok=True)
  else:
    shutil.rmtree(folder.rename(folder.with_name(folder.name + UNFINISHED)))


def move(folder: Folder, target: Folder) -> None:
  """Moves what Orbax has written; killed on the way, the whole of it is still where it was."""
  if is_bucket(folder):
    bucket = fsspec.filesystem("gcs")
    for name in bucket.find(str(folder)):
      bucket.cp_file(name, f"{target}/{epath.Path(SCHEME + name).relative_to(folder)}")
    delete(folder)
  else:
    target.parent.mkdir(exist_ok=True)
    folder.rename(target)


def _bucket_of(address: Any) -> str:
  return str(address).removeprefix(SCHEME).split("/")[0]


def _kind(error: Exception) -> type[UserError]:
  """Whether the user can mend it, or it may pass by itself."""
  return UserError if isinstance(error, FileNotFoundError) or OURS.search(str(error)) else Outage


def _why(error: Exception) -> str:
  """What a file system or a bucket's client says, which has the account and the permission on a line of its own."""
  return (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split()) or first_line(error)
