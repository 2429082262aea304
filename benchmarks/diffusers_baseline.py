"""A PyTorch baseline: diffusers' UNet and scheduler, trained for the wall time that a run of ours took.

python -m benchmarks.diffusers_baseline --seconds 880 --out DIR/baseline.npz     (pip install torch diffusers)

diffusers.UNet2DModel of the same shape as the UNet of configs/unet_cfg.py:fashion_mnist, with that config's data, batch size,
label dropout, AdamW, clipping and EMA, on the GPU where PyTorch sees one, else on the CPU: float32, eager, OpenMP's defaults
(channels last took 1.1 times as long). The noise is that of DDIMScheduler's cosine table, which ends in pure noise (rescale_betas_zero_snr), and the
network predicts v.

--seconds are those of the training loop alone: the clock starts before its first step, when libraries are imported, the data
lies in memory and the network is built, and no step starts after them. To give the baseline all that a run of ours may have
cost, let --seconds be its whole program, with start, compilation, pictures and checkpoints. The rate warms up over the config's
steps and falls as a cosine to 0 over the share of the seconds that has passed.  Where the machine has other work, measure the
rate for a minute while it has none, and give it as --rate: the clock then counts steps at that rate.

Then --num images, label i % 10, are drawn with the averaged parameters by DDIM (eta 0, trailing steps, clipped to the range of
images) with classifier-free guidance, to --out: arr_0 u8[N,H,W,C], arr_1 i64[N]. Several scales, as --guidance 1,1.5, make
several files, baseline_1.npz and so on. The parameters lie beside them as baseline.pt: --train_only stops there, and
--draw_only starts from there. To score what was drawn:

python -m jaxdiff.main --mode evaluate --config configs/unet_cfg.py:fashion_mnist --config.eval.images=DIR/baseline.npz \
  --config.eval.features=classifier:checkpoints/classifier_fashion_mnist_clean
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel

from configs import unet_cfg
from jaxdiff import data, optim, pictures, tasks
from jaxdiff.files import write_atomically

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TELL_EVERY = 30  # seconds between lines of progress
BATCH = 1000  # images drawn at a time


class Trained(NamedTuple):
  """What a training has come to."""

  steps: int
  seconds: float
  ema: dict[str, torch.Tensor]  # a state dict of the averaged parameters


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=Path, required=True, help="an .npz file of images")
  parser.add_argument("--seconds", type=float, help="to train")
  parser.add_argument("--rate", type=float, help="images/s by which a step counts, instead of by the clock")
  parser.add_argument("--preset", default="fashion_mnist", help="of configs/unet_cfg.py")
  parser.add_argument("--num", type=int, default=10_000, help="images to draw")
  parser.add_argument("--steps", type=int, default=50, help="of DDIM")
  parser.add_argument("--guidance", default="1.5", help="a scale, or several as 1,1.5; 1 is none")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--train_only", action="store_true")
  parser.add_argument("--draw_only", action="store_true", help="with the parameters of an earlier call")
  flags = parser.parse_args()
  if (flags.seconds is None) != flags.draw_only or (flags.train_only and flags.draw_only):
    parser.error("give --seconds to train, or --draw_only")
  config = unet_cfg.get_config(flags.preset)
  model, scheduler, weights = build(config).to(DEVICE), noise_table(), flags.out.with_suffix(".pt")
  if not flags.draw_only:
    weights.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written fails now
    clock = clock_of(flags.rate, config.train.batch_size)
    trained = trained_for(flags.seconds, config, model, scheduler, flags.seed, clock)
    write_atomically(weights, lambda file: torch.save(trained._asdict(), file))
  if flags.train_only:
    return
  trained = Trained(**torch.load(weights, map_location=DEVICE, weights_only=True))
  print(f"{weights}: {trained.steps} steps in {trained.seconds:.0f} s", flush=True)
  model.load_state_dict(trained.ema)
  scales = [float(scale) for scale in flags.guidance.split(",")]
  label = np.arange(flags.num) % config.model.num_classes
  for scale in scales:
    path = flags.out if len(scales) == 1 else flags.out.with_name(f"{flags.out.stem}_{scale:g}.npz")
    pictures.save_npz(path, draw(model, scheduler, label, scale, flags.steps, flags.seed), label)
    print(f"wrote {path}: {flags.num} images, guidance {scale:g}, {flags.steps} steps", flush=True)


def build(config: Any) -> UNet2DModel:
  """diffusers' UNet with the levels, blocks, attention and label table (a row more for none) of a config's model section."""
  m, levels = config.model, len(config.model.channel_mults)
  attends = [config.data.image_size // 2**level in m.attention_sizes for level in range(levels)]
  return UNet2DModel(
    sample_size=config.data.image_size,
    in_channels=m.channels,
    out_channels=m.channels,
    block_out_channels=tuple(m.width * mult for mult in m.channel_mults),
    layers_per_block=m.num_blocks,
    down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
    up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
    attention_head_dim=m.head_channels,
    norm_num_groups=math.gcd(32, m.width),
    resnet_time_scale_shift="scale_shift" if m.scale_shift else "default",
    num_class_embeds=m.num_classes + 1,
  )


def noise_table() -> DDIMScheduler:
  """The cosine table brought to pure noise at its end, where sampling starts (Lin et al. 2024), for a network that predicts v."""
  return DDIMScheduler(
    num_train_timesteps=1000,
    beta_schedule="squaredcos_cap_v2",
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    timestep_spacing="trailing",
    clip_sample=True,
  )


def clock_of(rate: float | None, batch_size: int) -> Callable[[], float]:
  """The wall's clock or, given a rate in images/s, one by which each reading but the first two is a step later."""
  if rate is None:
    return time.monotonic
  readings = itertools.chain([0], itertools.count())  # `train` reads it at its start and before each step
  return lambda: next(readings) * batch_size / rate


