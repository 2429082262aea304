"""The residual UNet of Ho et al. 2020 (DDPM, arXiv 2006.11239) and Dhariwal & Nichol 2021 (ADM, arXiv 2105.05233).

An encoder halves the feature map level by level and keeps every intermediate result; a decoder doubles it
again and reads those results back in reverse order. Time and label enter every residual block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, reduce, repeat
from jax.ad_checkpoint import checkpoint_name

from jaxdiff.errors import UserError
from jaxdiff.models import layers
from jaxdiff.types import Array, Cond

PRESETS: dict[str, dict[str, Any]] = {
  "ddpm_cifar10": {  # Ho et al. 2020, appendix B: 35.7M parameters
    "num_classes": 0,
    "channels": 3,
    "learn_sigma": False,
    "width": 128,
    "channel_mults": (1, 2, 2, 2),
    "num_blocks": 2,
    "attention_sizes": (16,),
    "heads": 1,
    "head_channels": 0,
    "scale_shift": False,
    "resblock_updown": False,
    "dropout": 0.1,
  },
  "adm_imagenet64": {  # Dhariwal & Nichol 2021, table 11 and their README: 295.9M parameters
    "num_classes": 1000,
    "null_class": False,
    "channels": 3,
    "learn_sigma": True,
    "width": 192,
    "channel_mults": (1, 2, 3, 4),
    "num_blocks": 3,
    "attention_sizes": (32, 16, 8),
    "heads": 1,
    "head_channels": 64,
    "scale_shift": True,
    "resblock_updown": True,
    "dropout": 0.1,
  },
}

fan_average = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
zeros = nn.initializers.zeros


def conv(
  features: int,
  size: int,
  dtype: Any,
  name: str,
  stride: int = 1,
  doubles: bool = False,
  init: Any = fan_average,
) -> nn.Conv:
  """A convolution with bias that keeps the feature map's size (divided by the stride), or one of the doubled map."""
  function = layers.convolve_doubled if doubles else layers.convolve
  return nn.Conv(
    features,
    (size, size),
    (stride, stride),
    padding=size // 2,
    kernel_init=init,
    dtype=dtype,
    conv_general_dilated=functools.partial(_convolve, function) if stride == 1 else None,
    name=name,
  )


def _convolve(
  function: Callable[..., Array],
  x: Array,
  kernel: Array,
  *strides_and_padding: Any,
  **of_other_convolutions: Any,
) -> Array:
  """function(x, kernel) as flax calls a convolution, its result named for rematerialization."""
  del strides_and_padding, of_other_convolutions
  return checkpoint_name(function(x, kernel), layers.CONVOLVED)


def halve(x: Array) -> Array:
  """The mean of each 2x2 square. Shapes: [B,H,W,C] -> [B,H/2,W/2,C]."""
  return reduce(x, "b (h p) (w q) c -> b h w c", "mean", p=2, q=2)


def double(x: Array) -> Array:
  """Each pixel four times (nearest neighbour). Shapes: [B,H,W,C] -> [B,2H,2W,C]."""
  return repeat(x, "b h w c -> b (h p) (w q) c", p=2, q=2)


class ResBlock(nn.Module):
  """x + conv(silu(norm(conv(silu(norm(x)))))), with time and label between the two convolutions.

  These enter as an addition before the second norm (DDPM), or with `scale_shift` as norm(h) (1 + scale) +
  shift after it (ADM). `resize` is applied to both paths after the first norm. The second convolution starts
  at zero, so a fresh block is its skip connection: the identity, or a 1x1 convolution where channels change.

  Shapes: x: [B,H,W,C]; c: [B,D].  Returns dtype[B,H',W',features].
  Source: Ho et al. 2020, appendix B; Dhariwal & Nichol 2021, section 3 (adaptive group normalisation).
  """

  features: int
  resize: Literal["", "halve", "double"] = ""
  scale_shift: bool = False
  dropout: float = 0.0  # effective rate: 0 outside training
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, c: Array) -> Array:
    h = nn.silu(layers.GroupNorm(self.dtype, name="norm_1")(x))
    if self.resize == "halve":
      x, h = halve(x), halve(h)
    elif self.resize == "double":
      x = double(x)
    h = conv(self.features, 3, self.dtype, "conv_1", doubles=self.resize == "double")(h)

    features = (1 + self.scale_shift) * self.features
    condition = nn.Dense(features, kernel_init=fan_average, dtype=self.dtype, name="condition")(nn.silu(c))
    norm = layers.GroupNorm(self.dtype, name="norm_2")
    h = norm(h, *jnp.split(condition, 2, axis=-1)) if self.scale_shift else norm(h + condition[:, None, None])
    h = nn.Dropout(self.dropout, deterministic=False)(nn.silu(h))
    h = conv(self.features, 3, self.dtype, "conv_2", init=zeros)(h)
    if x.shape[-1] != self.features:
      x = conv(self.features, 1, self.dtype, "skip")(x)
    return x + h


