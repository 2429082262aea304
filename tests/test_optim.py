import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import optim, tasks
from jaxdiff.errors import UserError
from tests import small

PARAMS = {"w": jnp.asarray([1.0, -2.0]), "b": jnp.asarray(0.5)}


def settings(**changed):
  values = {
    "learning_rate": 0.1,
    "warmup_steps": 0,
    "decay": "constant",
    "beta1": 0.9,
    "beta2": 0.999,
    "epsilon": 1e-8,
    "weight_decay": 0.0,
    "clip_norm": 0.0,
    "accumulate_steps": 1,
    "ema_decay": 0.9,
    "ema_start_step": 0,
  }
  return SimpleNamespace(**(values | changed))


def run(tx, gradients, params=PARAMS):
  """[(params, EMA)] after each update."""
  state, history = tx.init(params), []
  for gradient in gradients:
    updates, state = tx.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    history.append((params, optax.tree.get(state, "ema_params")))
  return history


def gradients(count):
  return [jax.tree.map(lambda p, k=k: jnp.cos(p * 3 + k), PARAMS) for k in range(count)]


def test_three_updates_by_hand():
  """SGD with rate 1 from 0 under gradients 1, 2, -4 visits -1, -3, 1; the average starts after the first update."""
  tx = optax.chain(optax.sgd(1.0), optim.params_ema(decay=0.75, start_step=1))
  history = run(tx, [jnp.asarray(g) for g in (1.0, 2.0, -4.0)], jnp.asarray(0.0))
  assert [float(params) for params, _ in history] == [-1, -3, 1]
  assert [float(ema) for _, ema in history] == [-1, 0.75 * -1 + 0.25 * -3, 0.75 * -1.5 + 0.25 * 1]


def test_until_the_start_step_the_average_is_the_parameters():
  tx = optax.chain(optax.adam(0.1), optim.params_ema(0.99, start_step=4))
  history = run(tx, gradients(6))
  same = [
    all((p == e).all() for p, e in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    for a, b in history
  ]
  assert same == [True, True, True, True, False, False]


def test_the_average_is_of_the_parameters_after_the_update():
  tx = optax.chain(optax.sgd(0.1), optim.params_ema(decay=0.0))
  for params, ema in run(tx, gradients(3)):
    assert (params["w"] == ema["w"]).all()


def test_updates_pass_through_unchanged():
  tx = optim.params_ema(0.9)
  updates, _ = tx.update(gradients(1)[0], tx.init(PARAMS), PARAMS)
  assert (updates["w"] == gradients(1)[0]["w"]).all()


def test_the_average_owns_its_buffer():
  params = jax.tree.map(jnp.copy, PARAMS)
  state = optim.params_ema(0.9).init(params)
  jax.jit(lambda p: jax.tree.map(lambda a: a + 1, p), donate_argnums=0)(params)
  assert state.ema_params["w"].tolist() == [1, -2]


def test_misuse_is_refused():
  with pytest.raises(ValueError, match=r"EMA decay 1.5 is not in \[0, 1\]"):
    optim.params_ema(1.5)
  tx = optim.params_ema(0.9)
  with pytest.raises(ValueError, match="averages parameters"):
    tx.update(PARAMS, tx.init(PARAMS))


def test_with_accumulation_everything_moves_once_per_applied_update():
  """Four gradients in pairs are two updates with the pairs' means, for parameters, Adam and EMA alike."""
  every = gradients(4)
  pairs = [jax.tree.map(lambda a, b: (a + b) / 2, *every[i : i + 2]) for i in (0, 2)]
  accumulated = run(optim.make_optimizer(settings(accumulate_steps=2, warmup_steps=2), 4), every)
  plain = run(optim.make_optimizer(settings(warmup_steps=2), 2), pairs)
  for got, want in zip(accumulated[1::2], plain, strict=True):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)
  between = accumulated[2]
  assert (between[0]["w"] == accumulated[1][0]["w"]).all()
  assert (between[1]["w"] == accumulated[1][1]["w"]).all()


def test_clipping_sees_the_whole_gradient():
  big = jax.tree.map(lambda p: 100 * p, PARAMS)
  clipped = run(optim.make_optimizer(settings(clip_norm=1.0, epsilon=1.0), 1), [big])[0][0]
  norm = optax.tree.norm(big)
  scaled = run(optim.make_optimizer(settings(epsilon=1.0), 1), [jax.tree.map(lambda g: g / norm, big)])[0][0]
  np.testing.assert_allclose(clipped["w"], scaled["w"], rtol=1e-6)
  free = run(optim.make_optimizer(settings(epsilon=1.0), 1), [big])[0][0]
  assert not np.allclose(free["w"], clipped["w"], rtol=1e-3)


def test_weight_decay_spares_vectors_and_scalars():
  params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2,))}
  tx = optim.make_optimizer(settings(weight_decay=0.5), 1)
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5, rtol=1e-6)
  assert (updates["bias"] == 0).all()


def test_weight_decay_spares_vectors_that_a_scan_has_stacked():
  def network(scan):
    config = small.config("dit", f"model.scan={scan}", "model.qk_norm=True")
    return jax.eval_shape(lambda: tasks.initial_state(config, tasks.make(config, optax.identity()))).params

  names = lambda tree: {
    path[-1].key: bool(is_decayed) for path, is_decayed in jax.tree_util.tree_flatten_with_path(tree)[0]
  }
  unrolled = names(optim.decayed(network(False)))
  assert unrolled == names(optim.decayed(network(True)))
  assert {name for name, is_decayed in unrolled.items() if is_decayed} == {"kernel", "embedding"}


def test_the_schedule_warms_up_from_its_first_share_and_ends_at_zero():
  rate = optim.learning_rate(settings(warmup_steps=4, decay="cosine"), 20)
  values = [float(rate(n)) for n in range(21)]
  assert values[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])
  assert values[12] == pytest.approx(0.05)
  assert values[20] == pytest.approx(0, abs=1e-9)
  assert all(a >= b for a, b in itertools.pairwise(values[4:]))


def test_the_rate_in_force_is_in_the_state():
  tx = optim.make_optimizer(settings(warmup_steps=4), 20)
  _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
  assert float(optax.tree.get(state, "learning_rate")) == pytest.approx(0.025)


def test_an_unknown_decay_is_named():
  with pytest.raises(UserError, match=r"unknown learning rate decay .* 'cosin'. Did you mean 'cosine'"):
    optim.learning_rate(settings(decay="cosin"), 10)
