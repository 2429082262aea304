"""What a run tells: messages, a progress bar, metrics.jsonl and TensorBoard events.

Nothing here touches the device; numbers come in as Python floats (see metrics.Window).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import tqdm

from jaxdiff.errors import UserError
from jaxdiff.files import write_atomically, writing

logger = logging.getLogger("jaxdiff")

CHATTY = ("orbax", "grain", "jax", "jaxlib", "tensorflow_datasets", "matplotlib", "PIL")
PLAIN_LINE_SECONDS = 15  # how often progress is told where no bar can be drawn


# Messages


class _AboveTheBar:
  """A stream to stderr that does not tear a progress bar apart."""

  def write(self, text: str) -> None:
    tqdm.tqdm.write(text, file=sys.stderr, end="")

  def flush(self) -> None:
    sys.stderr.flush()


class _LineFormatter(logging.Formatter):
  """The message, marked if it is a warning. (An error is the program's last line and says what it is.)"""

  def __init__(self, speaker: str = ""):
    super().__init__()
    self._speaker = speaker

  def format(self, record: logging.LogRecord) -> str:
    text = self._speaker + super().format(record)
    return f"warning: {text}" if record.levelno == logging.WARNING else text


def setup_logging(verbosity: int | str = logging.INFO, speaker: str = "") -> None:
  """Sends the "jaxdiff" logger's messages to stderr as plain lines, and quiets the libraries below it.

  Each begins with `speaker`, who says it where several do.  Safe to call again: it replaces its own handler.
  """
  handler = logging.StreamHandler(_AboveTheBar())
  handler.setFormatter(_LineFormatter(speaker))
  for old in [h for h in logger.handlers if isinstance(h.formatter, _LineFormatter)]:
    logger.removeHandler(old)
  logger.addHandler(handler)
  logger.setLevel(verbosity.upper() if isinstance(verbosity, str) else verbosity)
  logger.propagate = False  # absl puts a handler of its own on the root logger
  for name in CHATTY:
    logging.getLogger(name).setLevel(logging.WARNING)
  # There Orbax warns of what was asked for, a manager that only reads, and shows the traceback of each error that it raises.
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  logging.getLogger("asyncio").addFilter(_is_not_orbax)


def _is_not_orbax(record: logging.LogRecord) -> bool:
  """False for the writes of a save that has failed, of which Orbax raises but one."""
  return "orbax" not in record.getMessage()


# The progress bar


class Progress:
  """A progress bar on a terminal; elsewhere (a file, a cluster's log) a plain line now and then."""

  def __init__(self, total: int, initial: int = 0, desc: str = "train", enabled: bool = True):
    self._total, self._count, self._desc, self._enabled = total, initial, desc, enabled
    self._numbers = ""
    self._told_count, self._told_at = initial, time.monotonic()
    self._begin_count, self._begin_at = self._told_count, self._told_at
    self._bar = None
    if enabled and sys.stderr.isatty() and logger.isEnabledFor(logging.INFO):
      self._bar = tqdm.tqdm(
        total=total,
        initial=initial,
        file=sys.stderr,
        dynamic_ncols=True,
        smoothing=0.1,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}  {remaining} left",
        desc=desc,
      )

  def update(self, n: int = 1) -> None:
    """Counts n more steps as done."""
    self._count += n
    if self._bar is not None:
      self._bar.update(n)
    elif time.monotonic() - self._told_at >= PLAIN_LINE_SECONDS:
      self._tell()

  def show(self, **values: float) -> None:
    """Sets the numbers beside the bar, in this order: show(loss=..., grad_norm=..., images_per_s=...)."""
    self._numbers = "  ".join(_shown(name, value) for name, value in values.items())
    if self._bar is not None:
      self._bar.set_postfix_str(self._numbers)

  def close(self) -> None:
    """Leaves the last state on the screen."""
    if self._bar is not None:
      self._bar.close()
    elif self._count > self._told_count:
      self._tell()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc_info: object) -> None:
    self.close()

  def _tell(self) -> None:
    if not self._enabled:
      return
    now, left = time.monotonic(), "?"
    if self._count > self._begin_count:
      # Over all of the run: a pause for pictures comes again and is part of what is left.
      pace = (now - self._begin_at) / (self._count - self._begin_count)
      left = tqdm.tqdm.format_interval((self._total - self._count) * pace)
    self._told_count, self._told_at = self._count, now
    parts = [f"{self._desc} {self._count}/{self._total}", self._numbers, f"{left} left"]
    logger.info("  ".join(part for part in parts if part))


def progress(total: int, initial: int = 0, desc: str = "train", enabled: bool = True) -> Progress:
  """A bar over `total` steps of which `initial` are already done; silent unless `enabled`."""
  return Progress(total, initial, desc, enabled)


def _shown(name: str, value: float) -> str:
  if name.endswith("_per_s"):
    return f"{value:,.{0 if value >= 100 else 1}f} {name.removesuffix('_per_s')}/s"
  return f"{name} {value}" if isinstance(value, int) else f"{name} {value:.4g}"


# metrics.jsonl and TensorBoard


class Shown(NamedTuple):
  """What a run shows of itself: pictures u8[H,W,3] and numbers, by name."""

  pictures: Mapping[str, np.ndarray]
  numbers: Mapping[str, float]


