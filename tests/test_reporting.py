from __future__ import annotations

import io
import json
import logging
import math
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxdiff import reporting
from jaxdiff.errors import UserError


@pytest.fixture
def fresh_logger():
  logger = logging.getLogger("jaxdiff")
  before = logger.handlers[:], logger.level, logger.propagate
  logger.handlers = []
  yield logger
  logger.handlers, logger.level, logger.propagate = before


def lines(path):
  def forbid(constant):
    raise AssertionError(f"{constant} is not JSON")

  return [json.loads(line, parse_constant=forbid) for line in path.read_text().splitlines()]


# The file of events becomes /dev/full, which refuses what is written to it as a full disk does.
FULL = """
import os, sys
import numpy as np
from jaxdiff import reporting
from jaxdiff.errors import UserError

def of_events(fd):
  return "/events." in os.path.realpath(f"/proc/self/fd/{fd}")

adds = {
  "scalars": lambda log, step: log.scalars(step, {str(number): 1.0 for number in range(100)}),
  "image": lambda log, step: log.image(step, "samples", np.zeros((4, 6, 3), np.uint8)),
}
for name, add in adds.items():
  try:
    with reporting.open_log(os.path.join(sys.argv[1], name)) as log:
      (file,) = filter(of_events, os.listdir("/proc/self/fd"))
      os.dup2(os.open("/dev/full", os.O_WRONLY), int(file))
      for step in range(100):
        add(log, step)
  except UserError as error:
    print(f"{name} {step}: {error}", file=sys.stderr)
"""


def events(workdir):
  """All TensorBoard events of a workdir, oldest file first."""
  from tensorboardX.proto.event_pb2 import Event

  found = []
  for path in sorted((workdir / "tensorboard").glob("events.*")):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack("<Q", data[:8])
      found.append(Event.FromString(data[12 : 12 + length]))
      data = data[16 + length :]
  return found


def test_log_writes_json_lines_and_tensorboard(tmp_path):
  with reporting.open_log(tmp_path) as log:
    log.scalars(10, {"loss": np.float32(0.5), "grad_norm": 2})
    log.scalars(20, {"loss": 0.25})
    assert lines(tmp_path / "metrics.jsonl")[-1] == {"step": 20, "loss": 0.25}  # readable while it runs
    log.image(20, "samples", np.zeros((4, 6, 3), np.uint8))
  log.close()
  assert lines(tmp_path / "metrics.jsonl")[0] == {"step": 10, "loss": 0.5, "grad_norm": 2.0}
  written = [(e.step, v.tag, v.WhichOneof("value")) for e in events(tmp_path) for v in e.summary.value]
  assert (20, "loss", "simple_value") in written
  assert (20, "samples", "image") in written


def test_events_are_records_that_tensorboard_reads(tmp_path):
  from tensorboardX.record_writer import RecordWriter

  with reporting.open_log(tmp_path) as log:
    log.scalars(10, {"loss": 0.5})
    log.image(10, "samples", np.zeros((40, 60, 3), np.uint8))
  (written,) = (tmp_path / "tensorboard").iterdir()
  known = RecordWriter(str(tmp_path / "known"))
  for event in events(tmp_path):
    known.write(event.SerializeToString())
  known.close()
  assert written.name.startswith("events.out.tfevents.")
  assert written.read_bytes() == (tmp_path / "known").read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_events_that_a_full_disk_refuses_are_told_at_once_in_one_line(tmp_path):
  done = subprocess.run(
    [sys.executable, "-X", "dev", "-W", "ignore", "-c", FULL, str(tmp_path)],
    env=os.environ | {"PYTHONPATH": os.getcwd()}, capture_output=True, text=True, timeout=240, check=False,
  )  # fmt: skip
  told = r"{0} 0: cannot write .*/{0}/tensorboard/events\..*: No space left on device\. Make room .*\n"
  assert re.fullmatch(told.format("scalars") + told.format("image"), done.stderr), done.stderr
  assert done.returncode == 0


def test_not_a_number_stays_valid_json(tmp_path):
  with reporting.open_log(tmp_path) as log:
    log.scalars(1, {"a": math.nan, "b": math.inf, "c": 1.0})
  assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, "a": None, "b": None, "c": 1.0}]
  (row,) = reporting.read_metrics(tmp_path / "metrics.jsonl")
  assert math.isnan(row["a"])


