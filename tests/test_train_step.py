"""Microbatches: the gradients of one batch, in parts."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import parallel, tasks
from jaxdiff.diffusion import losses
from jaxdiff.errors import UserError
from jaxdiff.train_step import check_microbatches, make_train_step, mean_over_parts
from jaxdiff.types import Task, TrainState
from tests import small

SIZE = 16
KEEPS = optax.GradientTransformation(  # the gradients, in its state, and updates nothing
  lambda params: {"learning_rate": jnp.float32(0), "grads": jax.tree.map(jnp.zeros_like, params)},
  lambda grads, state, params: (jax.tree.map(jnp.zeros_like, grads), state | {"grads": grads}),
)


def batch():
  rng = np.random.default_rng(0)
  return {
    "image": rng.integers(0, 256, (SIZE, 8, 8, 1), np.uint8),
    "label": rng.integers(0, 10, SIZE).astype(np.int32),
    "index": np.arange(100, 100 + SIZE, dtype=np.uint32),
  }


def toy():
  """(task, state): each example has noise of its own, drawn as the tasks draw it."""

  def loss(params, state, batch, key):
    del state
    noise = losses.per_example(lambda k: jax.random.normal(k, (64,)), key, batch["index"])
    seen = batch["image"].reshape(-1, 64) / 255 + noise
    error = jnp.square(jnp.tanh(seen @ params["w"]) - batch["label"][:, None])
    return jnp.mean(error), {"largest": jnp.mean(jnp.abs(noise))}

  params = {"w": jnp.linspace(-0.1, 0.1, 192).reshape(64, 3)}
  state = TrainState(jnp.int32(0), params, KEEPS.init(params), jax.random.key(3))
  return Task(init=None, loss=loss, denoiser=None, advance=None), state


def dit():
  config = small.config("dit", "model.depth=1")
  task = tasks.make(config, KEEPS)
  make = lambda: tasks.initial_state(config, task)
  state = jax.jit(make, compiler_options={"xla_backend_optimization_level": 0})()
  return task, small.woken(state)


@functools.cache
def gradients(made, name, devices, microbatches):
  """(gradients, metrics) of one step under a strategy."""
  task, state = made()
  strategy = parallel.STRATEGIES[name](SimpleNamespace(fsdp=1), SIZE, jax.devices()[:devices])
  state, placed = strategy.place_state(state), strategy.place_batch(batch())
  step = make_train_step(task, KEEPS, microbatches=microbatches)
  after, metrics = strategy.lower(step, state, placed).compile()(state, placed)
  return strategy.fetch(after.opt_state["grads"]), {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize(
  ("made", "name", "microbatches"),
  [
    (toy, "mesh", 2),
    (toy, "mesh", 4),
    (toy, "pmap", 4),
    pytest.param(dit, "pmap", 4, marks=pytest.mark.slow),
  ],
)
def test_microbatches_on_four_devices_make_the_gradients_of_one_batch(made, name, microbatches):
  """Each example keeps its noise, time and dropped label, whatever part it is in."""
  got, metrics = gradients(made, name, 4, microbatches)
  wanted, wanted_metrics = gradients(made, "mesh", 1, 1)
  assert metrics == pytest.approx(wanted_metrics, rel=1e-6)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * metrics["grad_norm"])


def test_gradients_are_averaged_over_devices_once_after_the_last_part():
  task, state = toy()
  calls = []

  def pmean(tree):
    calls.append(jax.tree.map(jnp.shape, tree)[0])
    return tree

  step = make_train_step(task, KEEPS, microbatches=4)
  jax.eval_shape(lambda state, batch: step(state, batch, pmean=pmean), state, batch())
  assert calls == [jax.tree.map(jnp.shape, state.params)]


def test_parts_take_every_so_manyth_example():
  seen = mean_over_parts(lambda part: {"x": part["x"] * 1.0}, {"x": jnp.arange(6)}, 2)
  assert seen["x"].tolist() == [0.5, 2.5, 4.5]  # the means of 0, 2, 4 and 1, 3, 5


def test_what_does_not_divide_is_told():
  with pytest.raises(UserError, match=r"config.train.microbatches is 0; it must be at least 1"):
    check_microbatches(0, 8, 1)
  with pytest.raises(UserError, match=r"batch size 24 .* 4 microbatches .* on 4 devices. Use 32."):
    check_microbatches(4, 24, 4)
  check_microbatches(2, 8, 4)
