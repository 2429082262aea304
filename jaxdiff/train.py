"""The one training loop: every task, model and parallel strategy runs through it.

At the start the run is opened (resume.py) and its step compiled. Order after a step: report (journal.py), save, show, stop: a step
that is saved is not lost by what fails while it is shown. Where a stage ends: report, show, advance to the next stage, save.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxdiff import (
  checkpoints,
  distributed,
  flops,
  goodput,
  parallel,
  plan,
  plots,
  profiling,
  signals,
  spikes,
  stores,
  summary,
)
from jaxdiff.files import write_atomically
from jaxdiff.journal import Journal
from jaxdiff.resume import UNSHOWN, Run, open_run
from jaxdiff.train_step import TrainStep
from jaxdiff.types import Batch

logger = logging.getLogger("jaxdiff")


def train(config: Any, workdir: Path, allow_config_change: bool = False) -> signal.Signals | None:
  """Trains what a config describes, in a workdir; a run that was stopped there goes on exactly where it stopped.

  Returns the signal that has stopped it before its end, if one has.

  Leaves there: config.json, metrics.jsonl, TensorBoard events, checkpoints/, loss.png and the task's pictures.
  Raises UserError for what the user can mend: config, data, disk, a loss that is not finite.
  """
  clock = goodput.Clock()
  with signals.stop_request() as stop:
    while True:
      try:
        return _train(config, workdir, allow_config_change, clock, stop)
      except spikes.Spike as spike:
        # Its traceback would keep the state of this pass on the devices during the next.
        lean, store = spike.with_traceback(None), stores.of(config, workdir)
        undo = functools.partial(spikes.roll_back, lean, workdir, store, config.train.max_rollbacks)
      distributed.by_first(undo)


def _train(
  config: Any, workdir: Path, allow_config_change: bool, clock: goodput.Clock, stop: signals.StopRequest
) -> signal.Signals | None:
  """As train, up to the first spike of the loss, which it raises in all processes."""
  t = config.train
  with contextlib.ExitStack() as stack:
    with clock.spent("start"):
      run = open_run(config, workdir, allow_config_change, clock, stack)
      if run is None:
        return None
      batch = next(run.batches)
    if _stops_early(stop):
      return stop.signal
    task, state = run.task, run.state
    with clock.spent("compile"):
      step = _compile(run.train_step, state, batch, run.strategy, config, run.num_examples)
    journal = Journal(run, config, workdir, clock, stack)
    show = functools.partial(_show, run, journal, stop, workdir)
    save = functools.partial(_save, run, journal)
    if run.unshown and not stop:
      show(run.step, state)
    if _stops_early(stop):
      return stop.signal
    number, was_shown = run.step, True
    step = stack.enter_context(profiling.traced(step, config.profile, workdir, run.step))
    for number in range(run.step + 1, t.steps + 1):
      state, measured = step(state, batch)
      journal.add(number, measured)
      with journal.waiting_for_data():
        batch = next(run.batches)
      ends, is_stage = stop.reached() or number == t.steps, number in task.stages
      saves = ends or number % t.checkpoint_every == 0 or is_stage
      shows = run.preview.due(number)
      if saves or shows:
        journal.report()
      elif number % t.log_every == 1 % t.log_every:
        # Only steps that are over are read: the device has the newest one to do meanwhile.
        journal.report(until=number - 1)
      # Not after a bad step: where all are bad, the saves of a lost run would drive out those of a good one.
      saves = saves and (ends or not journal.is_bad(number))
      if saves and not is_stage:
        save(number, state)
      if shows:
        was_shown = show(number, state, may_be_cut=not is_stage)
      if is_stage:
        with journal.beside("compile"):
          state = run.strategy.advance(task.advance, state)
      if (saves and is_stage) or not was_shown:
        save(number, state)
      # As decided above: a signal that has come since is served after the next step.
      if ends or not was_shown:
        break
    with journal.beside("checkpoint"):
      checkpoints.finish(run.manager)

  logger.info("%s", clock.line())
  store = t.checkpoint_dir or workdir
  if number < t.steps or not was_shown:
    logger.info("Stopped after step %d, saved in %s. The same command goes on from there.", number, store)
    return stop.signal
  if distributed.is_first():
    plots.loss_curve(workdir / "metrics.jsonl", workdir / "loss.png")
  where = " and ".join(dict.fromkeys(map(str, (workdir, store))))
  logger.info("Done: %d steps. Pictures, loss.png and checkpoints are in %s.", number, where)
  return None


def _compile(
  train_step: TrainStep, state: Any, batch: Batch, strategy: parallel.Strategy, config: Any, num_examples: int
) -> Callable[..., Any]:
  """The compiled step; tells what the run is and how long compiling took."""
  lowered = strategy.lower(train_step, state, batch)
  counted = _flops(lowered, config)
  logger.info(summary.describe(config, strategy.fetch(state.params), counted, num_examples))
  begin = time.monotonic()
  compiled = lowered.compile()
  logger.info("Compiled in %.1f s.", time.monotonic() - begin)
  return compiled


def _flops(lowered: jax.stages.Lowered, config: Any) -> float | None:
  """FLOPs of a train step; where the devices' compiler does not count, as those of GPUs and TPUs, those that a plan has."""
  one_turn = flops.counted(lowered)  # of the loop over microbatches
  return one_turn * config.train.microbatches if one_turn else plan.step_flops(config)


def _stops_early(stop: signals.StopRequest) -> bool:
  """Whether a signal came before the first step."""
  if not stop.reached():
    return False
  logger.info("Stopped before a step was taken: nothing is lost. The same command starts again.")
  return True


def _save(run: Run, journal: Journal, number: int, state: Any) -> None:
  """Starts saving the state after step `number`; does nothing where it is saved."""
  with journal.beside("checkpoint"):
    record = run.record_at(number) | journal.record()
    checkpoints.save(run.manager, number, run.strategy.fetch(state), record)


def _show(
  run: Run,
  journal: Journal,
  stop: signals.StopRequest,
  workdir: Path,
  number: int,
  state: Any,
  may_be_cut: bool = True,
) -> bool:
  """Shows what is due after step `number`.  False where a signal has cut it short.

  A run that goes on from here shows it then, also where this has failed.  What a stage leaves (its student) is never cut short:
  once the state has advanced it could not be made again.
  """
  mark = workdir / UNSHOWN
  if distributed.is_several():
    # Where one fails they do not wait for a save under way; and a student's would meet its barriers.
    with journal.beside("checkpoint"):
      checkpoints.finish(run.manager)
  distributed.by_first(lambda: write_atomically(mark, lambda file: file.write(str(number).encode())))
  with journal.beside("preview"):
    try:
      with stop.interrupts() if may_be_cut else contextlib.nullcontext():
        shown = run.preview.show(run.strategy.fetch(state), number)
    except signals.Stopped:
      return False
    journal.log.show(number, shown)
  if distributed.is_first():
    mark.unlink(missing_ok=True)
  return True
