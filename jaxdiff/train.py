"""The one training loop: every task, model and parallel strategy runs through it.

Order at the start: config and source are checked, the state is restored or made, the data stream starts where that
state stopped, the step is compiled. Order after a step: log, draw, save, stop.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxdiff import checkpoints, configuration, metrics, optim, parallel, reporting, sample, signals, summary, tasks
from jaxdiff.data import pipeline, sources
from jaxdiff.errors import UserError
from jaxdiff.files import write_atomically
from jaxdiff.train_step import make_train_step
from jaxdiff.types import Batch

logger = logging.getLogger("jaxdiff")


def train(config: Any, workdir: Path, allow_config_change: bool = False) -> None:
  """Trains what a config describes, in a workdir; a run that was stopped there goes on exactly where it stopped.

  Leaves there: config.json, metrics.jsonl, TensorBoard events, checkpoints/, samples/<step>.png, loss.png, denoising.png.
  Raises UserError for what the user can mend: config, data, disk, a loss that is not finite.
  """
  sample.check(config)
  checkpoints.prepare_workdir(workdir)
  source = sources.load(config.data.source, config.data.split, skip_unreadable=config.data.skip_unreadable)
  pipeline.check_labels(source, config.model.num_classes)
  t = config.train
  tx = optim.make_optimizer(config.optim, t.steps)
  task = tasks.make(config, tx)
  strategy = parallel.make(config.parallel, t.batch_size)
  run = {
    "config": config.to_dict(),
    "label_names": source.label_names,
    "data": pipeline.fingerprint(source, config.data, batch_size=t.batch_size, seed=config.seed),
  }

  with contextlib.closing(checkpoints.open_manager(workdir, t.keep_checkpoints, t.keep_every)) as manager:
    make_state = functools.partial(tasks.initial_state, config, task)
    checkpoints.check_same_run(manager, run, allow_config_change)
    restored = checkpoints.restore(manager, strategy.abstract(make_state))
    state = strategy.place_state(restored[0]) if restored else strategy.init(make_state)
    start = int(strategy.fetch(state.step))
    if start >= t.steps:
      logger.info("This run is complete: %d of %d steps (config.train.steps) in %s.", start, t.steps, workdir)
      return
    write_atomically(workdir / "config.json", lambda file: file.write(configuration.to_json(config).encode()))

    batches = _batches(source, config, strategy, start)
    batch = next(batches)
    lowered = strategy.lower(make_train_step(task, tx), state, batch)
    logger.info(summary.describe(config, strategy.fetch(state.params), lowered, len(source)))
    step = lowered.compile()
    preview = sample.make_preview(config, task, strategy.place_rows, source.label_names, workdir)
    window, watch = metrics.Window(), metrics.Stopwatch(start)

    with (
      signals.stop_request() as stop,
      reporting.open_log(workdir, resume_step=start, enabled=jax.process_index() == 0) as log,
      reporting.progress(t.steps, initial=start) as bar,
    ):
      for number in range(start + 1, t.steps + 1):
        state, measured = step(state, batch)
        window.push(number, measured)
        bar.update()
        last = number == t.steps or bool(stop)
        saves = last or number % t.checkpoint_every == 0
        if saves or number % t.log_every == 1 % t.log_every:
          # Between saves, only steps that are already over are read: the device has the newest one to do meanwhile.
          _report(window.collect(until=number if saves else number - 1), log, bar, watch, manager, t.batch_size)
        if (t.sample_every and number % t.sample_every == 0) or number == t.steps:
          with watch.paused():
            log.image(number, "samples", preview(strategy.fetch(state), number))
        if saves:
          with watch.paused():
            checkpoints.save(manager, number, strategy.fetch(state), run | {"examples": number * t.batch_size})
        if last:
          break
        batch = next(batches)
    checkpoints.finish(manager)
    if stop:
      logger.info("Stopped after step %d, saved in %s. The same command goes on from there.", number, workdir)
      return
    reporting.loss_curve(workdir / "metrics.jsonl", workdir / "loss.png")
    preview(strategy.fetch(state), number, film=True)
    logger.info("Done: %d steps. Samples, loss.png, denoising.png and checkpoints are in %s.", number, workdir)


def _batches(source: Any, config: Any, strategy: parallel.Strategy, start: int) -> Iterator[Batch]:
  """The run's batches from step `start` on, each already on its way to the devices."""
  stream = pipeline.stream(
    source,
    config.data,
    batch_size=config.train.batch_size,
    seed=config.seed,
    start=start,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  return pipeline.device_prefetch(stream, strategy.place_batch)


def _report(
  row: metrics.Row | None,
  log: reporting.Log,
  bar: reporting.Progress,
  watch: metrics.Stopwatch,
  manager: checkpoints.Manager,
  batch_size: int,
) -> None:
  """Shows and logs the means of a few steps.  Raises UserError when the loss or a gradient was not finite."""
  if row is None:
    return
  if row.first_bad_step is not None:
    checkpoints.finish(manager)
    good = manager.latest_step()
    kept = f"The last good checkpoint is step {good}" if good else "There was no checkpoint yet"
    raise UserError(
      f"the loss or its gradient is not finite at step {row.first_bad_step}. {kept}, in {manager.directory}. "
      "Try a lower config.optim.learning_rate, a longer config.optim.warmup_steps or config.optim.clip_norm=1."
    )
  rate = watch.rate(row.step) * batch_size
  log.scalars(row.step, row.means | {"images_per_s": rate})
  bar.show(loss=row.means["loss"], grad_norm=row.means["grad_norm"], images_per_s=rate)
