"""What the compiler is given and makes: a guard on the size of a train step and on how often a run compiles.

The counts are not goals. One that grows means that XLA was led to repeat work, or that a step is compiled again and again:
raise a bound only after looking at why, and at the times of `python -m benchmarks.run`.
"""

from __future__ import annotations

import collections
import contextlib
import re

import jax
import jax.numpy as jnp

from jaxdiff import tasks, train
from jaxdiff.train_step import make_train_step
from tests import small

COMPILED = (
  "/jax/core/compile/backend_compile_duration"  # told for each program, found in the persistent cache or not
)


def instructions(name, *overrides):
  """Instructions of the compiled train step of a tiny run, those inside fusions included."""
  config = small.config(name, *overrides)
  tx = tasks.optimizer(config)
  task = tasks.make(config, tx)
  state = jax.eval_shape(lambda: tasks.initial_state(config, task))
  step = make_train_step(task, tx)
  batch = {
    "image": jnp.zeros((8, 8, 8, 1), jnp.uint8),
    "label": jnp.zeros((8,), jnp.int32),
    "index": jnp.arange(8, dtype=jnp.uint32),
  }
  text = jax.jit(step, donate_argnums=0).lower(state, batch).compile().as_text()
  return len(re.findall(r"(?m)^ +(?:ROOT )?%?[\w.-]+ = ", text))


def test_the_compiled_step_of_a_dit():
  """9,600 instructions for three blocks, 1,900 for each; 12,000 and 3,300 where LayerNorm is spelt out inline.

  A tenth of room: JAX 0.10 and 0.12 differ by less than 1%.
  """
  assert instructions("dit", "model.depth=3") < 10_600


def test_the_compiled_step_of_a_unet():
  """18,000 instructions for one level with attention, and a tenth of room: more means that something is computed again."""
  assert instructions("unet", "model.channel_mults=1", "model.attention_sizes=8") < 19_800


@contextlib.contextmanager
def compilations():
  """Counts the programs compiled in this context, by the name of their function."""
  counted = collections.Counter()

  def listen(event, duration, **told):
    del duration
    if event == COMPILED:
      counted[str(told.get("fun_name"))] += 1

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield counted
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def test_what_a_run_compiles_does_not_grow_with_its_steps(tmp_path):
  """A run of 12 steps with 4 pictures of the samples and 6 checkpoints compiles 6 programs; there is room for two more.

  The step once; drawing twice, for samples and for the way from noise to image.  Orbax's slices do not count: it compiles one
  for each leaf that several devices hold, at the first save.
  """
  with compilations() as counted:
    train.train(small.config("dit", "train.steps=12", "model.depth=1"), tmp_path)
  of_ours = {name: number for name, number in counted.items() if "slice" not in name}

  def times(name):
    return sum(number for program, number in of_ours.items() if name in program)

  assert (times("train_step"), times("solve"), times("initial_state")) == (1, 2, 1), of_ours
  assert sum(of_ours.values()) <= 8, of_ours
