"""A run at the step where it begins or goes on: all that the loop needs, checked and ready.

Order: config and source are checked, the workdir is locked, the state is restored or made, the data start where it stopped.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdiff import (
  checkpoints,
  configuration,
  data,
  distributed,
  exported,
  goodput,
  locks,
  parallel,
  previews,
  runs,
  spikes,
  starts,
  stores,
  tasks,
)
from jaxdiff.errors import UserError
from jaxdiff.train_step import TrainStep, check_microbatches, make_train_step
from jaxdiff.types import Batch, Task

logger = logging.getLogger("jaxdiff")

UNSHOWN = "unshown"  # a file in the workdir: the step whose pictures and numbers are being made, or were not made to the end


class Run(NamedTuple):
  """What the loop goes on with."""

  task: Task
  train_step: TrainStep
  strategy: parallel.Strategy
  preview: previews.Preview
  manager: checkpoints.Manager
  # what a checkpoint says of it beside the state: plain JSON values
  record: dict[str, Any]
  # the record of the checkpoint that it goes on from; empty where it begins
  kept: dict[str, Any]
  state: Any
  # steps that the state has taken
  step: int
  # whether what was to be shown after that step was not shown to the end
  unshown: bool
  rollbacks: spikes.Rollbacks
  batches: Generator[Batch, None, None]
  num_examples: int

  def record_at(self, step: int) -> dict[str, Any]:
    """What a checkpoint after this step says of the run: with where the data are, ahead of the steps by what was skipped."""
    batches = step + self.rollbacks.at(self.step)
    examples = batches * self.record["config"]["train"]["batch_size"]
    return self.record | {"examples": examples, "rollbacks": self.rollbacks}


def open_run(
  config: Any, workdir: Path, allow_config_change: bool, clock: goodput.Clock, stack: contextlib.ExitStack
) -> Run | None:
  """The run of a config in a workdir, held by `stack` (its lock, checkpoints and data); None, and told, where it is complete.

  Leaves config.json.  Raises UserError for what the user can mend.
  """
  t = config.train
  store = stores.of(config, workdir)
  if t.checkpoint_dir:
    t.checkpoint_dir = str(store)  # config.json is read from other folders, too
  distributed.by_first(lambda: _prepare(workdir, store))
  if not stores.is_bucket(store):
    distributed.check_shared(store)  # process 0 alone writes anything but checkpoints
  data.check_images(config.data)
  source = data.load(config.data.source, config.data.split, skip_unreadable=config.data.skip_unreadable)
  data.check_labels(source, config.model.num_classes, is_settled=config.task in starts.STARTS)
  tx = tasks.optimizer(config)
  task = tasks.make(config, tx)
  strategy = parallel.make(config.parallel, t.batch_size)
  spikes.check_factor(t.spike_factor)
  check_microbatches(t.microbatches, t.batch_size, jax.device_count())
  preview = previews.make(config, task, strategy, source, workdir)
  record = _record(config, source)
  distributed.by_first(lambda: stack.enter_context(locks.hold(workdir.absolute(), store)))
  manager = checkpoints.open_manager(store, t.keep_checkpoints, t.keep_every)
  stack.enter_context(checkpoints.closing(manager))
  checkpoints.check_same_run(manager, record, allow_config_change)
  with clock.spent("checkpoint"):
    restored = checkpoints.restore(
      manager, strategy.abstract(functools.partial(tasks.initial_state, config, task))
    )
  if restored is None:
    distributed.by_first(lambda: _check_not_elsewhere(workdir, store))
  if restored:
    state = strategy.place_state(restored[0])
  else:
    state = starts.fresh_state(config, task, strategy, source.label_names)
  step = int(strategy.fetch(state.step))
  distributed.by_first(lambda: runs.write_config(config, workdir))
  unshown = distributed.by_first(lambda: _unshown(workdir)) == step
  if step >= t.steps and not unshown:
    logger.info("This run is complete: %d of %d steps (config.train.steps) in %s.", step, t.steps, workdir)
    return None
  kept = restored[1] if restored else {}
  undone = spikes.of_json(kept.get("rollbacks", spikes.Rollbacks()))
  rollbacks = spikes.of_json(distributed.by_first(lambda: spikes.resume(workdir, step, undone)))
  batches = stack.enter_context(
    contextlib.closing(batches_from(step + rollbacks.at(step), source, config, strategy))
  )
  return Run(
    task,
    make_train_step(task, tx, config.optim.skip_norm, t.microbatches),
    strategy,
    preview,
    manager,
    record,
    kept,
    state,
    step,
    unshown,
    rollbacks,
    batches,
    len(source),
  )


def batches_from(
  number: int, source: data.Source, config: Any, strategy: parallel.Strategy
) -> Generator[Batch, None, None]:
  """A run's batches from this number on, each already on its way to the devices."""
  stream = data.stream(
    source,
    config.data,
    batch_size=config.train.batch_size,
    seed=config.seed,
    start=number,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  return data.device_prefetch(stream, strategy.place_batch)


def _prepare(workdir: Path, store: stores.Folder) -> None:
  if (workdir / exported.FILE).exists():
    raise UserError(
      f"{str(workdir)!r} holds a model ({exported.FILE}), which cannot be trained further: what an optimizer needs is not in it. "
      "Train in another --workdir; --mode sample and evaluate work here."
    )
  stores.prepare(workdir, store)


def _check_not_elsewhere(workdir: Path, store: stores.Folder) -> None:
  """Raises UserError where the run in a workdir has its checkpoints elsewhere than in `store`, where there are none."""
  if not (workdir / "config.json").is_file():
    return
  known = stores.of(configuration.of_run(workdir), workdir)
  if known != store and checkpoints.are_in(known):
    raise UserError(
      f"the run in {str(workdir)!r} has its checkpoints in {known}, and there are none in {store}. Copy them there, set "
      f"{stores.KEY} as it was, or use another --workdir."
    )


def _record(config: Any, source: data.Source) -> dict[str, Any]:
  return {
    "config": config.to_dict(),
    "label_names": list(source.label_names),
    "data": data.fingerprint(source, config.data, batch_size=config.train.batch_size, seed=config.seed),
  }


def _unshown(workdir: Path) -> int | None:
  """The step after which what is shown was not made to the end, if that is still to be done."""
  try:
    return int((workdir / UNSHOWN).read_text())
  except (OSError, ValueError):
    return None
