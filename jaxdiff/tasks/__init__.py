"""What is learned: each module makes a Task from a config. TASKS is the table that configs name them by."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdiff import optim
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


def optimizer(config: Any) -> optax.GradientTransformationExtraArgs:
  """The optimizer of config.optim for all stages of a run."""
  return optim.make_optimizer(config.optim, *stages(config))


def abstract_batch(config: Any, size: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of a batch of so many examples, as the data pipeline gives it."""
  side = config.data.image_size
  shapes = {
    "image": ((size, side, side, config.data.channels), jnp.uint8),
    "label": ((size,), jnp.int32),
    "index": ((size,), jnp.uint32),
  }
  if hint := hints.parse(config.data.hint):
    shapes["hint"] = ((size, side, side, hint.channels), jnp.uint8)
  return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def initial_state(config: Any, task: Task) -> Any:
  """The state of a run before its first step, a function of config.seed alone."""
  batch = {name: jnp.zeros(like.shape, like.dtype) for name, like in abstract_batch(config, 1).items()}
  return task.init(jax.random.key(config.seed), batch)