@pytest.mark.parametrize("tail", ["", '{"step": 40, "lo', "\0\0\0\0"])
def test_resuming_drops_what_lies_ahead(tmp_path, tail):
  with reporting.open_log(tmp_path) as log:
    for step in (10, 20, 30):
      log.scalars(step, {"loss": step})
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write(tail)  # what a kill left
  with reporting.open_log(tmp_path, resume_step=20) as log:
    log.scalars(30, {"loss": 300})
  assert [(row["step"], row["loss"]) for row in lines(tmp_path / "metrics.jsonl")] == [
    (10, 10),
    (20, 20),
    (30, 300),
  ]
  starts = [e.step for e in events(tmp_path) if e.WhichOneof("what") == "session_log"]
  assert starts == [0, 21]  # TensorBoard hides steps from 21 on of the files before


def test_a_fresh_run_starts_a_fresh_log(tmp_path):
  for _ in range(2):
    with reporting.open_log(tmp_path, resume_step=0) as log:
      log.scalars(0, {"loss": 1.0})
  assert len(lines(tmp_path / "metrics.jsonl")) == 1


def test_a_foreign_file_is_not_thrown_away(tmp_path):
  (tmp_path / "metrics.jsonl").write_text("my notes\nabout this run\n")
  with pytest.raises(UserError, match=r"line 1 of .*metrics\.jsonl"):
    reporting.open_log(tmp_path, resume_step=5)
  assert (tmp_path / "metrics.jsonl").read_text() == "my notes\nabout this run\n"


def test_disabled_log_leaves_no_trace(tmp_path):
  with reporting.open_log(tmp_path / "run", enabled=False) as log:
    log.scalars(1, {"loss": 1.0})
    log.image(1, "samples", np.zeros((2, 2, 3), np.uint8))
  assert not (tmp_path / "run").exists()


def test_workdir_that_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot write"):
    reporting.open_log(tmp_path / "file" / "run")


def test_logging_is_plain_and_quiets_the_libraries(fresh_logger, monkeypatch, caplog):
  monkeypatch.setattr(sys, "stderr", io.StringIO())
  reporting.setup_logging()
  reporting.setup_logging("info")
  fresh_logger.info("step %d", 3)
  fresh_logger.warning("slow disk")
  fresh_logger.debug("unseen")
  logging.getLogger("absl").error("what is raised as well")
  logging.getLogger("asyncio").error("Task exception was never retrieved: %s", "orbax/checkpoint/x.py")
  logging.getLogger("asyncio").error("another's task")
  assert sys.stderr.getvalue() == "step 3\nwarning: slow disk\n"
  assert not logging.getLogger("orbax").isEnabledFor(logging.INFO)
  of_libraries = [record.getMessage() for record in caplog.records if record.name != fresh_logger.name]
  assert of_libraries == ["another's task"]


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_bar_on_a_terminal(monkeypatch):
  monkeypatch.setattr(sys, "stderr", Terminal())
  monkeypatch.setenv("COLUMNS", "120")
  with reporting.progress(1500, 500) as bar:
    bar.show(loss=0.123456, grad_norm=1.5, images_per_s=12345.6)
    bar.update(250)
  last = sys.stderr.getvalue().strip().split("\r")[-1]
  assert last.startswith("train  50%|")
  for text in ("750/1500", "loss 0.1235", "grad_norm 1.5", "12,346 images/s"):
    assert text in last
  assert re.search(r"\d\d:\d\d left", last)


def test_plain_lines_elsewhere(monkeypatch, fresh_logger):
  now = [0.0]
  monkeypatch.setattr(reporting.time, "monotonic", lambda: now[0])
  monkeypatch.setattr(sys, "stderr", io.StringIO())
  reporting.setup_logging()
  with reporting.progress(1000, 100) as bar:
    for step in range(101, 1001):
      now[0] += 0.125
      bar.show(loss=1 / step)
      bar.update()
  told = sys.stderr.getvalue().splitlines()
  assert len(told) == 8  # 112.5 seconds, a line every 15 and one at the end
  assert told[0].startswith("train 220/1000")
  assert told[0].endswith("01:37 left")
  assert told[-1].startswith("train 1000/1000")
  assert told[-1].endswith("00:00 left")


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_disabled_progress_is_silent(monkeypatch, fresh_logger, stream):
  monkeypatch.setattr(sys, "stderr", stream())
  reporting.setup_logging()
  with reporting.progress(10, enabled=False) as bar:
    bar.show(loss=1.0)
    bar.update(10)
  assert not sys.stderr.getvalue()


def test_a_log_that_cannot_be_finished_is_told_but_never_instead_of_what_went_wrong_before(
  tmp_path, monkeypatch
):
  def full():
    raise OSError(28, "No space left on device")

  def spoilt():
    log = reporting.open_log(tmp_path)
    monkeypatch.setattr(log._events, "close", full)
    return log

  with pytest.raises(UserError, match="No space left"), spoilt():
    pass
  with pytest.raises(ValueError, match="the first"), spoilt():
    raise ValueError("the first")
