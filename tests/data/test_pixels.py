"""Bytes to [-1, 1] and back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.data import pixels


def test_every_byte_survives_the_round_trip():
  bytes_ = jnp.arange(256, dtype=jnp.uint8)
  signed = jax.jit(pixels.to_signed)(bytes_)
  np.testing.assert_array_equal(signed, pixels.to_signed(bytes_))
  np.testing.assert_allclose(signed, np.arange(256) / 127.5 - 1, atol=1e-7)
  np.testing.assert_array_equal(signed, -signed[::-1])
  assert signed.dtype == jnp.float32
  assert signed[0] == -1 and signed[255] == 1
  back = jax.jit(pixels.to_uint8)(signed)
  assert back.dtype == jnp.uint8
  np.testing.assert_array_equal(back, bytes_)


def test_values_out_of_range_are_clipped_and_halves_rounded():
  np.testing.assert_array_equal(pixels.to_uint8(jnp.array([-9.0, -1.001, 1.001, 9.0])), [0, 0, 255, 255])
  np.testing.assert_array_equal(pixels.to_uint8(jnp.array([0.6, 1.4]) / 127.5 - 1), [1, 1])


def test_latents_pass_as_they_are():
  latents = jnp.array([-3.0, 200.0])
  assert pixels.to_signed(latents) is latents
