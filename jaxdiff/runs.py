"""Trained runs: a workdir's newest checkpoint, restored to work with."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdiff import checkpoints, optim, parallel, tasks
from jaxdiff.errors import UserError
from jaxdiff.types import PyTree, Task


class Run(NamedTuple):
  """What a workdir holds."""

  config: Any
  task: Task
  state: Any  # placed as the strategy says
  label_names: tuple[str, ...]


def restore(config: Any, workdir: Path, strategy: parallel.Strategy) -> Run:
  """The newest checkpoint of a workdir, read with the config it was made with (or one that differs in what draws).

  Changes nothing there.  Raises UserError where there is no checkpoint or the config does not fit it.
  """
  task = tasks.make(config, optim.make_optimizer(config.optim, *tasks.stages(config)))
  restored = None
  if (workdir / checkpoints.FOLDER).is_dir():
    with contextlib.closing(checkpoints.open_for_reading(workdir)) as manager:
      abstract = strategy.abstract(lambda: tasks.initial_state(config, task))
      restored = checkpoints.restore(manager, abstract, set_aside=False)
  if restored is None:
    raise UserError(f"there is no checkpoint in {str(workdir)!r}. Train first, or give another --workdir.")
  state, record = restored
  return Run(config, task, state, tuple(record["label_names"]))


def averaged_params(config: Any, workdir: Path) -> PyTree:
  """The averaged parameters of a run's newest checkpoint, on the host.  Raises UserError as `restore`."""
  one_device = parallel.mesh(SimpleNamespace(fsdp=1), 1, jax.local_devices()[:1])
  run = restore(config, workdir, one_device)
  return jax.tree.map(np.asarray, optim.ema_params(run.state))
