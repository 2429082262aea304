"""What is learned: each module makes a Task from a config. TASKS is the table that configs name them by."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdiff.data import hints
from jaxdiff.errors import unknown
from jaxdiff.tasks import classifier, controlnet, denoise, distill
from jaxdiff.types import Task

TASKS = {
  "denoise": denoise.make,
  "classifier": classifier.make,
  "controlnet": controlnet.make,
  "distill": distill.make,
}
STAGES = {"distill": distill.stages}


def make(config: Any, tx: optax.GradientTransformation) -> Task:
  """The task that config.task names, trained by tx.  Raises UserError for an unknown one."""
  if config.task not in TASKS:
    raise unknown("task", config.task, TASKS)
  return TASKS[config.task](config, tx)


def stages(config: Any) -> tuple[int, ...]:
  """The train steps of each stage of a run, as the optimizer wants them: for most tasks there is one."""
  return STAGES[config.task](config) if config.task in STAGES else (config.train.steps,)


def initial_state(config: Any, task: Task) -> Any:
  """The state of a run before its first step, a function of config.seed alone."""
  side, channels = config.data.image_size, config.data.channels
  batch = {
    "image": jnp.zeros((1, side, side, channels), jnp.uint8),
    "label": jnp.zeros((1,), jnp.int32),
    "index": jnp.zeros((1,), jnp.uint32),
  }
  if hint := hints.parse(config.data.hint):
    batch["hint"] = jnp.zeros((1, side, side, hint.channels), jnp.uint8)
  return task.init(jax.random.key(config.seed), batch)
