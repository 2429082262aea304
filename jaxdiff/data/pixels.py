"""Between stored pixels and what the model computes with: uint8 in 0..255, float in [-1, 1]; hints in [0, 1]."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def to_signed(image: jax.Array) -> jax.Array:
  """x / 127.5 - 1; what already is floating point (latents) is returned as it is.

  Shapes: image: u8[...].  Returns f32[...] in [-1, 1].
  """
  if jnp.issubdtype(image.dtype, jnp.floating):
    return image
  # x / 127.5 - 1 itself gives 1.0000001 for 255 under jit: XLA multiplies by the reciprocal.
  return (2 * image.astype(jnp.float32) - 255) / 255


def to_uint8(x: jax.Array) -> jax.Array:
  """The inverse of to_signed: rounded, and clipped to the range of a byte.

  Shapes: x: f32[...].  Returns u8[...].
  """
  return jnp.round(jnp.clip((x + 1) * 127.5, 0, 255)).astype(jnp.uint8)


def to_unit(hint: jax.Array) -> jax.Array:
  """x / 255; what already is floating point is returned as it is.

  Shapes: hint: u8[...].  Returns f32[...] in [0, 1].
  """
  return hint if jnp.issubdtype(hint.dtype, jnp.floating) else hint.astype(jnp.float32) / 255
