"""One train step under every strategy: the same run on one device and on four."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import checkpoints, optim, parallel, tasks
from jaxdiff.errors import UserError
from jaxdiff.train_step import make_train_step
from tests import small

CONFIG = small.config("dit", "optim.clip_norm=0.5")


def batch_of(step, size=8):
  rng = np.random.default_rng(step)
  return {
    "image": rng.integers(0, 256, (size, 8, 8, 1), np.uint8),
    "label": rng.integers(0, 10, size).astype(np.int32),
    "index": np.arange(step * size, (step + 1) * size, dtype=np.uint32),
  }


def run(name, devices, steps=4, fsdp=1):
  """(state after some steps, its metrics, the number of traces) under a strategy."""
  config = small.config("dit", "optim.clip_norm=0.5", f"parallel.strategy={name}", f"parallel.fsdp={fsdp}")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      parallel, "SMALL_LEAF", 64
    )  # so that the leaves of a small network are split as a large one's are
    return run_of(config, name, devices, steps)


def run_of(config, name, devices, steps):
  strategy = parallel.STRATEGIES[name](config.parallel, 8, jax.devices()[:devices])
  tx = optim.make_optimizer(config.optim, 6)
  task = tasks.make(config, tx)
  traces = []

  def counted(state, batch, **options):
    traces.append(1)
    return make_train_step(task, tx)(state, batch, **options)

  state = strategy.init(lambda: tasks.initial_state(config, task))
  parts = {leaf.size // leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(state.params)}
  assert max(parts) == (devices if name == "pmap" else config.parallel.fsdp)
  compiled = strategy.lower(counted, state, strategy.place_batch(batch_of(0))).compile()
  for step in range(steps):
    state, metrics = compiled(state, strategy.place_batch(batch_of(step)))
  return strategy.fetch(state), metrics, len(traces)


@pytest.fixture(scope="module")
def one_device():
  return run("mesh", 1)


@pytest.mark.parametrize(
  ("name", "devices", "fsdp"),
  [("mesh", 2, 1), ("pmap", 2, 1), ("mesh", 4, 1), ("mesh", 4, 2), ("mesh", 4, 4), ("pmap", 4, 1)],
)
def test_several_devices_make_the_parameters_of_one(one_device, name, devices, fsdp):
  state, metrics, traces = run(name, devices, fsdp=fsdp)
  wanted, wanted_metrics, _ = one_device
  assert int(state.step) == 4
  # The batch mean is summed in another order; Adam divides gradients near zero by themselves, so compare to the scale.
  for tree in ("params", "opt_state"):
    for got, want in zip(
      jax.tree.leaves(getattr(state, tree)), jax.tree.leaves(getattr(wanted, tree)), strict=True
    ):
      np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5)
  for key, value in wanted_metrics.items():
    assert float(metrics[key]) == pytest.approx(float(value), rel=1e-5)
  assert traces == 1


def test_no_device_ever_holds_all_of_a_state_that_is_shared(monkeypatch):
  """By the compiler's plan of what makes it: its parts and what is needed beside them."""
  planned = []

  def plan(make, *given, out_shardings):
    compiled = jax.jit(make, out_shardings=out_shardings).lower(*given).compile()
    planned.append(compiled.memory_analysis())

  monkeypatch.setattr(parallel, "_run_once", plan)
  monkeypatch.setattr(parallel, "SMALL_LEAF", 64)
  config = small.config("dit", "model.width=64", "parallel.fsdp=4")
  task = tasks.make(config, optim.make_optimizer(config.optim, 6))
  make = functools.partial(tasks.initial_state, config, task)
  parallel.mesh(config.parallel, 8, jax.devices()[:4]).init(make)
  state = jax.eval_shape(make)
  whole = sum(leaf.size * 4 for leaf in jax.tree.leaves((state.params, state.opt_state)))
  assert planned[0].output_size_in_bytes + planned[0].temp_size_in_bytes < 0.35 * whole


def test_pmap_on_one_device_is_bit_equal_to_mesh_on_one(one_device):
  state, _, _ = run("pmap", 1)
  for got, want in zip(jax.tree.leaves(state.params), jax.tree.leaves(one_device[0].params), strict=True):
    assert (np.asarray(got) == np.asarray(want)).all()


def test_a_cpus_step_takes_the_hosts_arrays_as_they_are_and_several_devices_a_share_each():
  batch = batch_of(0)
  alone, shared = (parallel.mesh(CONFIG.parallel, 8, jax.devices()[:devices]) for devices in (1, 2))
  assert alone.place_batch(batch) is batch
  placed = shared.place_batch(batch)
  assert [part.data.shape for part in placed["image"].addressable_shards] == [(4, 8, 8, 1)] * 2


