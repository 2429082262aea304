"""Networks small enough to compile in a second or two, and what to call them with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import models
from jaxdiff.models import controlnet
from jaxdiff.types import Cond

DIT = {
  "name": "dit",
  "num_classes": 5,
  "channels": 2,
  "learn_sigma": True,
  "patch_size": 2,
  "width": 16,
  "depth": 3,
  "heads": 2,
}
UNET = {
  "name": "unet",
  "num_classes": 5,
  "channels": 2,
  "width": 8,
  "channel_mults": (1, 2),
  "num_blocks": 1,
  "attention_sizes": (4,),
  "heads": 2,
}
BASES = {"dit": DIT, "unet": UNET}  # of control branches
BLOCKS = 2  # of the DiT's three that its branch copies


def inputs(size=8, channels=2, batch=4):
  """(z, t, cond) for a batch with a null label (the last but one), and num_classes (the last)."""
  z = jax.random.normal(jax.random.key(1), (batch, size, size, channels))
  t = jnp.linspace(0.0, 999.0, batch)
  return z, t, Cond(jnp.asarray([0, 3, -1, 5])[:batch])


# Compiling is most of these tests' time, and they compute next to nothing.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def make(config, size=8, **changes):
  """(module, params, inputs) with parameters of no particular start, so that nothing is trivially zero."""
  module = models.build(config | changes)
  arguments = inputs(size, module.channels)
  random = np.random.default_rng(0)
  shapes = jax.eval_shape(module.init, jax.random.key(0), *arguments)["params"]

  def draw(path, leaf):
    around = 1.0 if jax.tree_util.keystr(path).endswith("['scale']") else 0.0
    return jnp.asarray(around + random.normal(size=leaf.shape) * 0.5 / np.sqrt(leaf.shape[-1]), leaf.dtype)

  return module, jax.tree_util.tree_map_with_path(draw, shapes), arguments


def branch(name, **changes):
  """(base module, its parameters, fresh branch module, its parameters as copied from the base, inputs with a hint)."""
  base, base_params, (z, t, cond) = make(BASES[name], **changes)
  depth = {"depth": BLOCKS} if name == "dit" else {}
  module = models.build(BASES[name] | changes | depth, models.CONTROLS)
  arguments = z, t, cond.replace(hint=jax.random.uniform(jax.random.key(2), (*z.shape[:3], 1)))
  params = jit(module.init)(jax.random.key(3), *arguments)["params"]
  return base, base_params, module, controlnet.copied(params, base_params), arguments


def woken(params):
  """A branch's parameters with its own layers moved away from zero."""
  rng = np.random.default_rng(1)
  own = {name for name in params if name.startswith(("zero_", "hint"))}
  move = lambda a: a + 0.3 * rng.standard_normal(a.shape, np.float32)
  return {name: jax.tree.map(move, leaf) if name in own else leaf for name, leaf in params.items()}


def fresh(config, **changes):
  """(module, params, inputs) with the parameters that training starts from."""
  module = models.build(config | changes)
  arguments = inputs(8, module.channels)
  return module, jit(module.init)(jax.random.key(0), *arguments)["params"], arguments


def apply(module, params, arguments, **kwargs):
  """One compiled forward pass."""
  return jit(lambda p, a: module.apply({"params": p}, *a, **kwargs))(params, arguments)


def gradient(module, params, arguments, **kwargs):
  """Of the mean square of the output."""
  loss = lambda p: jnp.square(module.apply({"params": p}, *arguments, **kwargs)).mean()
  return jit(jax.grad(loss))(params)


def count(config, size):
  """Parameters of the network that a config describes, without making them."""
  module = models.build(config)
  z = jax.ShapeDtypeStruct((1, size, size, module.channels), jnp.float32)
  t, label = (jax.ShapeDtypeStruct((1,), dtype) for dtype in (jnp.float32, jnp.int32))
  return sum(
    p.size for p in jax.tree.leaves(jax.eval_shape(module.init, jax.random.key(0), z, t, Cond(label)))
  )