class AttentionBlock(nn.Module):
  """x + Attention(norm(x)) over all pixels; the last projection starts at zero.

  Shapes: x: [B,H,W,C].  Returns dtype[B,H,W,C].
  Raises: UserError where the heads do not divide the channels.
  """

  heads: int = 1
  head_channels: int = 0  # where not 0: C / head_channels heads instead
  attention: str = "auto"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    channels = x.shape[-1]
    if channels % (self.head_channels or self.heads):
      key, value = ("head_channels", self.head_channels) if self.head_channels else ("heads", self.heads)
      raise UserError(
        f"{channels} channels at feature-map size {x.shape[1]} are not divisible by {key} {value} "
        f"(config.model.{key}). Change it, or config.model.width or channel_mults."
      )
    heads = channels // self.head_channels if self.head_channels else self.heads
    h = rearrange(layers.GroupNorm(self.dtype, name="norm")(x), "b h w c -> b (h w) c")
    qkv = layers.Linear(3 * channels, kernel_init=fan_average, dtype=self.dtype, name="qkv")(h)
    q, k, v = layers.split_heads(qkv, heads)
    h = layers.attend(q, k, v, self.attention)
    h = rearrange(h, "b n heads d -> b n (heads d)")
    h = layers.Linear(channels, kernel_init=zeros, dtype=self.dtype, name="out")(h)
    return x + h.reshape(x.shape)


class Encoder(nn.Module):
  """The descending half and the middle: what a ControlNet copies and what a classifier needs.

  Shapes: z: [B,H,W,C]; c: [B,D]; hint: [B,H,W,width], added after the first convolution.
  Returns (skips, middle): the tuple of all intermediate results, first to last, and dtype[B,h,w,width'].
  """

  widths: Sequence[int]  # channels of each level
  num_blocks: int
  attention_sizes: Sequence[int]
  resblock_updown: bool
  block: Callable[..., ResBlock]
  attend: Callable[..., AttentionBlock]
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, z: Array, c: Array, hint: Array | None = None) -> tuple[tuple[Array, ...], Array]:
    h = conv(self.widths[0], 3, self.dtype, "in")(z)
    if hint is not None:
      h = h + hint
    skips = [h]
    for level, width in enumerate(self.widths):
      for i in range(self.num_blocks):
        h = self.block(width, name=f"level_{level}_block_{i}")(h, c)
        if h.shape[1] in self.attention_sizes:
          h = self.attend(name=f"level_{level}_attention_{i}")(h)
        skips.append(h)
      if level + 1 < len(self.widths):
        h = self.down(h, c, f"level_{level}_down")
        skips.append(h)
    h = self.block(h.shape[-1], name="middle_block_0")(h, c)
    h = self.attend(name="middle_attention")(h)
    h = self.block(h.shape[-1], name="middle_block_1")(h, c)
    return tuple(skips), h

  def down(self, h: Array, c: Array, name: str) -> Array:
    """To half the size."""
    if self.resblock_updown:
      return self.block(h.shape[-1], resize="halve", name=name)(h, c)
    return conv(h.shape[-1], 3, self.dtype, name, stride=2)(h)


class Decoder(nn.Module):
  """The ascending half: each block reads one of the encoder's results, last first.

  Shapes: h: [B,h,w,width']; skips: as the encoder returns them; c: [B,D].  Returns dtype[B,H,W,width].
  """

  widths: Sequence[int]
  num_blocks: int
  attention_sizes: Sequence[int]
  resblock_updown: bool
  block: Callable[..., ResBlock]
  attend: Callable[..., AttentionBlock]
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, h: Array, skips: Sequence[Array], c: Array) -> Array:
    remaining = list(skips)
    for level, width in reversed(list(enumerate(self.widths))):
      for i in range(self.num_blocks + 1):
        h = jnp.concatenate([h, remaining.pop()], axis=-1)
        h = self.block(width, name=f"level_{level}_block_{i}")(h, c)
        if h.shape[1] in self.attention_sizes:
          h = self.attend(name=f"level_{level}_attention_{i}")(h)
      if level > 0:
        h = self.up(h, c, f"level_{level}_up")
    return h

  def up(self, h: Array, c: Array, name: str) -> Array:
    """To twice the size."""
    if self.resblock_updown:
      return self.block(h.shape[-1], resize="double", name=name)(h, c)
    return conv(h.shape[-1], 3, self.dtype, name, doubles=True)(h)


