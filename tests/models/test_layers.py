"""What networks are made of."""

from types import SimpleNamespace

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


@pytest.mark.parametrize(
  ("platform", "version", "capability", "has"),
  [
    ("gpu", "PJRT C API\ncuda 12090", "8.0", True),
    ("gpu", "PJRT C API\ncuda 12090", "12.0", True),
    ("gpu", "PJRT C API\ncuda 12090", "7.5", False),
    ("gpu", "PJRT C API\nrocm 60300", "9.4", False),
    ("tpu", "PJRT C API\nTFRT TPU v5 lite", "", False),
  ],
)
def test_flash_attention_is_of_nvidias_gpus_from_ampere_on(platform, version, capability, has):
  client = SimpleNamespace(platform_version=version)
  device = SimpleNamespace(platform=platform, client=client, compute_capability=capability)
  assert layers.has_flash_attention(device) == has


def test_a_cpu_has_no_flash_attention():
  assert not layers.has_flash_attention(jax.devices()[0])
