"""Goodput: the share of a run's wall time that goes into train steps, and what the rest of it goes into.

A train step is dispatched: its call returns while the device is still at work, so the host never sees how long one takes,
and waiting for it in order to see would leave the device idle. So what is timed is everything else, on the host, and the
steps are given what remains:

  start        config, data source and parameters, before the first step
  compile      the train step
  data         the loop waits for a batch and, when it comes, the device has nothing left to do
  checkpoint   restoring; copying the state for a save; at the end, the wait until it is written
  preview      drawing and scoring: the pictures, numbers and students that a run shows of itself
  step         the rest: the device computes, or the loop dispatches and logs

The loop waits for the newest step before it turns to a preview or a save, which need the step's state, so that steps still
under way are not counted as either. A wait for data during which queued steps go on costs nothing and is not counted; where
the device runs dry in it the whole wait is, the end of the last step included: with a slow source `data` is an upper bound.
Writing a checkpoint goes on in the background and costs what the save itself takes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

STEP = "step"


class Clock:
  """Wall seconds by what they were spent on; all that is not said is spent on steps."""

  def __init__(self, now: Callable[[], float] = time.monotonic):
    self._now, self._begin = now, now()
    self._spent: dict[str, float] = {}
    self._inner = 0.0  # seconds that contexts inside the one under way have counted

  @contextlib.contextmanager
  def spent(self, kind: str, only_if: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Counts the time in this context as `kind`, less what a context inside it counts for itself.

    With only_if it counts if that is true at the end.
    """
    begin, outer, self._inner = self._now(), self._inner, 0.0
    try:
      yield
    finally:
      own, inside = self._now() - begin - self._inner, self._inner
      counts = only_if()
      if counts:
        self._spent[kind] = self._spent.get(kind, 0.0) + own
      self._inner = outer + inside + (own if counts else 0.0)

  def seconds(self) -> dict[str, float]:
    """Seconds by kind since the clock was made, steps included: they add up to all of them."""
    total = self._now() - self._begin
    return {STEP: total - sum(self._spent.values()), **self._spent}

  def numbers(self) -> dict[str, float]:
    """What a log shows: `goodput`, a share from 0 to 1, and time/<kind> in seconds, all since the clock was made."""
    seconds = self.seconds()
    return {"goodput": share(seconds), **{f"time/{kind}": value for kind, value in seconds.items()}}

  def line(self) -> str:
    """The same for people, the largest part first."""
    seconds = self.seconds()
    others = sorted((kind for kind in seconds if kind != STEP), key=lambda kind: -seconds[kind])
    parts = [f"{kind} {seconds[kind]:.1f} s" for kind in (STEP, *others)]
    return f"Goodput {share(seconds):.1%} of {sum(seconds.values()):.1f} s: {', '.join(parts)}."


def share(seconds: dict[str, float]) -> float:
  """The steps' share of all seconds, from 0 to 1; 0 where none have passed."""
  total = sum(seconds.values())
  return seconds.get(STEP, 0.0) / total if total > 0 else 0.0
