"""Steps whose gradients are not finite, or too large, change nothing; too many of them in a row end the run."""

import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import checkpoints, optim, parallel, train
from jaxdiff.train_step import make_train_step
from jaxdiff.types import Task, TrainState
from tests import small
from tests.test_main import train as train_main
from tests.test_optim import settings

BATCH = {"image": np.ones((4, 3), np.float32), "index": np.arange(4, dtype=np.uint32)}


def loss(params, state, batch, key):
  del state, key
  return jnp.mean(jnp.cos(batch["image"] @ params["kernel"] + params["bias"])), {}


def toy(**changed):
  """(tx, task, fresh state) of a least task, with all that an optimizer can have."""
  wanted = {"clip_norm": 0.1, "weight_decay": 0.1, "ema_start_step": 1, "warmup_steps": 2, "decay": "cosine"}
  tx = optim.make_optimizer(settings(**(wanted | changed)), 20)
  params = {"kernel": jnp.linspace(-1, 1, 6).reshape(3, 2), "bias": jnp.asarray([0.1, 0.2])}
  state = TrainState(jnp.int32(0), params, tx.init(params), jax.random.key(0))
  return tx, Task(init=None, loss=loss, denoiser=None, advance=None), state


def with_value(value):
  image = BATCH["image"].copy()
  image[1, 1] = value
  return BATCH | {"image": image}


def leaves(state):
  return [np.asarray(leaf) for leaf in jax.tree.leaves((state.params, state.opt_state))]


def bit_equal(a, b):
  return all(x.tobytes() == y.tobytes() for x, y in zip(leaves(a), leaves(b), strict=True))


@pytest.mark.parametrize("accumulate_steps", [1, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_step_leaves_parameters_moments_average_and_counts_as_they_were(accumulate_steps, bad):
  """The first step, one before the average starts, one in the middle of an accumulation, and ones after it."""
  tx, task, state = toy(accumulate_steps=accumulate_steps)
  step = jax.jit(make_train_step(task, tx))
  for number in range(9):
    is_bad = number in (0, 2, 3, 6)
    after, metrics = step(state, with_value(bad if is_bad else 1 + 0.1 * number))
    assert float(metrics["skipped"]) == is_bad
    assert bit_equal(after, state) == is_bad, number
    assert int(after.step) == number + 1
    state = after
  assert all(np.isfinite(leaf).all() for leaf in leaves(state))


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_the_good_steps_are_those_of_a_run_without_the_bad_ones(accumulate_steps):
  tx, task, start = toy(accumulate_steps=accumulate_steps)
  step = jax.jit(make_train_step(task, tx))
  ends = []
  for values in ([1.0, 2.0, 3.0, 4.0], [1.0, float("nan"), 2.0, 3.0, float("inf"), float("nan"), 4.0]):
    state = start
    for value in values:
      state, _ = step(state, with_value(value))
    ends.append(state)
  assert bit_equal(*ends)


def test_gradients_above_the_norm_are_skipped_if_asked():
  tx, task, state = toy()
  _, metrics = jax.jit(make_train_step(task, tx))(state, BATCH)
  norm = float(metrics["grad_norm"])
  for limit, is_skipped in ((norm * 1.01, False), (norm * 0.99, True), (0.0, False)):
    after, metrics = jax.jit(make_train_step(task, tx, limit))(state, BATCH)
    assert float(metrics["skipped"]) == is_skipped == bit_equal(after, state)


def test_healthy_steps_are_those_of_optax_to_the_bit():
  config = settings(clip_norm=0.1, weight_decay=0.1, ema_start_step=1, warmup_steps=2, decay="cosine")
  _, task, state = toy()

  def average(count, ema, new):
    return jax.tree.map(lambda e, n: jnp.where(count >= 1, 0.9 * e + (1 - 0.9) * n, n), ema, new)

  plain = optax.chain(
    optax.clip_by_global_norm(0.1),
    optax.scale_by_adam(0.9, 0.999, 1e-8),
    optax.add_decayed_weights(0.1, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
    optax.scale_by_learning_rate(optim.learning_rate(config, 20)),
  )

  @jax.jit
  def reference(count, params, opt_state, ema, batch):
    grads = jax.grad(lambda p: loss(p, None, batch, None)[0])(params)
    updates, opt_state = plain.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return params, opt_state, average(count, ema, params)

  step = jax.jit(make_train_step(task, toy()[0]))
  params, opt_state, ema = state.params, plain.init(state.params), state.params
  for number in range(6):
    batch = with_value(1 + 0.3 * number)
    state, _ = step(state, batch)
    params, opt_state, ema = reference(number, params, opt_state, ema, batch)
    for got, want in ((state.params, params), (optim.ema_params(state), ema)):
      assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), got, want)), number


