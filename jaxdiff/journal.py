"""What a run's loop keeps of its steps: their numbers, the bad ones among them, the loss's spikes, and whether one hangs.

The loop says what it does, and the journal does the bookkeeping:

  state, measured = step(state, batch)
  journal.add(number, measured)       # does not wait for the step
  with journal.beside("preview"):     # whatever is no step
    ...
  journal.report()                    # shows and logs what was added
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxdiff import checkpoints, distributed, goodput, metrics, reporting, spikes, watchdog
from jaxdiff.errors import UserError
from jaxdiff.resume import Run

logger = logging.getLogger("jaxdiff")


class Journal:
  """The bookkeeping of a run from the step it goes on from; its log, bar and watchdog are held by `stack`."""

  def __init__(self, run: Run, config: Any, workdir: Path, clock: goodput.Clock, stack: contextlib.ExitStack):
    t, is_first = config.train, distributed.is_first()
    self._run, self._config, self._clock = run, config, clock
    self._window, self._watch = metrics.Window(), metrics.Stopwatch(run.step)
    self._bad = metrics.BadSteps(config.optim.max_bad_steps, run.kept.get("skipped", 0))
    self._detector = spikes.Detector(t.spike_factor, run.task.stages, run.kept.get("windows", ()))
    self._dog = watchdog.Watchdog(t.stall_factor, t.stall_seconds)
    self._bar = stack.enter_context(reporting.progress(t.steps, initial=run.step, enabled=is_first))
    self.log = stack.enter_context(reporting.open_log(workdir, resume_step=run.step, enabled=is_first))
    stack.enter_context(watchdog.watching(self._dog))

  def add(self, number: int, measured: Mapping[str, jax.Array]) -> None:
    """Step `number` was dispatched, and will have measured this."""
    self._window.push(number, measured)
    self._bar.update()

  @contextlib.contextmanager
  def waiting_for_data(self) -> Iterator[None]:
    """In this context the next batch is fetched; it ends a turn of the loop."""
    with self._clock.spent("data", only_if=self._window.is_over):
      yield
    self._dog.beat()

  @contextlib.contextmanager
  def beside(self, kind: str) -> Iterator[None]:
    """What is done in this context is no step: it is timed by itself, and may take long."""
    with self._clock.spent(kind), self._watch.paused(), self._dog.paused():
      yield

  def is_bad(self, number: int) -> bool:
    """Whether the newest step reported, which this is, was bad: not finite, or skipped."""
    return self._bad.includes(number)

  def record(self) -> dict[str, Any]:
    """What a checkpoint keeps of it."""
    return {"skipped": self._bad.total, "windows": self._detector.windows}

  def report(self, until: int | None = None) -> None:
    """Shows and logs the means of the steps added since the last call, up to `until`; waits for the last of them.

    Raises UserError when too many in a row were bad, and a Spike of the loss in all processes.
    """
    row = self._window.collect(until)
    if row is None:
      return
    first = self._bad.add(row.bad_steps)
    if first is not None:
      raise self._lost(first)
    if row.bad_steps:
      logger.warning("Skipped, as %s: step %s.", _why(self._config), ", ".join(map(str, row.bad_steps)))
    # Steps that were skipped have changed nothing: what they lost says nothing of the state.
    spike = None if row.all_bad else self._detector.add(row.step, row.means["loss"])
    if spike:  # in all processes: means are those of the global batch
      checkpoints.finish(self._run.manager)
      raise spike
    self._show(row)

  def _show(self, row: metrics.Row) -> None:
    rate = self._watch.rate(row.step) * self._config.train.batch_size
    skipped, times = {"skipped": self._bad.total}, self._run.rollbacks.times
    undone = {"rollbacks": times} if times else {}
    self.log.scalars(row.step, row.means | skipped | undone | {"images_per_s": rate} | self._clock.numbers())
    others = {name: mean for name, mean in row.means.items() if name != "learning_rate" and "/" not in name}
    told = {"loss": row.means["loss"]} | others | (skipped if self._bad.total else {})
    self._bar.show(**told, images_per_s=rate)

  def _lost(self, step: int) -> UserError:
    """The UserError for a run of which one step after the other is bad, from `step` on."""
    manager = self._run.manager
    checkpoints.finish(manager)
    good, allowed = manager.latest_step(), self._config.optim.max_bad_steps
    kept = f"The last good checkpoint is step {good}" if good else "There was no checkpoint yet"
    after = "was the step" if allowed == 1 else f"were the {allowed} steps"
    others = f" So {after} after it (config.optim.max_bad_steps={allowed})." if allowed else ""
    return UserError(
      f"{_why(self._config)} at step {step}. {kept}, in {manager.directory}.{others} "
      "Try a lower config.optim.learning_rate, a longer config.optim.warmup_steps or config.optim.clip_norm=1."
    )


def _why(config: Any) -> str:
  large = config.optim.skip_norm
  return f"the loss or its gradient is not finite{f', or its norm above config.optim.skip_norm={large:g},' * bool(large)}"