class UNet(nn.Module):
  """The whole network. Fields are the keys of a config's model section.

  Shapes: z: f32[B,H,W,channels]; t: f32[B], the model time; cond.label: i32[B], NULL_LABEL or num_classes for
  none; residuals: (skips, middle) as the encoder returns them, each added to the encoder's (what a ControlNet
  gives).  Returns f32[B,H,W,outputs channels], with learn_sigma channels more, the variance of the prediction.
  Needs an rng named "dropout" where train is True and the dropout rate is not 0.
  Raises: UserError where the levels do not divide the image, or the heads the channels.
  Source: Ho et al. 2020, appendix B; Dhariwal & Nichol 2021, section 3 and appendix.
  """

  num_classes: int = 10  # 0: unconditional
  null_class: bool = True  # a row of the label table for "no label", which guidance needs
  channels: int = 3
  learn_sigma: bool = False
  outputs: int = 1  # images that are predicted, as the parameterization has it (tasks set it, not a config)
  width: int = 64
  channel_mults: Sequence[int] = (1, 2, 2)  # channels of each level, in units of width
  num_blocks: int = 2  # residual blocks a level
  attention_sizes: Sequence[int] = (8,)  # sizes of the feature maps that have attention
  heads: int = 1
  head_channels: int = 0  # where not 0: the channels of a head, and `heads` is not used
  scale_shift: bool = True
  resblock_updown: bool = False  # residual blocks, instead of a convolution, change the size
  dropout: float = 0.0
  remat: str = "none"  # what the gradient's pass computes again: see layers.REMAT
  guidance_range: Sequence[float] = ()  # of the scale that a guided student takes as an input; empty: none
  attention: str = "auto"
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self,
    z: Array,
    t: Array,
    cond: Cond,
    train: bool = False,
    residuals: tuple[Sequence[Array], Array] | None = None,
  ) -> Array:
    self.check()
    self.check_image(z.shape[1:3])
    dtype = layers.dtype(self.dtype)
    c = self.embedding()(t, cond)
    skips, h = self.half(Encoder, train, "encoder")(z, c)
    if residuals is not None:
      skips, h = jax.tree.map(jnp.add, (skips, h), (tuple(residuals[0]), residuals[1]))
    h = self.half(Decoder, train, "decoder")(h, skips, c)
    h = nn.silu(layers.GroupNorm(dtype, name="norm")(h))
    features = self.channels * (self.outputs + self.learn_sigma)
    return conv(features, 3, dtype, "out", init=zeros)(h).astype(jnp.float32)

  @nn.nowrap
  def embedding(self) -> layers.Embedding:
    """The module that embeds time and label."""
    return layers.Embedding(
      self.num_classes,
      frequency_dim=self.width,
      dim=4 * self.width,
      null_class=self.null_class,
      guided=bool(self.guidance_range),
      kernel_init=fan_average,
      # Heard beside the time's part from the start (ADM's code leaves it so): with DiT's 0.02, after 300 steps of Fashion-MNIST
      # 13% of the images were in the class asked for instead of 62%.
      table_init=nn.initializers.normal(1.0),
      dtype=layers.dtype(self.dtype),
      name="embedding",
    )

  @nn.nowrap
  def half(self, kind: Callable[..., Any], train: bool, name: str) -> Any:
    """The Encoder or Decoder (`kind`) with this network's settings."""
    dtype = layers.dtype(self.dtype)
    block, attention_block = (layers.rematerialized(k, self.remat) for k in (ResBlock, AttentionBlock))
    return kind(
      widths=tuple(self.width * mult for mult in self.channel_mults),
      num_blocks=self.num_blocks,
      attention_sizes=tuple(self.attention_sizes),
      resblock_updown=self.resblock_updown,
      block=functools.partial(
        block, scale_shift=self.scale_shift, dropout=self.dropout if train else 0.0, dtype=dtype
      ),
      attend=functools.partial(
        attention_block,
        heads=self.heads,
        head_channels=self.head_channels,
        attention=self.attention,
        dtype=dtype,
      ),
      dtype=dtype,
      name=name,
    )

  @nn.nowrap
  def check_image(self, size: Sequence[int]) -> None:
    """Raises UserError where the levels do not divide an image's height and width."""
    factor = 2 ** (len(self.channel_mults) - 1)
    layers.check_size(size, factor, f"{factor}, which {len(self.channel_mults)} levels halve it by")

  @nn.nowrap
  def check(self) -> None:
    """Raises UserError for settings that do not fit together, whatever the image."""
    layers.dtype(self.dtype)
    layers.check_attention(self.attention)
    layers.check_remat(self.remat)
