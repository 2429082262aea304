"""Trained runs: a workdir's newest checkpoint, or the model file that it was exported to, restored to work with."""

from __future__ import annotations

import contextlib
import functools
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdiff import checkpoints, configuration, exported, optim, parallel, stores, tasks
from jaxdiff.errors import UserError
from jaxdiff.types import PyTree, Task

logger = logging.getLogger("jaxdiff")


class Run(NamedTuple):
  """What a workdir holds."""

  config: Any
  task: Task
  state: Any  # placed as the strategy says
  label_names: tuple[str, ...]


def restore(config: Any, workdir: Path, strategy: parallel.Strategy) -> Run:
  """The newest checkpoint of a workdir, read with the config it was made with (or one that differs in what draws).

  Where there is a model file instead (jaxdiff.exported), that.

  Changes nothing there.  Raises UserError where there is no checkpoint or the config does not fit it.
  """
  task = tasks.make(config, tasks.optimizer(config))
  store = stores.of(config, workdir)
  make_state, restored = functools.partial(tasks.initial_state, config, task), None
  if (workdir / exported.FILE).is_file():
    restored = exported.read(workdir, make_state, strategy)
  elif checkpoints.are_in(store):
    with contextlib.closing(checkpoints.open_for_reading(store)) as manager:
      restored = checkpoints.restore(manager, strategy.abstract(make_state), set_aside=False)
  if restored is None:
    raise UserError(f"there is no checkpoint in {str(store)!r}. Train first, or give another --workdir.")
  state, record = restored
  return Run(config, task, state, tuple(record["label_names"]))


def write_config(config: Any, workdir: Path) -> None:
  """Writes a run's config.json: into its workdir, last of all, so that what has one is whole; and to where its checkpoints lie."""
  text = configuration.to_json(config)
  for folder in (stores.of(config, workdir), workdir.absolute()):
    stores.write(folder, "config.json", text)


def averaged_params(config: Any, workdir: Path) -> PyTree:
  """The averaged parameters of a run's newest checkpoint, on the host.  Raises UserError as `restore`."""
  run = restore(config, workdir, one_device())
  return jax.tree.map(np.asarray, optim.ema_params(run.state))


def export(config: Any, workdir: Path) -> None:
  """`--mode export`: writes the model of a run's newest checkpoint to the folder config.export.out, in config.export.dtype.

  Raises UserError as `restore` and exported.write, and where config.export.out is missing or the workdir of a run.
  """
  out, dtype = Path(config.export.out).expanduser(), config.export.dtype
  is_run = (out / "config.json").exists() and not (out / exported.FILE).exists()
  if not config.export.out or out.resolve() == workdir.resolve() or is_run:
    holds = ", which holds a run" if config.export.out else ""
    raise UserError(
      f"config.export.out is {config.export.out!r}{holds}; name a folder for the model, as --config.export.out=models/digits."
    )
  run = restore(config, workdir, one_device())
  kept = config.copy_and_resolve_references()
  kept.export.update({"out": "", "dtype": dtype})
  kept.train.checkpoint_dir = ""
  path = exported.write(out, kept, run.state, run.label_names, dtype)
  logger.info(
    "Wrote %s, %.1f MB. It is used as its run is, with --workdir %s", path, path.stat().st_size / 1e6, out
  )


def one_device() -> parallel.Strategy:
  """A strategy for what fits on this process's first device."""
  return parallel.mesh(SimpleNamespace(fsdp=1), 1, jax.local_devices()[:1])
