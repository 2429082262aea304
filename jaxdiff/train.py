"""The one training loop: every task, model and parallel strategy runs through it.

Order at the start: config and source are checked, the state is restored or made, the data stream starts where that
state stopped, the step is compiled. Order after a step: log, show, advance to the next stage, save, stop.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxdiff import (
  checkpoints,
  configuration,
  data,
  distributed,
  flops,
  goodput,
  locks,
  metrics,
  optim,
  parallel,
  plots,
  previews,
  profiling,
  reporting,
  signals,
  spikes,
  starts,
  summary,
  tasks,
  watchdog,
)
from jaxdiff.errors import UserError
from jaxdiff.files import write_atomically
from jaxdiff.train_step import TrainStep, check_microbatches, make_train_step
from jaxdiff.types import Batch

logger = logging.getLogger("jaxdiff")


UNSHOWN = "unshown"  # a file in the workdir: the step whose pictures and numbers a signal has cut short


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
        undo = functools.partial(spikes.roll_back, spike, workdir, config.train.max_rollbacks)
      distributed.by_first(undo)


def _train(
  config: Any, workdir: Path, allow_config_change: bool, clock: goodput.Clock, stop: signals.StopRequest
) -> signal.Signals | None:
  """As train, up to the first spike of the loss, which it raises in all processes."""
  t, is_first = config.train, distributed.is_first()
  with contextlib.ExitStack() as stack:
    with clock.spent("start"):
      distributed.by_first(lambda: checkpoints.prepare_workdir(workdir))
      distributed.check_shared(workdir)
      source = data.load(config.data.source, config.data.split, skip_unreadable=config.data.skip_unreadable)
      data.check_labels(source, config.model.num_classes)
      tx = optim.make_optimizer(config.optim, *tasks.stages(config))
      task = tasks.make(config, tx)
      strategy = parallel.make(config.parallel, t.batch_size)
      check_microbatches(t.microbatches, t.batch_size, jax.device_count())
      preview = previews.make(config, task, strategy, source, workdir)
      run = _record(config, source)
      distributed.by_first(lambda: stack.enter_context(locks.hold(workdir)))
      manager = checkpoints.open_manager(workdir, t.keep_checkpoints, t.keep_every)
      stack.enter_context(checkpoints.closing(manager))
      checkpoints.check_same_run(manager, run, allow_config_change)
      make_state = functools.partial(tasks.initial_state, config, task)
      with clock.spent("checkpoint"):
        restored = checkpoints.restore(manager, strategy.abstract(make_state))
      state = strategy.place_state(restored[0]) if restored else starts.fresh_state(config, task, strategy)
      start = int(strategy.fetch(state.step))
      shows_again = distributed.by_first(lambda: _unshown(workdir)) == start
      if start >= t.steps and not shows_again:
        logger.info(
          "This run is complete: %d of %d steps (config.train.steps) in %s.", start, t.steps, workdir
        )
        return None
      if is_first:
        text = configuration.to_json(config).encode()
        write_atomically(workdir / "config.json", lambda file: file.write(text))
      rollbacks = spikes.of_json(distributed.by_first(lambda: spikes.resume(workdir, start)))
      ahead = rollbacks.at(start)
      batches = stack.enter_context(contextlib.closing(_batches(source, config, strategy, start + ahead)))
      batch = next(batches)
    if _stops_early(stop):
      return stop.signal
    with clock.spent("compile"):
      made = make_train_step(task, tx, config.optim.skip_norm, t.microbatches)
      step = _compile(made, state, batch, strategy, config, len(source))
    window, watch = metrics.Window(), metrics.Stopwatch(start)
    kept = restored[1] if restored else {}
    bad = metrics.BadSteps(config.optim.max_bad_steps, kept.get("skipped", 0))
    detector = spikes.Detector(t.spike_factor, task.stages, kept.get("windows", ()))
    dog = watchdog.Watchdog(t.stall_factor, t.stall_seconds)

    @contextlib.contextmanager
    def beside(kind: str) -> Iterator[None]:
      """What is done in this context is no step: it is timed by itself, and may take long."""
      with clock.spent(kind), watch.paused(), dog.paused():
        yield

    log = stack.enter_context(reporting.open_log(workdir, resume_step=start, enabled=is_first))
    bar = stack.enter_context(reporting.progress(t.steps, initial=start, enabled=is_first))
    stack.enter_context(watchdog.watching(dog))
    report = functools.partial(
      _report, log, bar, watch, clock, bad, detector, rollbacks.times, manager, config
    )
    show = functools.partial(_show, preview, strategy, log, stop, workdir)
    if shows_again and not stop:
      with beside("preview"):
        show(start, state)
    if _stops_early(stop):
      return stop.signal
    number, was_shown = start, True
    step = stack.enter_context(profiling.traced(step, config.profile, workdir, start))
    for number in range(start + 1, t.steps + 1):
      state, measured = step(state, batch)
      window.push(number, measured)
      bar.update()
      with clock.spent("data", only_if=window.is_over):
        batch = next(batches)
      dog.beat()
      ends = stop.reached() or number == t.steps
      saves = ends or number % t.checkpoint_every == 0 or number in task.stages
      shows = preview.due(number)
      if saves or shows:
        report(window.collect())
      elif number % t.log_every == 1 % t.log_every:
        # Only steps that are over are read: the device has the newest one to do meanwhile.
        report(window.collect(until=number - 1))
      if shows:
        with beside("preview"):
          was_shown = show(number, state, may_be_cut=number not in task.stages)
        ends, saves = ends or not was_shown, saves or not was_shown
      if number in task.stages:
        with beside("compile"):
          state = strategy.advance(task.advance, state)
      # Not after a bad step: where all are bad, the saves of a lost run would drive out those of a good one.
      if saves and (ends or not bad.includes(number)):
        with beside("checkpoint"):
          position = {"examples": (number + ahead) * t.batch_size, "skipped": bad.total}
          windows = {"windows": detector.windows}
          checkpoints.save(manager, number, strategy.fetch(state), run | position | windows)
      if ends:  # as decided above: a signal that has come since is served after the next step
        break
    with beside("checkpoint"):
      checkpoints.finish(manager)

  logger.info("%s", clock.line())
  if number < t.steps or not was_shown:
    logger.info("Stopped after step %d, saved in %s. The same command goes on from there.", number, workdir)
    return stop.signal
  if is_first:
    plots.loss_curve(workdir / "metrics.jsonl", workdir / "loss.png")
  logger.info("Done: %d steps. Pictures, loss.png and checkpoints are in %s.", number, workdir)
  return None


def _record(config: Any, source: data.Source) -> dict[str, Any]:
  """What a checkpoint says of its run beside the state: plain JSON values."""
  return {
    "config": config.to_dict(),
    "label_names": list(source.label_names),
    "data": data.fingerprint(source, config.data, batch_size=config.train.batch_size, seed=config.seed),
  }


def _compile(
  train_step: TrainStep, state: Any, batch: Batch, strategy: parallel.Strategy, config: Any, num_examples: int
) -> Callable[..., Any]:
  """The compiled step; tells what the run is and how long compiling took."""
  lowered = strategy.lower(train_step, state, batch)
  counted = flops.count(lowered, train_step, state, batch)
  logger.info(summary.describe(config, strategy.fetch(state.params), counted, num_examples))
  begin = time.monotonic()
  compiled = lowered.compile()
  logger.info("Compiled in %.1f s.", time.monotonic() - begin)
  return compiled


def _batches(
  source: data.Source, config: Any, strategy: parallel.Strategy, start: int
) -> Generator[Batch, None, None]:
  """The run's batches from number `start` on, each already on its way to the devices."""
  stream = data.stream(
    source,
    config.data,
    batch_size=config.train.batch_size,
    seed=config.seed,
    start=start,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  return data.device_prefetch(stream, strategy.place_batch)


def _stops_early(stop: signals.StopRequest) -> bool:
  """Whether a signal came before the first step."""
  if not stop.reached():
    return False
  logger.info("Stopped before a step was taken: nothing is lost. The same command starts again.")
  return True


def _show(
  preview: previews.Preview,
  strategy: parallel.Strategy,
  log: reporting.Log,
  stop: signals.StopRequest,
  workdir: Path,
  number: int,
  state: Any,
  may_be_cut: bool = True,
) -> bool:
  """Shows what is due after step `number`.  False where a signal has cut it short: a run that goes on from here shows it then.

  What a stage leaves (its student) is never cut short: once the state has advanced it could not be made again.
  """
  try:
    with stop.interrupts() if may_be_cut else contextlib.nullcontext():
      shown = preview.show(strategy.fetch(state), number)
  except signals.Stopped:
    if distributed.is_first():
      write_atomically(workdir / UNSHOWN, lambda file: file.write(str(number).encode()))
    return False
  log.show(number, shown)
  if distributed.is_first():
    (workdir / UNSHOWN).unlink(missing_ok=True)
  return True


def _unshown(workdir: Path) -> int | None:
  """The step after which a signal has cut short what is shown, if that is still to be done."""
  try:
    return int((workdir / UNSHOWN).read_text())
  except (OSError, ValueError):
    return None


def _report(
  log: reporting.Log,
  bar: reporting.Progress,
  watch: metrics.Stopwatch,
  clock: goodput.Clock,
  bad: metrics.BadSteps,
  detector: spikes.Detector,
  rollbacks: int,
  manager: checkpoints.Manager,
  config: Any,
  row: metrics.Row | None,
) -> None:
  """Shows and logs the means of a few steps.  Raises UserError when too many in a row were bad, and a Spike of the loss."""
  if row is None:
    return
  first = bad.add(row.bad_steps)
  if first is not None:
    raise _lost(first, manager, config)
  if row.bad_steps:
    logger.warning("Skipped, as %s: step %s.", _why(config), ", ".join(map(str, row.bad_steps)))
  spike = detector.add(row.step, row.means["loss"])
  if spike:  # in all processes: means are those of the global batch
    checkpoints.finish(manager)
    raise spike
  rate = watch.rate(row.step) * config.train.batch_size
  skipped = {"skipped": bad.total}
  undone = {"rollbacks": rollbacks} if rollbacks else {}
  log.scalars(row.step, row.means | skipped | undone | {"images_per_s": rate} | clock.numbers())
  others = {name: mean for name, mean in row.means.items() if name != "learning_rate" and "/" not in name}
  bar.show(**{"loss": row.means["loss"]} | others | (skipped if bad.total else {}), images_per_s=rate)


def _lost(step: int, manager: checkpoints.Manager, config: Any) -> UserError:
  """The UserError for a run of which one step after the other is bad, from `step` on."""
  checkpoints.finish(manager)
  good, allowed = manager.latest_step(), config.optim.max_bad_steps
  kept = f"The last good checkpoint is step {good}" if good else "There was no checkpoint yet"
  after = "was the step" if allowed == 1 else f"were the {allowed} steps"
  others = f" So {after} after it (config.optim.max_bad_steps={allowed})." if allowed else ""
  return UserError(
    f"{_why(config)} at step {step}. {kept}, in {manager.directory}.{others} "
    "Try a lower config.optim.learning_rate, a longer config.optim.warmup_steps or config.optim.clip_norm=1."
  )


def _why(config: Any) -> str:
  large = config.optim.skip_norm
  return f"the loss or its gradient is not finite{f', or its norm above config.optim.skip_norm={large:g},' * bool(large)}"
