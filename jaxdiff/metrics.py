"""Metrics of train steps: kept on the device until somebody looks.

A train step returns a dict of scalars that the device may not have computed yet. Reading one waits for it,
and a loop that reads one every step leaves the device idle while Python runs. So the loop pushes the
scalars into a window and collects their means once in a while:

  window.push(step, device_metrics)            # does not wait for it
  if step % log_every == 1:                    # the next step is already under way
    row = window.collect(until=step - 1)       # one fetch for the whole interval
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

RUN_AHEAD = 8  # steps the host may be ahead of the device: enough to never starve it, few enough to stop soon
MUST_BE_FINITE = ("loss", "grad_norm")
SKIPPED = "skipped"  # 1 for a step that has changed nothing


class Row(NamedTuple):
  """What a window has seen since it was last collected."""

  step: int  # the last step among them
  # name -> mean over the steps that reported it; over the good ones, if there are any
  means: dict[str, float]
  # those whose loss or gradient norm was NaN or infinite, and those that were skipped for another reason
  bad_steps: tuple[int, ...]
  # whether there are no others
  all_bad: bool = False


class BadSteps:
  """Counts the steps that were skipped."""

  def __init__(self, allowed: int, total: int = 0):
    self.total = total
    self._allowed, self._first, self._last = allowed, 0, -1  # of those in a row

  def add(self, steps: Iterable[int]) -> int | None:
    """Adds skipped steps in their order; returns the first of more than `allowed` in a row, where there are so many."""
    for step in steps:
      if step != self._last + 1:
        self._first = step
      self._last = step
      self.total += 1
      if step - self._first >= self._allowed:
        return self._first
    return None

  def includes(self, step: int) -> bool:
    """Whether the newest step, which this is, was skipped."""
    return step == self._last


class Window:
  """Collects the metrics of many steps without waiting for any, and fetches them together.

  `fetch` turns a list of metric dicts into the same list with host numbers; the default serves arrays that
  one process can read whole.
  """

  def __init__(self, fetch: Callable[[Any], Any] = jax.device_get):
    self._fetch = fetch
    self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []

  def push(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
    """Adds the metrics of one step, which stay on the device.

    Waits for the step RUN_AHEAD before this one, so that a stop does not have hundreds of steps queued before it.
    """
    self._pending.append((step, metrics))
    if len(self._pending) > RUN_AHEAD:
      # One of them is enough, as a program's results are ready together.
      jax.block_until_ready(next(iter(self._pending[-1 - RUN_AHEAD][1].values())))

  def is_over(self) -> bool:
    """Whether the device has done all that was pushed. Does not wait."""
    newest = self._pending[-1][1].values() if self._pending else ()
    arrays: list[Any] = [value for value in newest if isinstance(value, jax.Array)]
    return all(array.is_ready() for array in arrays)

  def collect(self, until: int | None = None) -> Row | None:
    """Means over all that was pushed since the last call (with `until`: up to that step), in one fetch.

    Waits for the last of those steps and no longer, so the device stays busy when a later step was pushed
    before the call. Returns None when there is nothing to report.
    """
    taken = [(step, metrics) for step, metrics in self._pending if until is None or step <= until]
    if not taken:
      return None
    self._pending = self._pending[len(taken) :]
    steps = [step for step, _ in taken]
    rows = [
      {name: float(value) for name, value in row.items()}
      for row in self._fetch([dict(metrics) for _, metrics in taken])
    ]
    # What the device says of itself, in a scalar of its own, is not one of the means.
    skipped = [row.pop(SKIPPED, 0.0) > 0 for row in rows]
    is_bad = [
      was_skipped or not all(math.isfinite(row[name]) for name in MUST_BE_FINITE if name in row)
      for was_skipped, row in zip(skipped, rows, strict=True)
    ]
    values: dict[str, list[float]] = {}
    for bad, row in zip(is_bad, rows, strict=True):
      for name, value in row.items() if not bad or all(is_bad) else ():
        values.setdefault(name, []).append(value)
    # Not math.fsum: it raises when infinities of both signs meet, and such a mean should just be NaN.
    means = {name: sum(column) / len(column) for name, column in values.items()}
    bad_steps = tuple(step for step, bad in zip(steps, is_bad, strict=True) if bad)
    return Row(steps[-1], means, bad_steps, all(is_bad))


class Stopwatch:
  """Steps per second between calls, without what was marked as a pause (drawing pictures, saving)."""

  def __init__(self, step: int):
    self._step, self._since = step, time.monotonic()

  def rate(self, step: int) -> float:
    """Steps per second since the last call, or since the start."""
    now = time.monotonic()
    rate = (step - self._step) / max(now - self._since, 1e-9)
    self._step, self._since = step, now
    return rate

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """The time spent in this context does not count."""
    begin = time.monotonic()
    yield
    self._since += time.monotonic() - begin
