"""The Diffusion Transformer (DiT) of Peebles & Xie 2022 (arXiv 2212.09748), with adaLN-Zero blocks.

An image becomes a sequence of patches; transformer blocks, each shifted, scaled and gated by the time and
the label, turn it into a sequence of predictions, and these become an image again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from jaxdiff import errors
from jaxdiff.errors import UserError
from jaxdiff.models import layers
from jaxdiff.types import Array, Cond

SIZES: dict[str, dict[str, int]] = {  # Table 1 of the paper; the first three are ours, for a CPU
  "nano": {"width": 64, "depth": 4, "heads": 2},
  "tiny": {"width": 128, "depth": 6, "heads": 4},
  "mini": {"width": 256, "depth": 8, "heads": 4},
  "S": {"width": 384, "depth": 12, "heads": 6},
  "B": {"width": 768, "depth": 12, "heads": 12},
  "L": {"width": 1024, "depth": 24, "heads": 16},
  "XL": {"width": 1152, "depth": 28, "heads": 16},
}

quiet = nn.initializers.normal(0.02)
# how the embedding starts -> its layers of the time, its table of labels.  With the paper's, time and label together are of order
# 0.03, and a short run hardly hears them; "unit" is of order 1, as in a UNet.
EMBEDDINGS: dict[str, tuple[layers.Init, layers.Init]] = {
  "paper": (quiet, quiet),
  "unit": (nn.initializers.lecun_normal(), nn.initializers.normal(1.0)),
}

zeros = nn.initializers.zeros


def position_table(height: int, width: int, dim: int) -> np.ndarray:
  """The fixed position of each patch: sines and cosines of its column (first half of dim), then of its row.

  For a coordinate p, entries sin(p w_i), then cos(p w_i), with w_i = 10000^(-i / (dim / 4)), i < dim / 4.

  Shapes: height, width: patches of the image.  Returns f64[height * width, dim], row-major; dim % 4 == 0.
  Source: DiT section 3.1 ("standard ViT frequency-based"); the order is that of its code.
  """
  w = 10_000.0 ** (-np.arange(dim // 4) / (dim / 4))
  row, column = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
  angles = [position.reshape(-1, 1) * w for position in (column, row)]
  return np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=-1)


def modulate(x: Array, shift: Array, scale: Array) -> Array:
  """x (1 + scale) + shift, the same for all tokens of an image. Shapes: x: [B,N,D]; shift, scale: [B,D]."""
  return x * (1 + scale[:, None]) + shift[:, None]


def layer_norm(dtype: Any) -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=1e-6, use_scale=False, use_bias=False, dtype=dtype)


class Attention(nn.Module):
  """Multi-head self-attention with one fused projection for q, k and v.

  `qk_norm` divides q and k by their root mean square (times a learned scale), which keeps the logits of
  large models bounded in half precision (Esser et al. 2024, section 5.3.2).

  Shapes: x: [B,N,D].  Returns dtype[B,N,D].
  """

  heads: int
  qk_norm: bool = False
  attention: str = "auto"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    width = x.shape[-1]
    qkv = layers.Linear(3 * width, dtype=self.dtype, name="qkv")(x)
    q, k, v = layers.split_heads(qkv, self.heads)
    if self.qk_norm:
      q = nn.RMSNorm(epsilon=1e-6, dtype=self.dtype, name="q_norm")(q)
      k = nn.RMSNorm(epsilon=1e-6, dtype=self.dtype, name="k_norm")(k)
    out = rearrange(layers.attend(q, k, v, self.attention), "b n heads d -> b n (heads d)")
    return layers.Linear(width, dtype=self.dtype, name="out")(out)


class MLP(nn.Module):
  """Two linear layers with a tanh-approximated GELU between. Shapes: x: [B,N,D].  Returns dtype[B,N,D]."""

  hidden: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    h = layers.Linear(self.hidden, dtype=self.dtype, name="in")(x)
    return layers.Linear(x.shape[-1], dtype=self.dtype, name="out")(nn.gelu(h))


class Block(nn.Module):
  """x + gate_1 Attention(modulate(LN(x))), then x + gate_2 MLP(modulate(LN(x))).

  Shift, scale and gate are linear in silu(c). That layer starts at zero, so a fresh block is the identity
  (adaLN-Zero). A ControlNet's `residual` is added to the result.

  Shapes: x, residual: [B,N,D]; c: [B,D].  Returns (dtype[B,N,D], None), the pair that nn.scan wants.
  Source: DiT section 3.2, figure 3.
  """

  heads: int
  mlp_ratio: float = 4.0
  qk_norm: bool = False
  attention: str = "auto"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, c: Array, residual: Array | None = None) -> tuple[Array, None]:
    width = x.shape[-1]
    modulation = layers.Linear(6 * width, kernel_init=zeros, dtype=self.dtype, name="modulation")(nn.silu(c))
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(modulation, 6, axis=-1)

    attention = Attention(self.heads, self.qk_norm, self.attention, self.dtype, name="attention")
    x = x + gate_1[:, None] * attention(modulate(layer_norm(self.dtype)(x), shift_1, scale_1))
    mlp = MLP(int(self.mlp_ratio * width), self.dtype, name="mlp")
    x = x + gate_2[:, None] * mlp(modulate(layer_norm(self.dtype)(x), shift_2, scale_2))
    return (x if residual is None else x + residual), None


class FinalLayer(nn.Module):
  """Linear(modulate(LN(x))), from tokens to the values of a patch; all zero at first.

  Shapes: x: [B,N,D]; c: [B,D].  Returns dtype[B,N,features].
  """

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, c: Array) -> Array:
    modulation = layers.Linear(2 * x.shape[-1], kernel_init=zeros, dtype=self.dtype, name="modulation")(
      nn.silu(c)
    )
    shift, scale = jnp.split(modulation, 2, axis=-1)
    x = modulate(layer_norm(self.dtype)(x), shift, scale)
    return layers.Linear(self.features, kernel_init=zeros, dtype=self.dtype, name="out")(x)


class Patches(nn.Module):
  """A linear embedding of each patch, plus its position. Shapes: z: f32[B,H,W,C].  Returns dtype[B,N,width]."""

  size: int
  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, z: Array) -> Array:
    rows, columns = z.shape[1] // self.size, z.shape[2] // self.size
    x = rearrange(z, "b (h p) (w q) c -> b (h w) (p q c)", p=self.size, q=self.size)
    x = layers.Linear(self.width, dtype=self.dtype, name="embed")(x)
    return x + position_table(rows, columns, self.width).astype(x.dtype)


class DiT(nn.Module):
  """The whole network. Fields are the keys of a config's model section.

  Shapes: z: f32[B,H,W,channels]; t: f32[B], the model time; cond.label: i32[B], NULL_LABEL or num_classes for
  none; residuals: up to `depth` arrays [B,N,D], the i-th added after block i (what a ControlNet gives).
  Returns f32[B,H,W,outputs channels], with learn_sigma channels more, the variance of the prediction.
  Raises: UserError where the patch size does not divide the image, or the heads the width.
  Source: Peebles & Xie 2022, section 3; initialisation as in the paper's code, of time and label with embedding_init=paper.
  """

  num_classes: int = 10
  channels: int = 3
  learn_sigma: bool = False
  outputs: int = 1  # images that are predicted, as the parameterization has it (tasks set it, not a config)
  patch_size: int = 2
  width: int = 384
  depth: int = 12
  heads: int = 6
  mlp_ratio: float = 4.0
  embedding_init: str = "paper"  # how time and label start: a name in EMBEDDINGS
  qk_norm: bool = False
  scan: bool = (
    False  # one compiled block, parameters stacked [depth, ...]: compiles faster, runs 20% slower on CPU
  )
  remat: str = "none"  # what the gradient's pass computes again: see layers.REMAT
  guidance_range: Sequence[float] = ()  # of the scale that a guided student takes as an input; empty: none
  attention: str = "auto"
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, z: Array, t: Array, cond: Cond, train: bool = False, residuals: Sequence[Array] | None = None
  ) -> Array:
    del train  # DiT has no dropout
    self.check()
    self.check_image(z.shape[1:3])
    dtype = layers.dtype(self.dtype)
    x = Patches(self.patch_size, self.width, dtype, name="patches")(z)
    c = self.embedding()(t, cond)
    x = self.trunk(x, c, residuals)
    features = self.patch_size**2 * self.channels * (self.outputs + self.learn_sigma)
    x = FinalLayer(features, dtype, name="final")(x, c).astype(jnp.float32)
    height = z.shape[1] // self.patch_size
    return rearrange(x, "b (h w) (p q c) -> b (h p) (w q) c", h=height, p=self.patch_size, q=self.patch_size)

  def trunk(self, x: Array, c: Array, residuals: Sequence[Array] | None) -> Array:
    """All blocks, one after the other, unrolled or as a scan."""
    if not self.scan:
      for i in range(self.depth):
        residual = residuals[i] if residuals is not None and i < len(residuals) else None
        x, _ = self.block(f"block_{i}")(x, c, residual)
      return x
    settings = self.block_settings()
    stack = nn.scan(
      layers.rematerialized(Block, self.remat, prevent_cse=False),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(nn.broadcast, 0),
      length=self.depth,
    )
    stacked = None
    if residuals is not None:
      missing = self.depth - len(residuals)
      stacked = jnp.stack([*residuals, *[jnp.zeros_like(x)] * missing])
    x, _ = stack(*settings, name="blocks")(x, c, stacked)
    return x

  @nn.nowrap
  def embedding(self) -> layers.Embedding:
    """The module that embeds time and label."""
    kernel_init, table_init = EMBEDDINGS[self.embedding_init]
    return layers.Embedding(
      self.num_classes,
      256,
      self.width,
      guided=bool(self.guidance_range),
      kernel_init=kernel_init,
      table_init=table_init,
      dtype=layers.dtype(self.dtype),
      name="embedding",
    )

  @nn.nowrap
  def block(self, name: str) -> Any:
    """One block with this network's settings."""
    return layers.rematerialized(Block, self.remat)(*self.block_settings(), name=name)

  @nn.nowrap
  def block_settings(self) -> tuple[Any, ...]:
    return (self.heads, self.mlp_ratio, self.qk_norm, self.attention, layers.dtype(self.dtype))

  @nn.nowrap
  def check_image(self, size: Sequence[int]) -> None:
    """Raises UserError where the patch size does not divide an image's height and width."""
    layers.check_size(size, self.patch_size, f"patch size {self.patch_size} (config.model.patch_size)")

  @nn.nowrap
  def check(self) -> None:
    """Raises UserError for settings that do not fit together, whatever the image."""
    layers.dtype(self.dtype)
    layers.check_attention(self.attention)
    layers.check_remat(self.remat)
    if self.embedding_init not in EMBEDDINGS:
      raise errors.unknown("embedding_init (config.model.embedding_init)", self.embedding_init, EMBEDDINGS)
    if self.width % self.heads:
      raise UserError(
        f"width {self.width} (config.model.width) is not divisible by {self.heads} heads (config.model.heads). "
        f"Use {-(-self.width // self.heads) * self.heads} or another number of heads."
      )
    if self.width % 4:
      raise UserError(
        f"width {self.width} (config.model.width) is not divisible by 4, which the position table needs."
      )
