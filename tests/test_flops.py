"""What XLA counts, and that a compiler which does not count is made up for by the host's."""

import types

import jax
import jax.numpy as jnp
import pytest

from jaxdiff import flops, plan, train
from tests import small

X = jax.ShapeDtypeStruct((8, 16), jnp.float32)
Y = jax.ShapeDtypeStruct((16, 32), jnp.float32)
PRODUCT = 2 * 8 * 16 * 32


def test_a_product_is_two_operations_for_each_pair():
  assert flops.count(jax.jit(jnp.matmul).lower(X, Y), jnp.matmul, X, Y) == PRODUCT


@pytest.mark.parametrize("cost", [None, {}, {"flops": 0.0}])
def test_where_the_compiler_does_not_count_the_hosts_does(cost):
  silent = types.SimpleNamespace(cost_analysis=lambda: cost)
  assert flops.count(silent, jnp.matmul, X, Y) == PRODUCT
  seen = []
  flops.on_host(lambda x: seen.append(jax.default_device.value) or x, X)
  assert seen == [jax.local_devices(backend="cpu")[0]]


@pytest.mark.parametrize("error", [RuntimeError("no CPU backend"), NotImplementedError("not on a CPU")])
def test_none_where_the_host_cannot(error):
  def function(x):
    raise error

  assert flops.on_host(function, X) is None


@pytest.mark.parametrize("strategy", ["mesh", "pmap"])
def test_where_the_devices_compiler_does_not_count_a_plan_does(strategy, monkeypatch):
  monkeypatch.setattr(train, "flops", types.SimpleNamespace(counted=lambda lowered: None))
  config = small.config("dit", f"parallel.strategy={strategy}")
  assert train._flops(None, config) == plan.step_flops(config) > 1e6
