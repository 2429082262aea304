"""A watchdog: ends a run whose steps no longer end, so that whatever started it can start it again.

A collective that waits for a lost host, a driver that hangs, a file system that does not answer: the process lives, and
nothing happens any more. The watchdog knows how long steps have taken so far. When one takes many times as long, it writes
the stacks of all threads to stderr and ends the process with status 74. The last checkpoint stays, and the same command
goes on from it.

It needs Python to run in another thread: a C extension that hangs while it holds the interpreter's lock hangs it too.
"""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator

from jaxdiff.errors import Outage

STATUS = Outage.status
BLOCK = 8  # steps that are timed together: the loop dispatches some at once and waits for others
REMEMBERED = 50  # blocks whose median is taken
MEASURED = 3  # blocks before the median counts
UNMEASURED_SECONDS = 1800.0  # the limit until then, if it is more than the configured one
CHECKS = 20  # in the shortest limit
TELLING_SECONDS = 10.0  # for the stacks, if stderr itself is what hangs


class Watchdog:
  """How long steps take, and whether the one under way takes too long.

  A step may take `factor` times the median of this run's own steps, and `least` seconds at any rate; 0 for either of the
  two watches nothing.  The loop calls beat() and paused(), another thread check().
  """

  def __init__(self, factor: float, least: float, now: Callable[[], float] = time.monotonic):
    self._factor, self._least, self._now = factor, least, now
    self._blocks: collections.deque[float] = collections.deque(maxlen=REMEMBERED)
    self._is_full = False  # the queue of steps: after a pause the first are dispatched without a wait
    self._begin, self._in_block = now(), 0
    self._pauses = 0
    self._beats = 0  # and pauses, so that check() knows what has passed
    self._seen, self._waited = 0, 0.0  # of check() alone

  @property
  def is_on(self) -> bool:
    return self._factor > 0 and self._least > 0

  def beat(self) -> None:
    """A turn of the loop is over."""
    self._beats += 1
    self._in_block += 1
    if self._in_block == BLOCK:
      now = self._now()
      if self._is_full:
        self._blocks.append((now - self._begin) / BLOCK)
      self._is_full, self._begin, self._in_block = True, now, 0

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """What is done in this context may take as long as it likes."""
    self._pauses += 1
    try:
      yield
    finally:
      self._is_full, self._begin, self._in_block = False, self._now(), 0
      self._beats += 1
      self._pauses -= 1

  def median(self) -> float | None:
    """The median of this run's steps in seconds, None before there are enough."""
    blocks = list(self._blocks)
    return statistics.median(blocks) if len(blocks) >= MEASURED else None

  def limit(self) -> float:
    """Seconds that a step may take."""
    median = self.median()
    return max(self._least, UNMEASURED_SECONDS if median is None else self._factor * median)

  def interval(self) -> float:
    """Seconds between two checks: not by the limit, which is long until steps are measured."""
    return max(self._least / CHECKS, 0.01)

  def check(self, seconds: float) -> str | None:
    """`seconds` have passed since the last check: what is wrong, if the step under way takes too long."""
    if self._pauses or self._beats != self._seen:
      self._seen, self._waited = self._beats, 0.0
      return None
    self._waited += seconds
    limit, median = self.limit(), self.median()
    if self._waited <= limit:
      return None
    usual = "no step was measured yet" if median is None else f"the median is {median:.3g} s"
    return (
      f"a step has taken {self._waited:.0f} s; {usual}, the limit {limit:.0f} s (config.train.stall_factor="
      f"{self._factor:g}, config.train.stall_seconds={self._least:g}). Exit status {STATUS}: the same command goes on "
      "from the last checkpoint."
    )


@contextlib.contextmanager
def watching(dog: Watchdog, give_up: Callable[[str], None] | None = None) -> Iterator[None]:
  """Checks a watchdog in a thread of its own while this context lasts; calls give_up when a step takes too long."""
  if not dog.is_on:
    yield
    return
  over = threading.Event()
  thread = threading.Thread(
    target=_watch, args=(dog, over, give_up or exit_at_once), daemon=True, name="watchdog"
  )
  thread.start()
  try:
    yield
  finally:
    over.set()
    thread.join()


def _watch(dog: Watchdog, over: threading.Event, give_up: Callable[[str], None]) -> None:
  interval = dog.interval()
  while not over.wait(interval):
    # The seconds waited for, not those of a clock: a process that was suspended (Ctrl-Z) has not hung.
    if wrong := dog.check(interval):
      return give_up(wrong)
  return None


def exit_at_once(wrong: str) -> None:
  """Tells what is wrong, with the stacks of all threads, and ends the process with STATUS, whatever else hangs."""

  def tell() -> None:
    sys.stderr.write(f"\njaxdiff: {wrong}\n")
    sys.stderr.flush()
    faulthandler.dump_traceback(all_threads=True)

  teller = threading.Thread(target=tell, daemon=True)
  teller.start()
  teller.join(TELLING_SECONDS)
  os._exit(STATUS)