def trained_for(
  seconds: float,
  config: Any,
  model: UNet2DModel,
  scheduler: DDIMScheduler,
  seed: int,
  clock: Callable[[], float],
) -> Trained:
  """Trains on the config's data, and says what with what at the start and how fast at the end."""
  (batch,) = data.epoch(data.load(config.data.source, config.data.split), config.data, batch_size=1_000_000)
  images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).contiguous().to(DEVICE)
  theirs = sum(p.numel() for p in model.parameters())
  print(f"parameters: diffusers {theirs:,}, jaxdiff {our_parameters(config):,}")
  print(
    f"{len(images):,} images, {torch.get_num_threads()} threads, load of the machine {os.getloadavg()[0]:.2f}"
  )
  torch.manual_seed(seed)
  label = torch.from_numpy(batch["label"]).long().to(DEVICE)
  trained = train(config, model, scheduler, images, label, seconds, clock)
  rate = trained.steps * config.train.batch_size / trained.seconds
  print(f"trained {trained.steps} steps in {trained.seconds:.1f} s: {rate:.1f} images/s", flush=True)
  return trained


def our_parameters(config: Any) -> int:
  """The number of parameters of the config's own network."""
  task = tasks.make(config, optim.make_optimizer(config.optim, 1))
  shapes = jax.eval_shape(lambda: tasks.initial_state(config, task).params)
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def train(
  config: Any,
  model: UNet2DModel,
  scheduler: DDIMScheduler,
  images: torch.Tensor,
  label: torch.Tensor,
  seconds: float,
  clock: Callable[[], float],
) -> Trained:
  """Trains for so many seconds of the clock.  Shapes: images: u8[N,C,H,W]; label: i64[N]."""
  o, size, params = config.optim, config.train.batch_size, list(model.parameters())
  optimizer = torch.optim.AdamW(
    params, o.learning_rate, (o.beta1, o.beta2), o.epsilon, o.weight_decay, fused=True
  )
  # Its first copies, as ours, are those up to update number ema_start_step; min_decay leaves out its warm-up of the decay.
  ema = EMAModel(params, o.ema_decay, o.ema_decay, update_after_step=o.ema_start_step - 1, foreach=True)
  order, number, losses = torch.empty(0, dtype=torch.long), 0, []
  model.train()
  start = told = clock()
  while (now := clock()) - start < seconds:
    if now - told >= TELL_EVERY:
      speed, mean = number * size / (now - start), float(sum(losses)) / len(losses)
      print(f"{now - start:.0f} s: step {number}, loss {mean:.4f}, {speed:.1f} images/s", flush=True)
      told, losses = now, []
    if len(order) < size:
      order = torch.randperm(len(images))
    rows, order = order[:size], order[size:]
    optimizer.param_groups[0]["lr"] = learning_rate(o, number, (now - start) / seconds)
    x = images[rows].float() / 127.5 - 1
    error = loss(model, scheduler, x, label[rows], config.diffusion.label_dropout)
    optimizer.zero_grad(set_to_none=True)
    error.backward()
    torch.nn.utils.clip_grad_norm_(params, o.clip_norm, foreach=True)
    optimizer.step()
    ema.step(params)
    number += 1
    losses.append(error.detach())
  if DEVICE.type == "cuda":
    torch.cuda.synchronize()
  took = clock() - start
  ema.copy_to(params)
  return Trained(number, took, model.state_dict())


