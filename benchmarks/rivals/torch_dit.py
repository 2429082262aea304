"""DiT and its control branch in PyTorch: the architecture, parameter count and arithmetic of jaxdiff.models.dit.DiT and
jaxdiff.models.controlnet.DiTControl (NCHW inside out).

Written as one would write it for speed in eager PyTorch: scaled_dot_product_attention, fused layer_norm and
linear, addcmul for the modulation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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


def layer_norm(x: Tensor) -> Tensor:
  """Over the last axis, without scale and shift, in x's own type: autocast would go on in float32."""
  return F.layer_norm(x, x.shape[-1:], eps=1e-6).to(x.dtype)


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
    h = torch.addcmul(shift_1, layer_norm(x), 1 + scale_1)
    x = torch.addcmul(x, gate_1, self.attention(h))
    h = torch.addcmul(shift_2, layer_norm(x), 1 + scale_2)
    h = self.mlp_out(F.gelu(self.mlp_in(h), approximate="tanh"))
    return torch.addcmul(x, gate_2, h)

  def attention(self, h: Tensor) -> Tensor:
    batch, tokens, width = h.shape
    qkv = self.qkv(h).view(batch, tokens, 3, self.heads, width // self.heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    h = F.scaled_dot_product_attention(q, k, v)
    return self.out(h.transpose(1, 2).reshape(batch, tokens, width))


class Stream(nn.Module):
  """What a DiT and its branch have alike: patches with their `position`, f32[N,width], the embedding, blocks."""

  def __init__(
    self,
    *,
    num_classes: int,
    channels: int,
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

  def cut(self, image: Tensor) -> Tensor:
    """The values of each patch. Shapes: image: f32[B,H,W,C].  Returns f32[B,N,p p C]."""
    batch, height, width, channels = image.shape
    p = self.patch_size
    x = image.view(batch, height // p, p, width // p, p, channels).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, -1, p * p * channels)

  def begin(self, z: Tensor, t: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """(tokens, embedding of time and label)."""
    x = self.patches(self.cut(z))
    return x + self.position.to(x.dtype), self.embedding(t, label)


class DiT(Stream):
  """Shapes: z: f32[B,H,W,C]; t: f32[B]; label: i64[B]; controls: f32[B,N,width] each. Returns f32[B,H,W,C or 2C]."""

  def __init__(self, *, channels: int, learn_sigma: bool, patch_size: int, width: int, **stream: Any) -> None:
    super().__init__(channels=channels, patch_size=patch_size, width=width, **stream)
    self.modulation = nn.Linear(width, 2 * width)
    self.out = nn.Linear(width, patch_size**2 * channels * (1 + learn_sigma))

  def forward(self, z: Tensor, t: Tensor, label: Tensor, controls: Sequence[Tensor] = ()) -> Tensor:
    x, c = self.begin(z, t, label)
    for i, block in enumerate(self.blocks):
      x = block(x, c)
      if i < len(controls):
        x = x + controls[i]
    shift, scale = self.modulation(F.silu(c))[:, None].chunk(2, dim=-1)
    x = self.out(torch.addcmul(shift, layer_norm(x), 1 + scale))
    batch, height, width, _ = z.shape
    p = self.patch_size
    x = x.view(batch, height // p, width // p, p, p, -1).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height, width, -1)


class Control(Stream):
  """Shapes: as the DiT's; hint: f32[B,H,W,hint_channels] in [0, 1]. Returns f32[B,N,width] for each of its blocks."""

  def __init__(self, *, hint_channels: int, patch_size: int, width: int, depth: int, **stream: Any) -> None:
    super().__init__(patch_size=patch_size, width=width, depth=depth, **stream)
    self.hint = nn.Linear(patch_size**2 * hint_channels, width)
    self.zeros = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])

  def forward(self, z: Tensor, t: Tensor, label: Tensor, hint: Tensor) -> list[Tensor]:
    x, c = self.begin(z, t, label)
    x = x + self.hint(self.cut(hint))
    controls = []
    for block, zero in zip(self.blocks, self.zeros, strict=True):
      x = block(x, c)
      controls.append(zero(x))
    return controls


def load(model: DiT, params: Mapping[str, Any]) -> None:
  """Copies a jaxdiff DiT's parameters (unscanned, without qk_norm) into the torch model."""
  _load_stream(model, params)
  copy_linear(model.modulation, params["final"]["modulation"])
  copy_linear(model.out, params["final"]["out"])


def load_control(model: Control, params: Mapping[str, Any]) -> None:
  """Copies a jaxdiff DiTControl's parameters into the torch model."""
  _load_stream(model, params)
  copy_linear(model.hint, params["hint"])
  for i, zero in enumerate(model.zeros):
    copy_linear(zero, params[f"zero_{i}"])


def _load_stream(model: Stream, params: Mapping[str, Any]) -> None:
  copy_embedding(model.embedding, params["embedding"])
  copy_linear(model.patches, params["patches"]["embed"])
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
