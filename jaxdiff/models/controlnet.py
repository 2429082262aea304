"""Control branches: trainable copies of a frozen base's first half, which read a hint and correct the base by it.

A branch is called as module.apply({"params": p}, z, t, cond, train=False) and returns what the base takes as `residuals`.
Every path from the hint to the base ends in a layer that starts at zero: a fresh branch changes nothing.

Source: Zhang, Rao & Agrawala 2023 (ControlNet, arXiv 2302.05543); for transformers Chen et al. 2024 (PixArt-delta,
arXiv 2401.05252), section 3.2.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from jaxdiff.errors import UserError
from jaxdiff.models import layers, unet
from jaxdiff.models.dit import DiT, Patches, zeros
from jaxdiff.models.unet import Encoder, UNet, conv
from jaxdiff.types import Array, Cond, PyTree

DECODER = ("decoder", "norm", "out")  # of a UNet's parameters: what comes after the controls
ZERO = "zero_"  # what the names of the layers begin with that the controls come from
HINT_WIDTHS = (16, 32)  # channels of a hint encoder's convolutions at the hint's own size


class HintEncoder(nn.Module):
  """A small convolutional network from a hint to features of the base's size, the last convolution zero at first.

  A hint that is 2^k times larger than what the base works on (an autoencoder's latents) is halved k times.

  Shapes: hint: f32[B,H 2^k,W 2^k,Ch] in [0, 1].  Returns dtype[B,H,W,features].
  Source: Zhang et al. 2023, section 3.3 (there four convolutions from 512x512 to 64x64).
  """

  features: int
  size: int  # H
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, hint: Array) -> Array:
    h = hint.astype(self.dtype)
    for i, width in enumerate(HINT_WIDTHS):
      h = nn.silu(conv(width, 3, self.dtype, f"in_{i}")(h))
    for i in range(halvings(hint, self.size)):
      h = nn.silu(conv(2 * h.shape[-1], 3, self.dtype, f"down_{i}", stride=2)(h))
    return conv(self.features, 3, self.dtype, "out", init=zeros)(h)


class UNetControl(UNet):
  """The copy of a UNet's encoder and middle; a 1x1 convolution, zero at first, on each of their results.

  Fields are the base's.  The hint is added once, after the first convolution.

  Shapes: z: f32[B,H,W,channels]; t: f32[B], the model time; cond.hint: f32[B,H 2^k,W 2^k,Ch] in [0, 1].
  Returns (skips, middle) like the Encoder's.
  Source: Zhang et al. 2023, section 3.2 and figure 3.
  """

  @nn.compact
  def __call__(self, z: Array, t: Array, cond: Cond, train: bool = False) -> tuple[tuple[Array, ...], Array]:
    dtype = layers.dtype(self.dtype)
    c = self.embedding()(t, cond)
    hint = HintEncoder(self.width * self.channel_mults[0], z.shape[1], dtype, name="hint")(_hint(cond))
    skips, middle = self.half(Encoder, train, "encoder")(z, c, hint)

    def zero(h: Array, name: str) -> Array:
      return conv(h.shape[-1], 1, dtype, f"{ZERO}{name}", init=unet.zeros)(h)

    return tuple(zero(skip, str(i)) for i, skip in enumerate(skips)), zero(middle, "middle")


class DiTControl(DiT):
  """The copy of a DiT's first `depth` blocks; a linear layer, zero at first, on the result of each.

  Fields are the base's but for depth, the number of blocks that are copied.  The hint enters through a patch embedding of
  its own, zero at first, and is added to the copy's input; the i-th result is added to the base's stream after block i.

  Shapes: z: f32[B,H,W,channels]; t: f32[B], the model time; cond.hint: f32[B,H 2^k,W 2^k,Ch] in [0, 1].
  Returns `depth` arrays dtype[B,N,width].
  Source: Chen et al. 2024, section 3.2 and figure 3 ("ControlNet-Transformer").
  """

  @nn.compact
  def __call__(self, z: Array, t: Array, cond: Cond, train: bool = False) -> tuple[Array, ...]:
    del train  # DiT has no dropout
    dtype = layers.dtype(self.dtype)
    hint = _hint(cond)
    patch = self.patch_size * 2 ** halvings(hint, z.shape[1])
    hints = rearrange(hint, "b (h p) (w q) c -> b (h w) (p q c)", p=patch, q=patch)
    x = Patches(self.patch_size, self.width, dtype, name="patches")(z)
    x = x + layers.Linear(self.width, kernel_init=zeros, dtype=dtype, name="hint")(hints)
    c = self.embedding()(t, cond)
    controls = []
    for i in range(self.depth):
      x, _ = self.block(f"block_{i}")(x, c)
      controls.append(layers.Linear(self.width, kernel_init=zeros, dtype=dtype, name=f"{ZERO}{i}")(x))
    return tuple(controls)


def copied(branch: PyTree, base: PyTree) -> PyTree:
  """A branch's parameters with the base's wherever the base has them; what only the branch has stays.

  Blocks that a base has stacked (config.model.scan) are taken apart.
  """

  def origin(name: str, own: PyTree) -> PyTree:
    if name.startswith("block_") and "blocks" in base:
      return jax.tree.map(lambda stacked: stacked[int(name.removeprefix("block_"))], base["blocks"])
    return base.get(name, own)

  return {name: origin(name, own) for name, own in branch.items()}


def zero_norms(branch: PyTree) -> dict[str, Array]:
  """The Euclidean norm of each layer that started at zero: by name those of the controls, and `hint`, by which the hint comes in.

  They tell how far the branch has come to act.  f32[] each.
  """
  layers = {name.removeprefix(ZERO): branch[name] for name in branch if name.startswith(ZERO)}
  layers["hint"] = branch["hint"].get("out", branch["hint"])
  return {
    name: jnp.sqrt(sum(jnp.sum(jnp.square(a)) for a in jax.tree.leaves(layer)))
    for name, layer in layers.items()
  }


def num_controls(branch: PyTree) -> int:
  """How many residuals a branch gives."""
  return sum(name.startswith(ZERO) for name in branch)


def halvings(hint: Array, size: int) -> int:
  """k in hint size = 2^k size.  Raises UserError where there is no such k."""
  times, rest = divmod(hint.shape[1], size)
  if rest or times & (times - 1) or not times:
    raise UserError(
      f"the hint is {hint.shape[2]}x{hint.shape[1]} pixels; it must be {size}x{size}, what the model works on, or a power of "
      "two times that."
    )
  return times.bit_length() - 1


def _hint(cond: Cond) -> Array:
  if cond.hint is None:
    raise UserError("a control branch needs a hint (config.sample.hint).")
  return cond.hint
