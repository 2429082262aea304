"""What rematerialization computes again and what it saves, as the compiler counts; gradients: test_dit.py, test_unet.py."""

import jax
import jax.numpy as jnp
import pytest

from jaxdiff import models
from jaxdiff.errors import UserError
from jaxdiff.models import layers
from jaxdiff.types import Cond
from tests.models import small

NETWORKS = {
  "dit": small.DIT,
  "scanned dit": small.DIT | {"scan": True, "depth": 4},
  "unet": small.UNET,
}


def lowered(config, size=16, batch=8):
  """The gradient of a network, from shapes alone."""
  module = models.build(config)
  z = jax.ShapeDtypeStruct((batch, size, size, module.channels), jnp.float32)
  t, label = (jax.ShapeDtypeStruct((batch,), dtype) for dtype in (jnp.float32, jnp.int32))
  params = jax.eval_shape(module.init, jax.random.key(0), z, t, Cond(label))["params"]

  def loss(params, z, t, label):
    return jnp.square(module.apply({"params": params}, z, t, Cond(label))).mean()

  return jax.jit(jax.grad(loss)).lower(params, z, t, label)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_less_is_kept_the_more_is_computed(name):
  none, dots, full = (
    lowered(NETWORKS[name] | {"remat": remat}).cost_analysis()["flops"] for remat in layers.REMAT
  )
  assert none < dots < full < 1.5 * none
  assert dots - none < (full - none) / 2  # the products are what costs


def test_the_less_is_kept_the_less_memory_is_planned():
  """Where blocks are a loop; elsewhere XLA:CPU undoes it."""
  plans = [
    lowered(NETWORKS["scanned dit"] | {"remat": remat}).compile().memory_analysis().temp_size_in_bytes
    for remat in layers.REMAT
  ]
  assert plans[0] > 2 * plans[1] > 2 * plans[2]


@pytest.mark.parametrize("name", ["dit", "unet"])
def test_an_unknown_name_is_answered_by_the_known_ones(name):
  with pytest.raises(UserError, match=r"'some'.*Known: dots, full, none"):
    models.build(NETWORKS[name] | {"remat": "some"})
