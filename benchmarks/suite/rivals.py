"""The rivals' side: PyTorch, eager and compiled, with the networks of benchmarks/rivals or those of diffusers.

Loss on v under the cosine schedule, clipping, fused AdamW, foreach EMA; a control branch on a frozen DiT; a student that
learns from two DDIM steps of its teacher; DDIM with guidance by one doubled batch. In bfloat16 training computes under autocast,
with parameters in float32, as ours; sampling has the parameters in bfloat16.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.suite.cases import Case
from benchmarks.suite.runner import Runner, resident_memory, scratch

GUIDANCE = 2.0
DROPOUT = 0.1  # share of examples without label
NUM_STEPS = 128  # of the student's sampler
Network = Callable[[Any, Any, Any], Any]  # (z [B,H,W,C], t [B], label i64[B]) -> [B,H,W,C]
# (x [B,H,W,C], label i64[B]) -> (z, t, the v that is to be predicted, its weight)
Lesson = Callable[[Any, Any], tuple[Any, Any, Any, Any]]


def make(case: Case, name: str) -> Runner:
  """The case, done by the rival `name`."""
  if name == "torch.save":
    return save(case)
  device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
  torch.backends.cudnn.benchmark = True
  torch.manual_seed(0)
  model, network = build(case, name)(case, device)
  compiled = torch.compile if name == "torch.compile" else lambda network: network
  facts: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), "device": device.type}
  if case.kind == "sample":
    run = sample(case, model.to(getattr(torch, case.dtype)).eval(), compiled(network), device)
  else:
    lesson: Lesson = noised
    if case.kind == "distill":
      lesson = functools.partial(taught, compiled(copy.deepcopy(model).requires_grad_(False)))
    run = train(case, model, compiled(network), lesson, device)
  start = time.perf_counter()
  run()
  return Runner(run, facts | {"compile_s": time.perf_counter() - start}, peak_memory)


def build(case: Case, name: str) -> Callable[[Case, torch.device], tuple[torch.nn.Module, Network]]:
  """What makes (the module whose parameters are trained, the network that is called)."""
  if name == "diffusers":
    return diffusers_network
  return controlled_network if case.kind == "control" else own_network


def own_network(case: Case, device: torch.device) -> tuple[torch.nn.Module, Network]:
  """The network with as many parameters as ours and, on the same ones, the same output: tests/models/test_rivals.py."""
  from benchmarks.rivals import torch_dit, torch_unet

  model: torch.nn.Module
  if case.model["name"] == "dit":
    model = torch_dit.DiT(**stream(case), learn_sigma=case.model["learn_sigma"]).to(device)
  else:
    settings = {key: value for key, value in case.model.items() if key != "name"}
    model = torch_unet.UNet(image_size=case.image_size, **settings).to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
  return model, model


def controlled_network(case: Case, device: torch.device) -> tuple[torch.nn.Module, Network]:
  """A branch of case.blocks blocks, which is trained, and with a hint of black and white the frozen DiT that it steers."""
  from benchmarks.rivals import torch_dit

  base, _ = own_network(case, device)
  base.requires_grad_(False)
  branch = torch_dit.Control(**stream(case) | {"depth": case.blocks}, hint_channels=1).to(device)
  hint = 255 * torch.randint(0, 2, (*case.shape[:3], 1), dtype=torch.uint8, device=device)

  def network(z: Any, t: Any, label: Any) -> Any:
    return base(z, t, label, branch(z, t, label, hint.float() / 255))

  return branch, network


def stream(case: Case) -> dict[str, Any]:
  """What torch_dit.Stream is made of."""
  from jaxdiff.models import dit

  settings = {key: value for key, value in case.model.items() if key not in ("name", "learn_sigma")}
  side = case.image_size // settings["patch_size"]
  return settings | {"position": dit.position_table(side, side, settings["width"])}


def diffusers_network(case: Case, device: torch.device) -> tuple[torch.nn.Module, Network]:
  """The nearest of diffusers' networks. Its DiT has an embedding of time and label in each block: more parameters."""
  import diffusers

  m = case.model
  model: Any
  if m["name"] == "dit":
    model = diffusers.DiTTransformer2DModel(
      num_attention_heads=m["heads"],
      attention_head_dim=m["width"] // m["heads"],
      in_channels=m["channels"],
      out_channels=m["channels"],
      num_layers=m["depth"],
      sample_size=case.image_size,
      patch_size=m["patch_size"],
      num_embeds_ada_norm=m["num_classes"],
    ).to(device)
  else:
    has_attention = [case.image_size // 2**i in m["attention_sizes"] for i in range(len(m["channel_mults"]))]
    resize = "resnet" if m["resblock_updown"] else "conv"
    model = diffusers.UNet2DModel(
      sample_size=case.image_size,
      in_channels=m["channels"],
      out_channels=m["channels"],
      layers_per_block=m["num_blocks"],
      block_out_channels=tuple(m["width"] * mult for mult in m["channel_mults"]),
      down_block_types=tuple("AttnDownBlock2D" if has else "DownBlock2D" for has in has_attention),
      up_block_types=tuple("AttnUpBlock2D" if has else "UpBlock2D" for has in reversed(has_attention)),
      downsample_type=resize,
      upsample_type=resize,
      attention_head_dim=m.get("head_channels") or m["width"] * m["channel_mults"][-1] // m["heads"],
      norm_num_groups=min(32, m["width"]),
      resnet_time_scale_shift="scale_shift" if m["scale_shift"] else "default",
      num_class_embeds=m["num_classes"] + 1,
    ).to(device)
    model = model.to(memory_format=torch.channels_last)

  def network(z: Any, t: Any, label: Any) -> Any:
    return model(z.permute(0, 3, 1, 2), t, class_labels=label).sample.permute(0, 2, 3, 1)

  return model, network


def alpha_sigma(t: Any) -> tuple[Any, Any]:
  angle = 0.5 * np.pi * t
  return torch.cos(angle), torch.sin(angle)


def of_images(t: Any) -> tuple[Any, Any]:
  """alpha and sigma as [B,1,1,1], of times [B]."""
  alpha, sigma = alpha_sigma(t)
  return alpha[:, None, None, None], sigma[:, None, None, None]


def noised(x: Any, label: Any) -> tuple[Any, Any, Any, Any]:
  """Noised images, t ~ U[0, 1), and their v."""
  del label
  t, eps = torch.rand(len(x), device=x.device), torch.randn_like(x)
  alpha, sigma = of_images(t)
  return alpha * x + sigma * eps, t, alpha * eps - sigma * x, 1.0


def taught(teacher: Network, x: Any, label: Any) -> tuple[Any, Any, Any, Any]:
  """Noised images at a time of the student's sampler, and the v by which its step comes to where its teacher's two do.

  Weighted by max(alpha^2, sigma^2): max(1, SNR) on the squared error of x (Salimans & Ho 2022, equation 9).
  """
  i = torch.randint(NUM_STEPS, (len(x),), device=x.device)
  t = (i + 1) / NUM_STEPS
  alpha, sigma = of_images(t)
  z = alpha * x + sigma * torch.randn_like(x)
  v = (alpha * z - target(teacher, z, i, label)) / sigma
  return z, t, v, torch.maximum(alpha, sigma).square()


@torch.no_grad()
def target(teacher: Network, z: Any, i: Any, label: Any) -> Any:
  """The x that takes a student's step from (i + 1) / N to i / N where its teacher comes by two: as jaxdiff's distillation.target."""
  times = [(i + part) / NUM_STEPS for part in (1.0, 0.5, 0.0)]
  (alpha, sigma), (alpha_mid, sigma_mid), (alpha_s, sigma_s) = (of_images(t) for t in times)
  first = alpha * z - sigma * teacher(z, 999 * times[0], label).float()
  z_mid = alpha_mid * first + sigma_mid / sigma * (z - alpha * first)
  second = alpha_mid * z_mid - sigma_mid * teacher(z_mid, 999 * times[1], label).float()
  z_s = alpha_s * second + sigma_s / sigma_mid * (z_mid - alpha_mid * second)
  ratio = sigma_s / sigma
  return torch.where(i[:, None, None, None] == 0, second, (z_s - ratio * z) / (alpha_s - ratio * alpha))


def train(
  case: Case, model: torch.nn.Module, network: Network, lesson: Lesson, device: torch.device
) -> Callable[[], dict[str, float]]:
  """One train step a call."""
  params, null = list(model.parameters()), case.model["num_classes"]
  average = [p.detach().clone() for p in params]
  optimizer = torch.optim.AdamW(params, 1e-4, weight_decay=0.0, fused=True)
  image = torch.randint(0, 256, case.shape, dtype=torch.uint8, device=device)
  label = torch.arange(case.batch_size, device=device) % null
  is_half = case.dtype != "float32"
  autocast = (
    functools.partial(torch.autocast, device.type, dtype=getattr(torch, case.dtype))
    if is_half
    else contextlib.nullcontext
  )

  def run() -> dict[str, float]:
    kept = torch.where(torch.rand(case.batch_size, device=device) < DROPOUT, null, label)
    with autocast():
      z, t, v, weight = lesson(image.float() / 127.5 - 1, kept)
      out = network(z, 999 * t, kept)
    loss = (weight * (out.float() - v).square()).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
    optimizer.step()
    torch._foreach_lerp_(average, [p.detach() for p in params], 1e-4)
    wait(device)
    return {}

  return run


def sample(
  case: Case, model: torch.nn.Module, network: Network, device: torch.device
) -> Callable[[], dict[str, float]]:
  """One batch of samples a call."""
  dtype = next(model.parameters()).dtype
  grid = torch.linspace(1, 0, case.steps + 1, device=device)
  label = torch.arange(case.batch_size, device=device) % case.model["num_classes"]
  labels = torch.cat([label, torch.full_like(label, case.model["num_classes"])])

  @torch.inference_mode()
  def run() -> dict[str, float]:
    z = torch.randn(case.shape, device=device)
    for t, s in itertools.pairwise(grid):
      (alpha, sigma), (alpha_s, sigma_s) = alpha_sigma(t), alpha_sigma(s)
      both = network(z.repeat(2, 1, 1, 1).to(dtype), (999 * t).expand(2 * len(z)), labels).float()
      conditional, unconditional = both.chunk(2)
      v = GUIDANCE * conditional + (1 - GUIDANCE) * unconditional
      z = alpha_s * (alpha * z - sigma * v) + sigma_s * (sigma * z + alpha * v)
    wait(device)
    return {}

  return run


def save(case: Case) -> Runner:
  """torch.save of parameters, Adam's two moments and the average, until they are on disk; without sums."""
  model, _ = own_network(case, torch.device("cpu"))
  params = [p.detach() for p in model.parameters()]
  state = {name: [p.clone() for p in params] for name in ("params", "mean", "variance", "average")}
  folder = scratch()

  def run() -> dict[str, float]:
    with open(folder / "state.pt", "wb") as file:
      torch.save(state, file)
      file.flush()
      os.fsync(file.fileno())
    return {}

  return Runner(run, {"parameters": sum(p.numel() for p in params)}, resident_memory)


def wait(device: torch.device) -> None:
  """Until the device is done."""
  if device.type == "cuda":
    torch.cuda.synchronize()


def peak_memory() -> int:
  return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident_memory()
