"""Keys and noise for a batch, from one key or from one for each image."""

from __future__ import annotations

import jax

from jaxdiff.types import Array


def noise_like(key: Array, z: Array) -> Array:
  """N(0, I) of z's shape, from one key or from one key for each example (key: [] or [B])."""
  if key.ndim == 0:
    return jax.random.normal(key, z.shape, z.dtype)
  return jax.vmap(lambda k: jax.random.normal(k, z.shape[1:], z.dtype))(key)


def fold_in(key: Array, i: Array | int) -> Array:
  """jax.random.fold_in for one key or for one key for each example."""
  return jax.random.fold_in(key, i) if key.ndim == 0 else jax.vmap(lambda k: jax.random.fold_in(k, i))(key)
