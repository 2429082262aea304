"""Weights of other people's networks: found in the cache, or downloaded once and checked.

The cache is platform's. PyTorch reads a .pth file once; from then on its tensors lie beside it as an .npz, which NumPy
reads alone.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxdiff import platform, sums
from jaxdiff.errors import UserError, first_line, require
from jaxdiff.files import write_atomically
from jaxdiff.models import inception

logger = logging.getLogger("jaxdiff")

# One file under two names: mseitzer/pytorch-fid and toshas/torch-fidelity publish it, converted from TensorFlow's.
INCEPTION_URL = (
  "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
)
INCEPTION_FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
# Its first eight digits are in the name, which is how torch.hub has its files named.
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

CHUNK = 1 << 20  # bytes
TELL_EVERY = 20 << 20  # bytes between two lines of progress
TIMEOUT = 60  # seconds without a byte


def inception_weights(path: str | os.PathLike[str] = "") -> dict[str, Any]:
  """The parameters of models.inception.InceptionV3.

  A path names a .pth file (a state dict as pytorch-fid and torch-fidelity have it) or an .npz with the same tensors.
  Without one they are what the cache holds; where it holds nothing, they are downloaded once.

  Raises: UserError for a file that is missing, damaged, of another network or (without a path) not the published one;
    where the download fails; and where a .pth has to be read without PyTorch.
  """
  file = given(Path(path).expanduser()) if path else published_inception()
  kept = file if file.suffix == ".npz" else npz_path(sums.sha256(file))
  tensors = read_npz(kept) if kept.is_file() else read_pth(file)
  try:
    params = inception.from_torch(tensors)
  except UserError as error:
    raise UserError(f"{file}: {error} The right one is at {INCEPTION_URL}.") from None
  if not kept.is_file():
    keep(kept, tensors)
  return params


def given(file: Path) -> Path:
  """The file that a user names, with a warning if it is a .pth other than the published one.

  Raises: UserError where it does not exist or has another suffix.
  """
  if not file.is_file():
    raise UserError(f"there is no file {str(file)!r} with Inception's weights. They are at {INCEPTION_URL}.")
  if file.suffix not in (".pth", ".npz"):
    raise UserError(f"{str(file)!r} should be a .pth file with Inception's weights, or an .npz made of one.")
  if file.suffix == ".pth" and sums.sha256(file) != INCEPTION_SHA256:
    logger.warning("%s is not the published Inception: its scores compare only with its own.", file)
  return file


def published_inception() -> Path:
  """The published weights in the cache, downloaded if need be: the .npz that PyTorch has read, or the .pth.

  Raises: UserError for a .pth in the cache with another hash, and where the download fails.
  """
  cache = platform.cache_dir()
  if (converted := npz_path(INCEPTION_SHA256)).is_file():
    return converted
  for name in INCEPTION_FILES:
    if (file := cache / name).is_file():
      if sums.sha256(file) != INCEPTION_SHA256:
        raise UserError(f"{file} is damaged or another file: {expected_hash()}. Delete it, or replace it.")
      return file
  require_torch()  # before 95 MB are fetched in vain
  download(INCEPTION_URL, target := cache / INCEPTION_FILES[0])
  return target


def npz_path(digest: str) -> Path:
  """Where the tensors of the .pth file with this sha256 are kept, so that no other file's can be taken for them."""
  return platform.cache_dir() / f"inception-{digest[:16]}.npz"


def expected_hash() -> str:
  """The end of a sentence about a file that is not the published one."""
  return f"its sha256 should start with {INCEPTION_SHA256[:8]}, as at {INCEPTION_URL}"


def keep(path: Path, tensors: dict[str, np.ndarray]) -> None:
  """Writes tensors to the cache; one that cannot be written costs only time, at the next start."""
  try:
    write_atomically(path, lambda file: np.savez(file, **tensors))  # type: ignore[arg-type]
  except UserError as error:
    logger.warning("Inception's weights will be converted again next time: %s", error)


def read_npz(path: Path) -> dict[str, np.ndarray]:
  """The arrays of an .npz file by name. Raises UserError for one that is damaged or holds Python objects."""
  try:
    with np.load(path, allow_pickle=False) as file:
      return {name: file[name] for name in file.files}
  except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
    raise UserError(
      f"cannot read {path}: {error}. Delete it, and it is made anew from the .pth file."
    ) from None


def read_pth(path: Path) -> dict[str, np.ndarray]:
  """The tensors of a PyTorch state dict, as float32 (counters as they are).

  Raises: UserError without PyTorch, and for a file that is damaged or holds anything but tensors.
  """
  torch = require_torch()
  try:
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: (t.float() if t.is_floating_point() else t).numpy() for name, t in state.items()}
  except Exception as error:  # noqa: BLE001 - a damaged pickle raises whatever its bytes happen to mean
    raise UserError(
      f"cannot read {path} as a PyTorch state dict ({type(error).__name__}: {first_line(error)}). It may be truncated; "
      f"download it again from {INCEPTION_URL}."
    ) from None


def require_torch() -> Any:
  """The module torch. Raises UserError where it is not installed."""
  return require("torch", "torch", "reading a .pth file, which is done once,")


def download(url: str, target: Path) -> None:
  """Fetches the published Inception to `target`, which appears only when it is whole and its hash is right.

  Raises: UserError where the server cannot be reached, the connection breaks or what came is another file.
  """
  logger.info("downloading %s to %s", url, target)
  by_hand = f"Put the file there by hand as {target}, or give its path."

  def fill(file: IO[bytes]) -> None:
    sha = hashlib.sha256()
    for chunk in received(url, by_hand):
      sha.update(chunk)
      file.write(chunk)
    if sha.hexdigest() != INCEPTION_SHA256:
      raise UserError(f"what came from {url} is another file: {expected_hash()}. {by_hand}")

  write_atomically(target, fill)


def received(url: str, by_hand: str) -> Iterator[bytes]:
  """What a server sends, in chunks; tells how far it is.

  Raises: UserError where it cannot be reached or ends early; it closes with `by_hand`, what to do about it.
  """
  done = told = 0
  try:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
      total = int(response.headers.get("Content-Length") or 0)
      while chunk := response.read(CHUNK):
        done += len(chunk)
        if done - told >= TELL_EVERY:
          told = done
          logger.info("downloaded %d of %s MB", done >> 20, total >> 20 or "?")
        yield chunk
  except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
    raise UserError(f"cannot download {url}: {error}. {by_hand}") from None
  if done < total:
    raise UserError(f"cannot download {url}: it broke off after {done} of {total} bytes. {by_hand}")
