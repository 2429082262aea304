"""What both networks are made of: normalisation, attention, the embedding of time and label.

Everything computes in `dtype` and keeps its parameters in float32; statistics and softmax stay in float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from jaxdiff import errors
from jaxdiff.types import NULL_LABEL, Array, Cond

PER_SCALE = 100.0  # a scale of guidance, 1 to about 10, becomes as long as a model time

Dtype = Any
Init = Callable[..., Any]

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
Implementation = Literal["xla", "cudnn"]  # of jax.nn.dot_product_attention

CONVOLVED = "convolved"  # what rematerialization knows a convolution's result by
# name -> which of a block's results are kept from the forward pass for the gradient; the others are computed again
REMAT: dict[str, Callable[..., bool]] = {
  "none": jax.checkpoint_policies.everything_saveable,
  "dots": jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # of linear layers, not of attention
    jax.checkpoint_policies.save_only_these_names(CONVOLVED),
  ),
  "full": jax.checkpoint_policies.nothing_saveable,
}


def rematerialized(block: Any, name: str, **options: Any) -> Any:
  """A module class whose instances keep what a name of REMAT says and compute the rest again: less memory, the same numbers.

  Source: Chen et al. 2016 (arXiv 1604.06174).
  """
  return block if name == "none" else nn.remat(block, policy=REMAT[name], **options)


def dtype(name: str) -> Dtype:
  """The compute dtype of a name in a config. Raises UserError for one that is not in DTYPES."""
  if name not in DTYPES:
    raise errors.unknown("dtype (config.model.dtype)", name, DTYPES)
  return DTYPES[name]


def check_attention(name: str) -> None:
  """Raises UserError for an implementation that is not in ATTENTION."""
  if name not in ATTENTION:
    raise errors.unknown("attention (config.model.attention)", name, ATTENTION)


def check_remat(name: str) -> None:
  """Raises UserError for a rematerialization that is not in REMAT."""
  if name not in REMAT:
    raise errors.unknown("rematerialization (config.model.remat)", name, REMAT)


def check_size(size: Sequence[int], divisor: int, what: str) -> None:
  """Raises UserError where `divisor`, which `what` describes, does not divide an image's height and width."""
  for side in size:
    if side % divisor:
      near = -(-side // divisor) * divisor
      raise errors.UserError(
        f"image size {side} is not divisible by {what}. Resize to {near} with --config.data.image_size={near}."
      )


def attend(q: Array, k: Array, v: Array, implementation: str = "auto") -> Array:
  """softmax(q k^T / sqrt(d)) v for each head.

  Shapes: q, k, v: [B,N,heads,d].  Returns [B,N,heads,d] of the same dtype.
  Raises: UserError for an implementation that is not in ATTENTION.
  Source: Vaswani et al. 2017, eq. 1.
  """
  check_attention(implementation)
  return jax.nn.dot_product_attention(q, k, v, implementation=ATTENTION[implementation](q))


def flash_where_it_can(q: Array) -> Implementation:
  """cudnn for queries f16|bf16[B,N,heads,8k] with N > 1 and at most 128 channels, on an NVIDIA GPU from Ampere on; else xla.

  cuDNN's flash attention never writes the N x N weights to memory.  Source: Dao et al. 2022 (arXiv 2205.14135).
  """
  tokens, channels = q.shape[1], q.shape[-1]
  half = q.dtype in (jnp.bfloat16, jnp.float16)
  fits = half and tokens > 1 and channels % 8 == 0 and channels <= 128
  return "cudnn" if fits and has_flash_attention(default_device()) else "xla"


def default_device() -> jax.Device:
  """Where arrays go that are not placed: jax.default_device, else the first device."""
  chosen = jax.default_device.value
  return jax.devices(chosen)[0] if chosen is None or isinstance(chosen, str) else chosen


def has_flash_attention(device: jax.Device) -> bool:
  """Whether it is an NVIDIA GPU of compute capability 8.0 or newer."""
  if device.platform not in ("gpu", "cuda") or "cuda" not in device.client.platform_version:
    return False
  return float(device.compute_capability) >= 8.0


# name -> the implementation for such queries
ATTENTION: dict[str, Callable[[Array], Implementation]] = {
  "auto": flash_where_it_can,
  "xla": lambda q: "xla",
  "cudnn": lambda q: "cudnn",
}


Around = tuple[tuple[int, int], tuple[int, int]]  # rows of zeros above and below, columns left and right


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: Array, kernel: Array, around: Around | None = None) -> Array:
  """The convolution of stride 1 with zeros around, by default as many as keep the size; a gradient of its own.

  The gradient of x is written as the convolution with the kernel turned by 180 degrees, channels exchanged: the same
  numbers as JAX's own rule, whose form XLA:CPU runs 14 times slower inside a loop, where a classifier's gradient is taken.

  Shapes: x: [B,H,W,C]; kernel: [k,k',C,D], odd but where `around` is given.  Returns [B,H,W,D].
  """
  numbers = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), around or _keeping(kernel), dimension_numbers=numbers
  )


