"""Microbatches: the gradients of one batch, in parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import parallel, tasks
from jaxdiff.errors import UserError
from jaxdiff.train_step import check_microbatches, make_train_step, mean_over_parts
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


@functools.cache
def made():
  config = small.config("dit", "model.depth=1")
  task = tasks.make(config, KEEPS)
  fast = jax.jit(
    lambda: tasks.initial_state(config, task), compiler_options={"xla_backend_optimization_level": 0}
  )
  return config, task, jax.tree.map(np.asarray, small.woken(fast()).replace(rng=None))


@functools.cache
def gradients(name, devices, microbatches):
  """(gradients, loss, their norm) of one step under a strategy."""
  config, task, state = made()
  strategy = parallel.STRATEGIES[name](config.parallel, SIZE, jax.devices()[:devices])
  state = strategy.place_state(jax.tree.map(jnp.asarray, state).replace(rng=jax.random.key(3)))
  placed = strategy.place_batch(batch())
  step = make_train_step(task, KEEPS, microbatches=microbatches)
  after, metrics = strategy.lower(step, state, placed).compile()(state, placed)
  return strategy.fetch(after.opt_state["grads"]), float(metrics["loss"]), float(metrics["grad_norm"])


@pytest.mark.parametrize(("name", "microbatches"), [("mesh", 2), ("mesh", 4), ("pmap", 4)])
def test_microbatches_on_four_devices_make_the_gradients_of_one_batch(name, microbatches):
  """Each example keeps its noise, time and dropped label, whatever part it is in."""
  got, loss, norm = gradients(name, 4, microbatches)
  wanted, wanted_loss, wanted_norm = gradients("mesh", 1, 1)
  assert loss == pytest.approx(wanted_loss, rel=1e-6)
  assert norm == pytest.approx(wanted_norm, rel=1e-6)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * norm)


def test_gradients_are_averaged_over_devices_once_after_the_last_part():
  _, task, state = made()
  calls = []

  def pmean(tree):
    calls.append(jax.tree.map(jnp.shape, tree)[0])
    return tree

  step = make_train_step(task, KEEPS, microbatches=4)
  state = jax.tree.map(jnp.asarray, state).replace(rng=jax.random.key(3))
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
