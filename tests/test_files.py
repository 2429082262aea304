from __future__ import annotations

import errno
import os

import pytest

from jaxdiff.errors import UserError
from jaxdiff.files import write_atomically


def test_makes_folders_and_replaces(tmp_path):
  target = tmp_path / "a" / "b.bin"
  write_atomically(target, lambda file: file.write(b"one"))
  write_atomically(target, lambda file: file.write(b"two"))
  assert target.read_bytes() == b"two"
  assert os.listdir(target.parent) == ["b.bin"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
  target = tmp_path / "b.bin"
  target.write_bytes(b"old")

  def fail(file):
    file.write(b"half")
    raise error

  with pytest.raises((UserError, KeyboardInterrupt)) as caught:
    write_atomically(target, fail)
  if isinstance(error, OSError):
    assert f"cannot write {target}: No space left on device" in str(caught.value)
  assert target.read_bytes() == b"old"
  assert os.listdir(tmp_path) == ["b.bin"]


def test_a_place_that_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot write"):
    write_atomically(tmp_path / "file" / "b.bin", lambda file: file.write(b""))


def test_respects_the_umask_and_the_mode_of_what_it_replaces(tmp_path):
  target = tmp_path / "b.bin"
  old = os.umask(0o022)
  try:
    write_atomically(target, lambda file: file.write(b""))
  finally:
    os.umask(old)
  assert target.stat().st_mode & 0o777 == 0o644
  target.chmod(0o600)
  write_atomically(target, lambda file: file.write(b""))
  assert target.stat().st_mode & 0o777 == 0o600