def _keeping(kernel: Array) -> Around:
  height, width = (size // 2 for size in kernel.shape[:2])
  return (height, height), (width, width)


def _convolve_forward(x: Array, kernel: Array, around: Around | None) -> tuple[Array, tuple[Array, Array]]:
  return convolve(x, kernel, around), (x, kernel)


def _convolve_backward(around: Around | None, kept: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
  x, kernel = kept
  rows, columns = (
    (size - 1 - before, size - 1 - after)
    for size, (before, after) in zip(kernel.shape, around or _keeping(kernel), strict=False)
  )
  of_x = convolve(slope, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), (rows, columns))
  (of_kernel,) = jax.linear_transpose(lambda kernel: convolve.fun(x, kernel, around), kernel)(slope)
  return of_x, of_kernel


convolve.defvjp(_convolve_forward, _convolve_backward)


def convolve_doubled(x: Array, kernel: Array) -> Array:
  """convolve(the map with each pixel four times, kernel), for 4/9 of its products.

  A square of the doubled map is one pixel of x: of three rows that the kernel covers there two are of the same row of x. So each of
  a square's four pixels is a 2x2 convolution of x itself, by sums of the kernel's taps.

  Shapes: x: [B,H,W,C]; kernel: [3,3,C,D].  Returns [B,2H,2W,D].
  Source: Aitken et al. 2017 (arXiv 1707.02937), who start a sub-pixel convolution so that it is one of the resized map.
  """
  before_or_after = ((1, 0), (0, 1))
  pixels = [
    convolve(x, kernel_of_pixel, (rows, columns))
    for kernel_of_row, rows in zip(_merged(kernel, 0), before_or_after, strict=True)
    for kernel_of_pixel, columns in zip(_merged(kernel_of_row, 1), before_or_after, strict=True)
  ]
  return rearrange(pixels, "(p q) b h w d -> b (h p) (w q) d", p=2)


def _merged(kernel: Array, axis: int) -> tuple[Array, Array]:
  """A kernel's three taps along an axis as two, for the first and for the second of two equal pixels: sums of what falls on one.

  Not an einsum: inside a sampler's loop that cost as much as the convolutions.
  """
  before, at, after = jnp.split(kernel, 3, axis)
  return jnp.concatenate([before, at + after], axis), jnp.concatenate([before + at, after], axis)


def frequencies(t: Array, dim: int, max_period: float = 10_000.0) -> Array:
  """(cos(w_i t), sin(w_i t)) with w_i = max_period^(-i / (dim / 2)), i = 0 .. dim/2 - 1.

  Shapes: t: f32[B], the model time (for DDPM's tables 0..999).  Returns f32[B,dim]; dim is even.
  Source: Vaswani et al. 2017, section 3.5; cosines first as in Dhariwal & Nichol 2021's and DiT's code.
  """
  half = dim // 2
  w = np.exp(-math.log(max_period) * np.arange(half) / half).astype(np.float32)
  angle = t.astype(jnp.float32)[:, None] * w
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class Linear(nn.Module):
  """x W + b on the last axis: nn.Dense, with the other axes flattened to one.

  With more axes XLA:CPU copies a transposed output gradient for each weight gradient and multiplies slower.

  Shapes: x: [...,D].  Returns dtype[...,features].
  """

  features: int
  kernel_init: Init = nn.initializers.xavier_uniform()
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
    y = x.reshape(-1, x.shape[-1]).astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)
    return y.reshape(*x.shape[:-1], self.features)