def learning_rate(o: Any, number: int, share: float) -> float:
  """The rate of update `number` (from 0) when this share of the time has passed: linear warm-up, cosine to 0."""
  return o.learning_rate * min(1.0, (number + 1) / o.warmup_steps) * 0.5 * (1 + math.cos(math.pi * share))


def loss(
  model: UNet2DModel, scheduler: DDIMScheduler, x: torch.Tensor, label: torch.Tensor, dropout: float
) -> torch.Tensor:
  """The mean squared error of v at uniform times.  Shapes: x: f32[B,C,H,W] in [-1, 1]; label: i64[B]."""
  t = torch.randint(scheduler.config.num_train_timesteps, (len(x),), device=DEVICE)
  eps = torch.randn_like(x)
  told = torch.where(torch.rand(len(x), device=DEVICE) < dropout, model.config.num_class_embeds - 1, label)
  v = model(scheduler.add_noise(x, eps, t), t, told).sample
  return torch.nn.functional.mse_loss(v, scheduler.get_velocity(x, eps, t))


@torch.inference_mode()
def draw(
  model: UNet2DModel, scheduler: DDIMScheduler, label: np.ndarray, scale: float, num_steps: int, seed: int
) -> np.ndarray:
  """An image of each label, u8[N,H,W,C]: the same noise for any scale and number of steps."""
  model.eval()
  scheduler.set_timesteps(num_steps)
  generator = torch.Generator().manual_seed(seed)
  shape = (model.config.in_channels, model.config.sample_size, model.config.sample_size)
  images, start = [], time.monotonic()
  for here in torch.from_numpy(label).long().split(BATCH):
    here = here.to(DEVICE)
    z = torch.randn((len(here), *shape), generator=generator).to(DEVICE)
    for t in scheduler.timesteps:
      v = guided(model, z, t, here, scale)
      # The noise that belongs to the clipped image, as this project's DDIM takes it.
      z = scheduler.step(v, t, z, eta=0.0, use_clipped_model_output=True).prev_sample
    images.append(((z + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy())
    print(f"{time.monotonic() - start:.0f} s: {sum(map(len, images))} of {len(label)} drawn", flush=True)
  return np.concatenate(images)


def guided(
  model: UNet2DModel, z: torch.Tensor, t: torch.Tensor, label: torch.Tensor, scale: float
) -> torch.Tensor:
  """v of classifier-free guidance, by one doubled batch; at scale 1 that of the label alone."""
  if scale == 1:
    return model(z, t, label).sample
  null = torch.full_like(label, model.config.num_class_embeds - 1)
  conditional, unconditional = model(torch.cat([z, z]), t, torch.cat([label, null])).sample.chunk(2)
  return unconditional + scale * (conditional - unconditional)


if __name__ == "__main__":
  main()
