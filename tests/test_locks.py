"""One run at a time in a workdir."""

import errno
import fcntl
import logging
import os
import re
import socket
import subprocess
import sys

import pytest

from jaxdiff import locks
from jaxdiff.errors import UserError
from tests import disk

HOLDER = """
import pathlib, sys, time
from jaxdiff import locks
with locks.hold(pathlib.Path(sys.argv[1])):
  print("held", flush=True)
  time.sleep(60)
"""


def told(process):
  return re.escape(f"process {process} on {socket.gethostname()} trains in ")


def test_a_second_run_is_refused_and_told_of_the_first(tmp_path):
  with locks.hold(tmp_path):
    with pytest.raises(UserError, match=f"^{told(os.getpid())}.*--workdir") as error, locks.hold(tmp_path):
      pass
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    with pytest.raises(UserError, match=f"^{told(os.getpid())}"), locks.hold(tmp_path):
      pass  # the refused one has not taken the first one's name away
  with locks.hold(tmp_path):
    pass


def test_a_run_that_failed_leaves_no_lock(tmp_path):
  with pytest.raises(ZeroDivisionError), locks.hold(tmp_path):
    raise ZeroDivisionError
  with locks.hold(tmp_path):
    pass


def test_a_killed_process_leaves_no_lock(tmp_path):
  with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as process:
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=f"^{told(process.pid)}"), locks.hold(tmp_path):
      pass
    process.kill()
    process.wait()
  with locks.hold(tmp_path):
    pass
  assert (tmp_path / locks.NAME).read_text() == f"process {os.getpid()} on {socket.gethostname()}"


def test_without_a_name_the_holder_is_another_process(tmp_path):
  """As in the moment between the lock and what is written into its file."""
  with (tmp_path / locks.NAME).open("w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="^another process trains in "), locks.hold(tmp_path):
      pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_warned_of(tmp_path, number, monkeypatch, caplog):
  def flock(*_):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, "flock", flock)
  monkeypatch.setattr(logging.getLogger("jaxdiff"), "propagate", True)
  entered = False
  with locks.hold(tmp_path):
    entered = True
  assert entered
  assert (
    f"{tmp_path} could not be locked ({os.strerror(number)}): take care that no second run" in caplog.text
  )


def test_a_lock_that_cannot_be_written_is_told(tmp_path):
  (tmp_path / locks.NAME).mkdir()
  with pytest.raises(UserError, match="cannot write .*/.lock: Is a directory"), locks.hold(tmp_path):
    pass


def test_a_lock_on_a_full_disk_is_told_and_held_by_nobody(tmp_path):
  with (
    disk.full(),
    pytest.raises(UserError, match="cannot write .*/.lock: File too large"),
    locks.hold(tmp_path),
  ):
    pass
  with locks.hold(tmp_path):
    pass
