"""What networks are made of."""

import jax
import jax.numpy as jnp
import pytest

from jaxdiff.models import layers


@pytest.mark.parametrize(
  ("dtype", "shape", "flash", "chosen"),
  [
    ("bfloat16", (1, 16, 2, 72), True, "cudnn"),
    ("float16", (1, 16, 2, 128), True, "cudnn"),
    ("bfloat16", (1, 16, 2, 72), False, "xla"),
    ("float32", (1, 16, 2, 72), True, "xla"),
    ("bfloat16", (1, 16, 2, 136), True, "xla"),
    ("bfloat16", (1, 16, 2, 12), True, "xla"),
    ("bfloat16", (1, 1, 2, 72), True, "xla"),
  ],
)
def test_auto_takes_flash_attention_where_it_works(dtype, shape, flash, chosen, monkeypatch):
  monkeypatch.setattr(layers, "has_flash_attention", lambda device: flash)
  asked = []
  monkeypatch.setattr(
    jax.nn, "dot_product_attention", lambda q, k, v, implementation: asked.append(implementation)
  )
  q = jnp.zeros(shape, dtype)
  for name in ("auto", "xla", "cudnn"):
    layers.attend(q, q, q, name)
  assert asked == [chosen, "xla", "cudnn"]


def test_a_cpu_has_no_flash_attention():
  assert not layers.has_flash_attention(jax.devices()[0])