def test_pmap_fetches_from_one_device_alone():
  """Through all of them it takes a collective for each leaf, and those can lock each other out."""
  strategy = parallel.pmap(None, 8, jax.devices()[:4])
  state = strategy.init(lambda: {"weight": jnp.arange(6.0).reshape(2, 3), "rng": jax.random.key(3)})
  fetched = strategy.fetch(state)
  assert {device for leaf in fetched.values() for device in leaf.devices()} == {jax.devices()[0]}
  assert (fetched["weight"] == jnp.arange(6.0).reshape(2, 3)).all()
  assert (jax.random.key_data(fetched["rng"]) == jax.random.key_data(jax.random.key(3))).all()


@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (2, 2), (4, 1), (4, 2)])
def test_a_checkpoint_is_restored_onto_another_mesh(devices, fsdp, tmp_path, monkeypatch):
  """Saved by four devices of which each has a quarter of every large leaf."""
  monkeypatch.setattr(parallel, "SMALL_LEAF", 64)
  task = tasks.make(CONFIG, optim.make_optimizer(CONFIG.optim, 6))
  make = lambda: tasks.initial_state(CONFIG, task)
  before, after = (
    parallel.mesh(small.config("dit", f"parallel.fsdp={groups}").parallel, 8, jax.devices()[:count])
    for count, groups in ((4, 4), (devices, fsdp))
  )
  state = before.init(make)
  with contextlib.closing(checkpoints.open_manager(tmp_path)) as manager:
    checkpoints.save(manager, 2, state, {"config": {}})
    checkpoints.finish(manager)
    found, _ = checkpoints.restore(manager, after.abstract(make))
  kernel = found.params["block_0"]["mlp"]["in"]["kernel"]
  assert kernel.size == fsdp * kernel.addressable_shards[0].data.size and len(kernel.devices()) == devices
  raw = lambda each: jax.tree.leaves(each.replace(rng=jax.random.key_data(each.rng)))
  for got, want in zip(raw(found), raw(state), strict=True):
    np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


def test_fsdp_splits_large_leaves_of_params_optimizer_and_ema():
  strategy = parallel.mesh(small.config("dit", "parallel.fsdp=4").parallel, 8, jax.devices()[:4])
  state = strategy.init(
    lambda: {
      "big": jnp.zeros((256, 128)),
      "wide": jnp.zeros((128, 256)),
      "odd": jnp.zeros((255, 127)),
      "small": jnp.zeros((4,)),
    }
  )
  shards = {name: leaf.addressable_shards[0].data.shape for name, leaf in state.items()}
  assert shards == {"big": (64, 128), "wide": (128, 64), "odd": (255, 127), "small": (4,)}


def test_the_state_is_donated():
  config = CONFIG
  strategy = parallel.mesh(config.parallel, 8, jax.devices()[:1])
  tx = optim.make_optimizer(config.optim, 6)
  task = tasks.make(config, tx)
  state = strategy.init(lambda: tasks.initial_state(config, task))
  batch = strategy.place_batch(batch_of(0))
  strategy.lower(make_train_step(task, tx), state, batch).compile()(state, batch)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_noise_and_time_follow_the_index_not_the_place_in_the_batch():
  """A batch in another order is the same step, up to the order of the sum."""
  config = CONFIG
  tx = optim.make_optimizer(config.optim, 6)
  task = tasks.make(config, tx)
  step = jax.jit(make_train_step(task, tx))
  state, batch = tasks.initial_state(config, task), batch_of(0)
  order = np.random.default_rng(0).permutation(8)
  losses = [float(step(state, b)[1]["loss"]) for b in (batch, {k: v[order] for k, v in batch.items()})]
  assert losses[0] == pytest.approx(losses[1], rel=1e-6)
  moved = batch | {"index": batch["index"] + 8}
  assert float(step(state, moved)[1]["loss"]) != pytest.approx(losses[0], rel=1e-3)


def test_what_does_not_divide_is_told():
  with pytest.raises(
    UserError, match=r"batch size 10 \(config.train.batch_size\) is not divisible by 4 devices. Use 8."
  ):
    parallel.make(CONFIG.parallel, 10)
  with pytest.raises(UserError, match=r"4 devices cannot be split into groups of 3 \(config.parallel.fsdp\)"):
    parallel.make(small.config("dit", "parallel.fsdp=3").parallel, 12)
  with pytest.raises(UserError, match="unknown parallel strategy 'mash'. Did you mean 'mesh'"):
    parallel.make(small.config("dit", "parallel.strategy=mash").parallel, 8)