class _Events:
  """A file of TensorBoard events, each written where it is added: what fails is raised there.

  tensorboardX's own writer leaves writing to a thread.  Where that fails nobody is told, and soon its queue is full for good.
  """

  def __init__(self, folder: Path, suffix: str):
    folder.mkdir(exist_ok=True)
    self.path = folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}{suffix}"
    # Without a buffer, as closing would once more write what a full disk has refused.
    self._file = self.path.open("wb", buffering=0)

  def add(self, step: int, **what: Any) -> None:
    """Adds an event; `what` is a field of its message."""
    from tensorboardX.proto.event_pb2 import Event

    event = Event(wall_time=time.time(), step=int(step), **what)
    left = memoryview(_record(event.SerializeToString()))
    while left:
      left = left[self._file.write(left) :]

  def close(self) -> None:
    self._file.close()


def _record(data: bytes) -> bytes:
  """Bytes as a record of a file of TensorBoard's: their length, then themselves, each followed by its checksum."""
  from tensorboardX.record_writer import masked_crc32c

  parts = struct.pack("<Q", len(data)), data
  return b"".join(part + struct.pack("<I", masked_crc32c(part)) for part in parts)


class Log:
  """Where a run's numbers and pictures go: metrics.jsonl and TensorBoard events in its workdir.

  Each line of metrics.jsonl is {"step": ..., name: number or null, ...}; null stands for NaN and infinity,
  which JSON does not have. Disabled (as in all processes but the first), every method does nothing.
  """

  def __init__(self, workdir: str | os.PathLike[str], *, resume_step: int = 0, enabled: bool = True):
    self._lines = None
    self._events = None
    if not enabled:
      return
    from tensorboardX.proto.event_pb2 import SessionLog

    self._path = Path(workdir) / "metrics.jsonl"
    with writing(self._path):
      self._path.parent.mkdir(parents=True, exist_ok=True)
      _forget_after(self._path, resume_step)
      self._lines = self._path.open("a", encoding="utf-8")
    folder = self._path.parent / "tensorboard"
    with writing(folder):
      self._events = _Events(folder, f".{resume_step}")  # files of one second would have one name
      self._events.add(0, file_version="brain.Event:2")
      # TensorBoard hides what an earlier try logged at this step and later.
      first = resume_step + 1 if resume_step else 0
      self._events.add(first, session_log=SessionLog(status=SessionLog.START))

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Appends one line, and a TensorBoard scalar for each value."""
    if self._lines is None or self._events is None:
      return
    from tensorboardX import summary

    row = {name: float(value) for name, value in values.items()}
    finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
    with writing(self._path):
      self._lines.write(json.dumps({"step": int(step), **finite}, allow_nan=False) + "\n")
      self._lines.flush()
    with writing(self._events.path):
      for name, value in row.items():
        if math.isfinite(value):
          self._events.add(step, summary=summary.scalar(name, value))

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    """Adds a u8[H,W,3] picture to TensorBoard."""
    if self._events is None:
      return
    from tensorboardX import summary

    with writing(self._events.path):
      self._events.add(step, summary=summary.image(name, np.asarray(image), dataformats="HWC"))

  def show(self, step: int, shown: Shown) -> None:
    """Adds pictures and numbers."""
    for name, picture in shown.pictures.items():
      self.image(step, name, picture)
    if shown.numbers:
      self.scalars(step, shown.numbers)

  def close(self) -> None:
    """Flushes and closes; more than once is fine.  Raises UserError where what is left cannot be written."""
    lines, events = self._lines, self._events
    self._lines = self._events = None
    if lines is None:
      return
    with writing(self._path), contextlib.ExitStack() as stack:
      stack.callback(lines.close)
      if events is not None:
        stack.callback(events.close)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
    try:
      self.close()
    except UserError:
      if error is None:  # otherwise what went wrong first says more
        raise


def open_log(workdir: str | os.PathLike[str], *, resume_step: int = 0, enabled: bool = True) -> Log:
  """Opens a run's log for steps after `resume_step`; what an earlier try logged beyond it is dropped."""
  return Log(workdir, resume_step=resume_step, enabled=enabled)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, float]]:
  """The rows of a metrics.jsonl, null read as NaN; a last line cut short by a kill is left out."""
  return [
    {name: math.nan if value is None else value for name, value in row.items()}
    for row, _ in _rows(Path(path))
  ]


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
  """Rows and their lines. Only the last line may be broken: anything else was not written by a Log."""
  lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
      if not isinstance(row, dict) or "step" not in row:
        raise ValueError("no step")
    except ValueError as error:
      if number == len(lines):
        return
      raise UserError(
        f"line {number} of {path} is not a metrics row. Move the file away, or mend it."
      ) from error
    yield row, line


def _forget_after(path: Path, step: int) -> None:
  """Drops the rows after `step` (all of them for a fresh run at step 0) by replacing the file as a whole."""
  if not path.exists():
    return
  kept = [line.rstrip("\n") + "\n" for row, line in _rows(path) if step and row["step"] <= step]
  write_atomically(path, lambda file: file.write("".join(kept).encode()))
