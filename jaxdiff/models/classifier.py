"""Classifiers of noised images, p(label | z_t, t): the networks of models/ cut off before they become an image again.

Called as module.apply({"params": p}, z, t, train=False) -> logits f32[B,num_classes]; with features=True it returns what
the last linear layer reads instead, f32[B,D].
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from jaxdiff.models import layers
from jaxdiff.models.dit import EMBEDDINGS, DiT, Patches, layer_norm, modulate, zeros
from jaxdiff.models.unet import Encoder, UNet, fan_average
from jaxdiff.types import NULL_LABEL, Array, Cond

PRESETS: dict[str, dict[str, Any]] = {
  "adm_imagenet64": {  # Dhariwal & Nichol 2021, table 12 and their README: 65.4M parameters
    "num_classes": 1000,
    "channels": 3,
    "width": 128,
    "channel_mults": (1, 2, 3, 4),
    "num_blocks": 4,
    "attention_sizes": (32, 16, 8),
    "head_channels": 64,
    "scale_shift": True,
    "resblock_updown": True,
  },
}


class AttentionPool(nn.Module):
  """The mean of all pixels asks them, by attention, what matters; its answer stands for the image.

  Shapes: x: [B,H,W,C].  Returns dtype[B,C].
  Source: Radford et al. 2021 (CLIP), section 2.4; in a classifier of noised images Dhariwal & Nichol 2021, section 4.2.
  """

  head_channels: int
  attention: str = "auto"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    channels = x.shape[-1]
    heads = max(1, channels // self.head_channels)
    pixels = rearrange(x, "b h w c -> b (h w) c")
    tokens = jnp.concatenate([pixels.mean(axis=1, keepdims=True), pixels], axis=1)
    position = nn.initializers.normal(1 / math.sqrt(channels))
    tokens = tokens + self.param("position", position, tokens.shape[1:], jnp.float32).astype(tokens.dtype)
    qkv = layers.Linear(3 * channels, kernel_init=fan_average, dtype=self.dtype, name="qkv")(tokens)
    q, k, v = layers.split_heads(qkv, heads)
    return rearrange(layers.attend(q[:, :1], k, v, self.attention), "b 1 heads d -> b (heads d)")


class UNetClassifier(UNet):
  """The encoder of a UNet, pooled by attention.  Fields as a UNet's; it reads no label, so null_class has no part.

  Shapes: z: f32[B,H,W,channels]; t: f32[B], the model time.  Returns f32[B,num_classes], or features f32[B,C].
  Needs an rng named "dropout" where train is True and the dropout rate is not 0.
  Raises: UserError where the levels do not divide the image, or the heads the channels.
  Source: Dhariwal & Nichol 2021, section 4.2 and table 12.
  """

  @nn.compact
  def __call__(self, z: Array, t: Array, train: bool = False, features: bool = False) -> Array:
    self.check()
    self.check_image(z.shape[1:3])
    dtype = layers.dtype(self.dtype)
    embed = layers.Embedding(
      0, frequency_dim=self.width, dim=4 * self.width, kernel_init=fan_average, dtype=dtype, name="embedding"
    )
    _, h = self.half(Encoder, train, "encoder")(z, embed(t, no_label(z)))
    h = nn.silu(layers.GroupNorm(dtype, name="norm")(h))
    h = AttentionPool(self.head_channels or h.shape[-1] // self.heads, self.attention, dtype, name="pool")(h)
    logits = nn.Dense(self.num_classes, kernel_init=fan_average, dtype=dtype, name="out")(h)
    return (h if features else logits).astype(jnp.float32)


class DiTClassifier(DiT):
  """The blocks of a DiT, then the mean over patches.  Fields as a DiT's and a dropout rate; it reads no label.

  Shapes: z: f32[B,H,W,channels]; t: f32[B], the model time.  Returns f32[B,num_classes], or features f32[B,width].
  Needs an rng named "dropout" where train is True and the dropout rate is not 0.
  Raises: UserError where the patch size does not divide the image, or the heads the width.
  Source: blocks and conditioning Peebles & Xie 2022; the pooling Zhai et al. 2022 ("GAP"), section 3.1.
  """

  dropout: float = 0.0  # of the pooled features

  @nn.compact
  def __call__(self, z: Array, t: Array, train: bool = False, features: bool = False) -> Array:
    self.check()
    self.check_image(z.shape[1:3])
    dtype = layers.dtype(self.dtype)
    x = Patches(self.patch_size, self.width, dtype, name="patches")(z)
    kernel_init, _ = EMBEDDINGS[self.embedding_init]
    embed = layers.Embedding(0, 256, self.width, kernel_init=kernel_init, dtype=dtype, name="embedding")
    c = embed(t, no_label(z))
    x = self.trunk(x, c, None)
    modulation = layers.Linear(2 * self.width, kernel_init=zeros, dtype=dtype, name="modulation")(nn.silu(c))
    h = modulate(layer_norm(dtype)(x), *jnp.split(modulation, 2, axis=-1)).mean(axis=1)
    kept = nn.Dropout(self.dropout, deterministic=not train)(h)
    logits = layers.Linear(self.num_classes, dtype=dtype, name="out")(kept)
    return (h if features else logits).astype(jnp.float32)


def no_label(z: Array) -> Cond:
  return Cond(jnp.full(z.shape[:1], NULL_LABEL, jnp.int32))
