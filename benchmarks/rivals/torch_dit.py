"""DiT in PyTorch: the architecture, parameter count and arithmetic of jaxdiff.models.dit.DiT (NCHW inside out).

Written as one would write it for speed in eager PyTorch: scaled_dot_product_attention, fused layer_norm and
linear, addcmul for the modulation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def frequencies(t: Tensor, dim: int) -> Tensor:
  """(cos(w_i t), sin(w_i t)), w_i = 10000^(-i / (dim / 2)). Shapes: t: f32[B] -> f32[B,dim]."""
  half = dim // 2
  w = torch.exp(-math.log(10_000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
  angle = t[:, None] * w
  return torch.cat([angle.cos(), angle.sin()], dim=-1)


class Embedding(nn.Module):
  """MLP(frequencies(t)) + table[label]; the table's last row is the null class."""

  def __init__(self, num_classes: int, frequency_dim: int, dim: int) -> None:
    super().__init__()
    self.frequency_dim, self.num_classes = frequency_dim, num_classes
    self.time_in, self.time_out = nn.Linear(frequency_dim, dim), nn.Linear(dim, dim)
    self.label = nn.Embedding(num_classes + 1, dim) if num_classes else None

  def forward(self, t: Tensor, label: Tensor) -> Tensor:
    waves = frequencies(t, self.frequency_dim).to(self.time_in.weight.dtype)
    c = self.time_out(F.silu(self.time_in(waves)))
    if self.label is None:
      return c
    return c + self.label(torch.where(label < 0, self.num_classes, label))


class Block(nn.Module):
  """An adaLN-Zero transformer block."""

  def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
    super().__init__()
    self.heads, self.width = heads, width
    self.modulation = nn.Linear(width, 6 * width)
    self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
    hidden = int(mlp_ratio * width)
    self.mlp_in, self.mlp_out = nn.Linear(width, hidden), nn.Linear(hidden, width)

  def forward(self, x: Tensor, c: Tensor) -> Tensor:
    modulation = self.modulation(F.silu(c))[:, None]
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation.chunk(6, dim=-1)
    h = torch.addcmul(shift_1, F.layer_norm(x, (self.width,), eps=1e-6), 1 + scale_1)
    x = torch.addcmul(x, gate_1, self.attention(h))
    h = torch.addcmul(shift_2, F.layer_norm(x, (self.width,), eps=1e-6), 1 + scale_2)
    h = self.mlp_out(F.gelu(self.mlp_in(h), approximate="tanh"))
    return torch.addcmul(x, gate_2, h)

  def attention(self, h: Tensor) -> Tensor:
    batch, tokens, width = h.shape
    qkv = self.qkv(h).view(batch, tokens, 3, self.heads, width // self.heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    h = F.scaled_dot_product_attention(q, k, v)
    return self.out(h.transpose(1, 2).reshape(batch, tokens, width))


class DiT(nn.Module):
  """Shapes: z: f32[B,H,W,C]; t: f32[B]; label: i64[B]. Returns f32[B,H,W,C or 2C]. `position`: f32[N,width]."""

  def __init__(
    self,
    *,
    num_classes: int,
    channels: int,
    learn_sigma: bool,
    patch_size: int,
    width: int,
    depth: int,
    heads: int,
    position: np.ndarray,
    mlp_ratio: float = 4.0,
  ) -> None:
    super().__init__()
    self.patch_size, self.width = patch_size, width
    self.patches = nn.Linear(patch_size**2 * channels, width)
    self.register_buffer("position", torch.from_numpy(position.astype(np.float32)))
    self.embedding = Embedding(num_classes, 256, width)
    self.blocks = nn.ModuleList([Block(width, heads, mlp_ratio) for _ in range(depth)])
    self.modulation = nn.Linear(width, 2 * width)
    self.out = nn.Linear(width, patch_size**2 * channels * (1 + learn_sigma))

  def forward(self, z: Tensor, t: Tensor, label: Tensor) -> Tensor:
    batch, height, width, channels = z.shape
    p = self.patch_size
    x = z.view(batch, height // p, p, width // p, p, channels).permute(0, 1, 3, 2, 4, 5)
    x = self.patches(x.reshape(batch, -1, p * p * channels)) + self.position
    c = self.embedding(t, label)
    for block in self.blocks:
      x = block(x, c)
    shift, scale = self.modulation(F.silu(c))[:, None].chunk(2, dim=-1)
    x = self.out(torch.addcmul(shift, F.layer_norm(x, (self.width,), eps=1e-6), 1 + scale))
    x = x.view(batch, height // p, width // p, p, p, -1).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height, width, -1)


def load(model: DiT, params: Mapping[str, Any]) -> None:
  """Copies a jaxdiff DiT's parameters (unscanned, without qk_norm) into the torch model."""
  copy_embedding(model.embedding, params["embedding"])
  copy_linear(model.patches, params["patches"]["embed"])
  copy_linear(model.modulation, params["final"]["modulation"])
  copy_linear(model.out, params["final"]["out"])
  for i, block in enumerate(model.blocks):
    source = params[f"block_{i}"]
    copy_linear(block.modulation, source["modulation"])
    copy_linear(block.qkv, source["attention"]["qkv"])
    copy_linear(block.out, source["attention"]["out"])
    copy_linear(block.mlp_in, source["mlp"]["in"])
    copy_linear(block.mlp_out, source["mlp"]["out"])


def copy_embedding(module: Embedding, source: Mapping[str, Any]) -> None:
  """Linen Embedding -> torch Embedding."""
  copy_linear(module.time_in, source["time_in"])
  copy_linear(module.time_out, source["time_out"])
  if module.label is not None:
    copy(module.label.weight, source["label"]["embedding"])


def copy_linear(module: nn.Linear, source: Mapping[str, Any]) -> None:
  """Linen Dense -> torch Linear."""
  copy(module.weight, np.asarray(source["kernel"]).T)
  copy(module.bias, source["bias"])


def copy(target: Tensor, source: Any) -> None:
  """Overwrites a parameter; the shapes must agree."""
  value = torch.from_numpy(np.array(source, dtype=np.float32))
  if value.shape != target.shape:
    raise ValueError(f"shapes differ: {tuple(value.shape)} and {tuple(target.shape)}")
  with torch.no_grad():
    target.copy_(value)
