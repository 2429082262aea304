"""The residual UNet in PyTorch: the architecture and parameter count of jaxdiff.models.unet.UNet.

Convolutions run in channels_last, where the caller asks for it with model.to(memory_format=...), or in
PyTorch's default layout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.rivals.torch_dit import Embedding, copy, copy_embedding, copy_linear


class GroupNorm(nn.GroupNorm):
  """In its input's own type: autocast would go on in float32."""

  def forward(self, input: Tensor) -> Tensor:
    return super().forward(input).to(input.dtype)


def group_norm(channels: int) -> GroupNorm:
  """Up to 32 groups."""
  return GroupNorm(math.gcd(32, channels), channels, eps=1e-5)


class ResBlock(nn.Module):
  """A residual block; `resize` is "halve", "double" or None."""

  def __init__(
    self, features_in: int, features: int, dim: int, scale_shift: bool, resize: str | None = None
  ) -> None:
    super().__init__()
    self.scale_shift, self.resize = scale_shift, resize
    self.norm_1, self.conv_1 = group_norm(features_in), nn.Conv2d(features_in, features, 3, padding=1)
    self.condition = nn.Linear(dim, features * (1 + scale_shift))
    self.norm_2, self.conv_2 = group_norm(features), nn.Conv2d(features, features, 3, padding=1)
    self.skip = nn.Conv2d(features_in, features, 1) if features_in != features else None

  def forward(self, x: Tensor, c: Tensor) -> Tensor:
    h = F.silu(self.norm_1(x))
    if self.resize == "halve":
      x, h = F.avg_pool2d(x, 2), F.avg_pool2d(h, 2)
    elif self.resize == "double":
      x, h = F.interpolate(x, scale_factor=2), F.interpolate(h, scale_factor=2)
    h = self.conv_1(h)
    condition = self.condition(F.silu(c))[:, :, None, None]
    if self.scale_shift:
      scale, shift = condition.chunk(2, dim=1)
      h = torch.addcmul(shift, self.norm_2(h), 1 + scale)
    else:
      h = self.norm_2(h + condition)
    h = self.conv_2(F.silu(h))
    return h + (x if self.skip is None else self.skip(x))


class AttentionBlock(nn.Module):
  """Self-attention over all pixels."""

  def __init__(self, channels: int, heads: int) -> None:
    super().__init__()
    self.heads = heads
    self.norm, self.qkv, self.out = (
      group_norm(channels),
      nn.Linear(channels, 3 * channels),
      nn.Linear(channels, channels),
    )

  def forward(self, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    h = self.norm(x).flatten(2).transpose(1, 2)
    qkv = self.qkv(h).view(batch, height * width, 3, self.heads, channels // self.heads)
    h = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
    h = self.out(h.transpose(1, 2).reshape(batch, height * width, channels))
    return x + h.transpose(1, 2).reshape(batch, channels, height, width)


class UNet(nn.Module):
  """Shapes: z: f32[B,H,W,C]; t: f32[B]; label: i64[B]. Returns f32[B,H,W,C or 2C]. For images of image_size."""

  def __init__(
    self,
    *,
    image_size: int,
    num_classes: int,
    channels: int,
    learn_sigma: bool,
    width: int,
    channel_mults: Sequence[int],
    num_blocks: int,
    attention_sizes: Sequence[int],
    heads: int,
    head_channels: int = 0,
    scale_shift: bool,
    resblock_updown: bool,
    dropout: float = 0.0,
  ) -> None:
    super().__init__()
    if dropout:
      raise ValueError("the rival has no dropout")
    dim = 4 * width
    widths = [width * mult for mult in channel_mults]
    self.embedding = Embedding(num_classes, width, dim)

    def attention(features: int) -> AttentionBlock:
      return AttentionBlock(features, features // head_channels if head_channels else heads)

    def change(features: int, resize: str) -> nn.Module:
      if resblock_updown:
        return ResBlock(features, features, dim, scale_shift, resize)
      return nn.Conv2d(features, features, 3, stride=2 if resize == "halve" else 1, padding=1)

    self.input = nn.Conv2d(channels, width, 3, padding=1)
    encoder, decoder = nn.ModuleDict(), nn.ModuleDict()
    skips, now, size = [width], width, image_size
    for level, features in enumerate(widths):
      for i in range(num_blocks):
        encoder[f"level_{level}_block_{i}"] = ResBlock(now, features, dim, scale_shift)
        if size in attention_sizes:
          encoder[f"level_{level}_attention_{i}"] = attention(features)
        now = features
        skips.append(now)
      if level + 1 < len(widths):
        encoder[f"level_{level}_down"] = change(now, "halve")
        skips.append(now)
        size //= 2
    encoder["middle_block_0"] = ResBlock(now, now, dim, scale_shift)
    encoder["middle_attention"] = attention(now)
    encoder["middle_block_1"] = ResBlock(now, now, dim, scale_shift)
    for level, features in reversed(list(enumerate(widths))):
      for i in range(num_blocks + 1):
        decoder[f"level_{level}_block_{i}"] = ResBlock(now + skips.pop(), features, dim, scale_shift)
        if size in attention_sizes:
          decoder[f"level_{level}_attention_{i}"] = attention(features)
        now = features
      if level > 0:
        decoder[f"level_{level}_up"] = change(now, "double")
        size *= 2
    self.encoder, self.decoder = encoder, decoder
    self.norm, self.out = group_norm(now), nn.Conv2d(now, channels * (1 + learn_sigma), 3, padding=1)

  def forward(self, z: Tensor, t: Tensor, label: Tensor) -> Tensor:
    c = self.embedding(t, label)
    h = self.input(z.permute(0, 3, 1, 2))
    skips = [h]
    for name, module in self.encoder.items():
      if "attention" in name:
        h = module(h)
        if "level" in name:
          skips[-1] = h
      else:
        h = module(h) if isinstance(module, nn.Conv2d) else module(h, c)
        if "level" in name:
          skips.append(h)
    for name, module in self.decoder.items():
      if "attention" in name:
        h = module(h)
      elif "block" in name:
        h = module(torch.cat([h, skips.pop()], dim=1), c)
      else:
        up = isinstance(module, nn.Conv2d)
        h = module(F.interpolate(h, scale_factor=2)) if up else module(h, c)
    return self.out(F.silu(self.norm(h))).permute(0, 2, 3, 1)


def load(model: UNet, params: Mapping[str, Any]) -> None:
  """Copies a jaxdiff UNet's parameters into the torch model."""
  copy_embedding(model.embedding, params["embedding"])
  _copy(model.input, params["encoder"]["in"])
  _copy(model.norm, params["norm"])
  _copy(model.out, params["out"])
  for half in ("encoder", "decoder"):
    for name, module in getattr(model, half).items():
      _copy(module, params[half][name])


def _copy(module: nn.Module, source: Mapping[str, Any]) -> None:
  """One layer, or a block layer by layer: the names are the same."""
  if isinstance(module, nn.Linear):
    copy_linear(module, source)
  elif isinstance(module, nn.Conv2d):
    copy(module.weight, np.asarray(source["kernel"]).transpose(3, 2, 0, 1))
    copy(module.bias, source["bias"])
  elif isinstance(module, nn.GroupNorm):
    copy(module.weight, source["scale"])
    copy(module.bias, source["bias"])
  else:
    for name, child in module.named_children():
      _copy(child, source[name])