class Embedding(nn.Module):
  """MLP(frequencies(t)) + table[label]: what every block is told about its input.

  The table's last row, `num_classes`, is the null class; NULL_LABEL (-1) names it too. Without that row
  (`null_class=False`: a purely conditional model) a null label adds nothing. `num_classes=0`: no labels.
  A label beyond the table gives NaN, which stops a run, rather than some other class.  With `guided` the scale of guidance is
  told too, through a layer that starts at zero; without cond.guidance it is 1.

  Shapes: t: f32[B], cond.label: i32[B], cond.guidance: f32[B] or None.  Returns dtype[B,dim].
  Source: of the scale as an input Meng et al. 2023 (arXiv 2210.03142), section 3.1.
  """

  num_classes: int
  frequency_dim: int
  dim: int
  null_class: bool = True
  guided: bool = False
  kernel_init: Init = nn.initializers.normal(0.02)
  table_init: Init = nn.initializers.normal(0.02)
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, t: Array, cond: Cond) -> Array:
    dense = functools.partial(nn.Dense, self.dim, kernel_init=self.kernel_init, dtype=self.dtype)
    time = dense(name="time_in")(frequencies(t, self.frequency_dim))
    time = dense(name="time_out")(nn.silu(time))
    if self.guided:
      scale = jnp.ones_like(t) if cond.guidance is None else cond.guidance
      waves = frequencies(PER_SCALE * scale, self.frequency_dim)
      time = time + dense(kernel_init=nn.initializers.zeros, name="guidance")(waves)
    if self.num_classes == 0:
      return time
    rows = self.num_classes + self.null_class
    table = nn.Embed(rows, self.dim, embedding_init=self.table_init, dtype=self.dtype, name="label")
    is_null = cond.label == NULL_LABEL
    if self.null_class:
      return time + table(jnp.where(is_null, self.num_classes, cond.label))
    return time + jnp.where(is_null[:, None], 0, table(jnp.where(is_null, 0, cond.label)))


class GroupNorm(nn.Module):
  """GroupNorm over up to 32 groups of channels (fewer where 32 does not divide them), then scale and bias.

  A condition's `scale` and `shift` come after these: norm(x) (1 + scale) + shift.

  Shapes: x: [B,H,W,C]; scale, shift: [B,C] or None.  Returns dtype[B,H,W,C]; statistics in float32.
  Source: Wu & He 2018, eq. 1-3; with a condition, Dhariwal & Nichol 2021, section 3 (AdaGN).
  """

  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, scale: Array | None = None, shift: Array | None = None) -> Array:
    channels = x.shape[-1]
    gain = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)[None]
    bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)[None]
    if scale is not None and shift is not None:
      gain, bias = gain * (1 + scale), bias * (1 + scale) + shift
    return group_norm(x, gain, bias, math.gcd(32, channels)).astype(self.dtype)


def group_norm(x: Array, gain: Array, bias: Array, groups: int, epsilon: float = 1e-5) -> Array:
  """(x - mean) / sqrt(variance + epsilon) gain + bias, mean and variance over the pixels of a group of channels.

  Written as x a + b, one a and b for each image and channel, from sums over pixels alone: forward and backward
  are then two reductions and one pass each. Spelt out on the grouped image, XLA:CPU recomputes the chain behind
  it in every reduction (a UNet's train step took 1.16 times as long).

  Shapes: x: [B,H,W,C]; gain, bias: f32[B or 1,C].  Returns f32[B,H,W,C].
  """
  x = x.astype(jnp.float32)
  channels = x.shape[-1]
  # From channels to groups and back by products with a 0/1 matrix: XLA never fuses these, so it cannot redo
  # the small sums, with their index arithmetic, for every pixel.
  member = np.repeat(np.eye(groups, dtype=np.float32), channels // groups, axis=0)  # [C,groups]
  product = functools.partial(jnp.matmul, precision="highest")
  mean = product(x.mean((1, 2)), member) * (groups / channels)
  mean_square = product(jnp.square(x).mean((1, 2)), member) * (groups / channels)
  rate = jax.lax.rsqrt(jnp.maximum(mean_square - jnp.square(mean), 0.0) + epsilon)
  a = gain * product(rate, member.T)
  b = bias - gain * product(mean * rate, member.T)
  return x * a[:, None, None] + b[:, None, None]


def split_heads(qkv: Array, heads: int) -> tuple[Array, Array, Array]:
  """[B,N,3 heads d] of a fused projection -> q, k, v, each [B,N,heads,d]."""
  q, k, v = (rearrange(a, "b n (heads d) -> b n heads d", heads=heads) for a in jnp.split(qkv, 3, axis=-1))
  return q, k, v
