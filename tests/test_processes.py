"""Runs in processes of their own, with real signals and real limits: what is lost when a run is stopped. Nothing."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests import small
from tests.test_main import equal, last_state

pytestmark = pytest.mark.slow

RUN = (
  "--config", "configs/dit_cfg.py", *(f"--{line}" for line in small.arguments()),
  "--config.train.steps=400", "--config.train.checkpoint_every=20", "--config.train.sample_every=0",
)  # fmt: skip


# The program, whose save of step 40 takes ten minutes.
SLOW_SAVE = """
import runpy, time
from jaxdiff import sums

write = sums.write

def slowly(folder, **named):
  if folder.name.startswith("40"):
    (folder.parent.parent / "saving").touch()
    time.sleep(600)
  write(folder, **named)

sums.write = slowly
runpy.run_module("jaxdiff.main", run_name="__main__", alter_sys=True)
"""


def environment():
  """This process's, without the four simulated devices."""
  return {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}


def start(workdir, *arguments, through=(), program=("-m", "jaxdiff.main")):
  command = [*through, sys.executable, *program, *RUN, "--workdir", str(workdir), *arguments]
  return subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)


def finish(process):
  _, text = process.communicate(timeout=240)
  return process.returncode, text


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
  workdir = tmp_path_factory.mktemp("undisturbed")
  status, text = finish(start(workdir))
  assert status == 0, text
  return last_state(workdir)


def wait_for(path, process, seconds=120):
  deadline = time.monotonic() + seconds
  while not path.exists():
    assert process.poll() is None and time.monotonic() < deadline, f"{path} did not appear"
    time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(number, tmp_path, undisturbed):
  process = start(tmp_path)
  wait_for(tmp_path / "checkpoints" / "40", process)
  process.send_signal(number)
  status, text = finish(process)
  saved = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
  assert 40 <= saved < 400, "the signal came too late to test anything"
  if number == signal.SIGKILL:
    assert status == -signal.SIGKILL
  else:
    assert status == 0, text
    assert f"Stopped after step {saved}, saved in" in text
  status, text = finish(start(tmp_path))
  assert status == 0, text
  assert equal(last_state(tmp_path), undisturbed)


def test_a_second_ctrl_c_does_not_wait_for_a_save(tmp_path, undisturbed):
  with start(tmp_path, program=("-c", SLOW_SAVE)) as process:
    wait_for(tmp_path / "saving", process)
    process.send_signal(signal.SIGINT)
    assert any("stopping soon" in line for line in process.stderr)
    time.sleep(2)  # it now waits for the save
    process.send_signal(signal.SIGINT)
    try:
      _, text = process.communicate(timeout=60)
    finally:
      process.kill()
  assert process.returncode == 130 and "Traceback" not in text and text.endswith("jaxdiff: stopped.\n"), text
  assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()] == ["20"]
  status, text = finish(start(tmp_path))
  assert status == 0, text
  assert equal(last_state(tmp_path), undisturbed)


def test_a_full_disk_during_a_save_keeps_the_last_good_checkpoint(tmp_path):
  """RLIMIT_FSIZE stands in for a full disk: writes beyond it fail in the middle of a file.

  Logs and pictures are smaller than the limit, and the description of a checkpoint's arrays is larger.
  """
  assert finish(start(tmp_path, "--config.train.steps=20"))[0] == 0
  before = last_state(tmp_path)

  limit = ("bash", "-c", 'ulimit -f 32; exec "$@"', "bash")  # KiB
  status, text = finish(start(tmp_path, "--config.train.steps=40", "--allow_config_change", through=limit))
  assert status == 2 and not re.search("ERROR:|Exception in thread", text), text
  line = [line for line in text.splitlines() if line.startswith("jaxdiff: ")]
  assert (
    len(line) == 1 and "could not be saved" in line[0] and "The last good checkpoint is step 20" in line[0]
  ), text
  assert equal(last_state(tmp_path), before)
  status, text = finish(start(tmp_path, "--config.train.steps=40", "--allow_config_change"))
  assert status == 0 and last_state(tmp_path).step == 40, text