@pytest.mark.parametrize("name", ["mesh", "pmap"])
def test_one_bad_example_on_one_device_skips_the_step_on_all(name):
  tx, task, state = toy()
  strategy = parallel.STRATEGIES[name](SimpleNamespace(fsdp=1), 4, jax.devices()[:4])
  placed = strategy.place_state(jax.tree.map(jnp.copy, state))
  batch = strategy.place_batch(with_value(float("nan")))
  after, metrics = strategy.lower(make_train_step(task, tx), placed, batch).compile()(placed, batch)
  assert float(metrics["skipped"]) == 1
  if name == "pmap":
    assert all((leaf == leaf[0]).all() for leaf in leaves(after))
  assert bit_equal(strategy.fetch(after), state)


@pytest.mark.slow
def test_skipping_hardly_lengthens_the_compiled_step():
  """11097 instructions became 11512 for a DiT of 4 blocks; each leaf asked with isfinite made it seven times as many."""
  config = small.config("dit")
  tx = optim.make_optimizer(config.optim, 6)
  task, state = small.made(config)
  batch = {
    "image": np.zeros((4, 8, 8, 1), np.uint8),
    "label": np.zeros(4, np.int32),
    "index": np.arange(4, dtype=np.uint32),
  }
  never = optax.GradientTransformation(tx.init, lambda grads, state, params: tx.update(grads, state, params))

  def instructions(transform):
    text = jax.jit(make_train_step(task, transform)).lower(state, batch).compile().as_text()
    return len(re.findall(r"(?m)^ +(?:ROOT )?%?[\w.-]+ = ", text))

  longer, usual = instructions(tx), instructions(never)
  assert longer < 1.07 * usual, (longer, usual)


def poisoned(monkeypatch):
  """Makes a run's steps 2, 5 and 6 bad, as its loop sees it: what the device does about it is tested above."""
  compile_step = train._compile

  def compile_poisoned(*args):
    step = compile_step(*args)

    def poisoned_step(state, batch):
      number = int(state.step) + 1
      after, metrics = step(state, batch)
      return after, metrics | ({"loss": np.nan, "skipped": 1.0} if number in (2, 5, 6) else {})

    return poisoned_step

  monkeypatch.setattr(train, "_compile", compile_poisoned)


def test_a_run_gets_over_single_bad_steps_and_tells_of_them(tmp_path, monkeypatch, capsys):
  poisoned(monkeypatch)
  status, text = train_main(tmp_path, "--config.train.checkpoint_every=1", capsys=capsys)
  assert status == 0, text
  assert "Skipped, as the loss or its gradient is not finite: step 2." in text
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert rows[-1]["skipped"] == 3 and all(row["loss"] is not None for row in rows if row["step"] == 4)
  record = checkpoints.latest_run(checkpoints.open_manager(tmp_path))
  assert record["skipped"] == 3


def test_too_many_in_a_row_stop_the_run_and_keep_what_was_saved_before(tmp_path, monkeypatch, capsys):
  poisoned(monkeypatch)
  options = ("train.checkpoint_every=1", "optim.max_bad_steps=1", "train.keep_checkpoints=9")
  status, text = train_main(tmp_path, *(f"--config.{option}" for option in options), capsys=capsys)
  assert status == 2
  assert "the loss or its gradient is not finite at step 5. The last good checkpoint is step 4" in text
  assert "So was the step after it" in text and "config.optim.learning_rate" in text
  assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [1, 3, 4]
