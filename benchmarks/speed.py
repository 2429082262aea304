"""Seconds of a train step and of guided sampling, against the same network in PyTorch, on this machine's CPU.

python -m benchmarks.speed [--case NAME ...] [--repeats 15] [--quick] [--json FILE]     (pip install torch)

Each framework runs in a process of its own, with its default threads; this process lets them run in turn, one
measurement at a time with a pause between, so that a slow minute of the machine hits all alike. Float32. What is
timed is the project's own train step and sampler. The rivals (benchmarks/rivals) have the same parameters and,
as tests/models/test_rivals.py checks, the same output; they train with fused AdamW and foreach EMA and clipping.
Ratios are PyTorch's time over ours, so above 1 ours is faster: the median over the rounds with its quartiles, then
that of the fastest rounds, which a busy machine disturbs less. Believe them on an idle one: PyTorch's threads wait
for each other by spinning, and suffer more from other programs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RIVALS = ("torch", "torch.compile")
PAUSE = 0.3  # seconds, for the threads of the one that ran to go to sleep
WARMUP = 3

NANO = {"width": 64, "depth": 4, "heads": 2}
TINY = {"width": 128, "depth": 6, "heads": 4}
SMALL = {"width": 384, "depth": 12, "heads": 6}
DIT = {"name": "dit", "num_classes": 1000, "channels": 4, "learn_sigma": False, "patch_size": 4} | SMALL
UNET = {
  "name": "unet",
  "num_classes": 10,
  "channels": 3,
  "learn_sigma": False,
  "width": 64,
  "channel_mults": (1, 2, 2),
  "num_blocks": 2,
  "attention_sizes": (8,),
  "heads": 4,
  "scale_shift": True,
  "resblock_updown": False,
}
DIGITS = {"name": "dit", "num_classes": 10, "channels": 1, "learn_sigma": False, "patch_size": 2}


class Case(NamedTuple):
  """What is timed."""

  model: dict[str, Any]  # a config's model section
  image_size: int
  batch_size: int
  sampling_steps: int  # 0: a train step
  floor: float  # the ratio to eager PyTorch that the project promises
  runs: int = 1  # in one measurement

  @property
  def shape(self) -> tuple[int, int, int, int]:
    return (self.batch_size, self.image_size, self.image_size, self.model["channels"])


CASES = {
  "dit_train": Case(DIT, 32, 16, 0, floor=0.95),
  "unet_train": Case(UNET, 32, 8, 0, floor=0.88),
  "dit_sample_1": Case(DIT, 32, 1, 10, floor=1.4),
  "dit_sample_16": Case(DIT, 32, 16, 10, floor=1.4),
  "nano_sample_1": Case(DIGITS | NANO, 8, 1, 10, floor=3.0, runs=20),
  "nano_sample_16": Case(DIGITS | NANO, 8, 16, 10, floor=3.0, runs=10),
  "tiny_sample_1": Case(DIGITS | TINY, 8, 1, 10, floor=3.0, runs=20),
  "tiny_sample_16": Case(DIGITS | TINY, 8, 16, 10, floor=3.0, runs=5),
}


def ours(case: Case) -> tuple[Callable[[], Any], int]:
  """(one train step or one batch of samples, number of parameters) of jaxdiff."""
  os.environ["JAX_PLATFORMS"] = "cpu"
  from jaxdiff import platform

  platform.configure()
  import jax
  import jax.numpy as jnp
  import ml_collections

  from configs import base
  from jaxdiff import optim, train_step
  from jaxdiff.diffusion import guidance, samplers, schedules
  from jaxdiff.tasks import denoise
  from jaxdiff.types import Cond

  config = base.get_config()
  config.model = ml_collections.ConfigDict(case.model)
  tx = optim.make_optimizer(config.optim, 1000)
  task = denoise.make(config, tx)
  label = jnp.arange(case.batch_size, dtype=jnp.int32) % 10
  image = jax.random.randint(jax.random.key(1), case.shape, 0, 256).astype(jnp.uint8)
  batch = {"image": image, "label": label, "index": jnp.arange(case.batch_size, dtype=jnp.uint32)}
  state = jax.jit(task.init)(jax.random.key(0), batch)
  number = sum(p.size for p in jax.tree.leaves(state.params))

  if case.sampling_steps:
    times = samplers.time_grid(case.sampling_steps)

    @jax.jit
    def draw(params: Any, seed: int, label: Any) -> Any:
      key = jax.random.key(seed)
      z = jax.random.normal(key, case.shape)
      guided = guidance.classifier_free(task.denoiser(params, state), 2.0)
      return samplers.sample(samplers.ddim(), schedules.cosine(), guided, key, z, times, Cond(label))

    return lambda: draw(state.params, 2, label).block_until_ready(), number

  step = jax.jit(train_step.make_train_step(task, tx), donate_argnums=0)

  def train() -> None:
    nonlocal state
    state, _ = step(state, batch)
    jax.block_until_ready(state)

  return train, number


def rival(case: Case, compiled: bool) -> tuple[Callable[[], Any], int]:
  """The same of PyTorch: loss on v under the cosine schedule, clipping, AdamW, EMA; DDIM with guidance."""
  import numpy as np
  import torch

  from benchmarks.rivals import torch_dit, torch_unet
  from jaxdiff.models import dit

  settings = {key: value for key, value in case.model.items() if key != "name"}
  torch.manual_seed(0)
  model: torch.nn.Module
  if case.model["name"] == "dit":
    side = case.image_size // settings["patch_size"]
    model = torch_dit.DiT(**settings, position=dit.position_table(side, side, settings["width"]))
  else:
    model = torch_unet.UNet(image_size=case.image_size, **settings)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
  params = list(model.parameters())
  number = sum(p.numel() for p in params)
  network = torch.compile(model) if compiled else model
  label = torch.arange(case.batch_size) % 10

  def alpha_sigma(t: Any) -> tuple[Any, Any]:
    angle = 0.5 * np.pi * t
    return torch.cos(angle), torch.sin(angle)

  if case.sampling_steps:
    grid = torch.linspace(1, 0, case.sampling_steps + 1)
    null = torch.full_like(label, settings["num_classes"])

    @torch.inference_mode()
    def draw() -> Any:
      z = torch.randn(case.shape)
      for t, s in itertools.pairwise(grid):
        (alpha, sigma), (alpha_s, sigma_s) = alpha_sigma(t), alpha_sigma(s)
        both = network(z.repeat(2, 1, 1, 1), (999 * t).expand(2 * len(z)), torch.cat([label, null]))
        conditional, unconditional = both.chunk(2)
        v = 2 * conditional - unconditional
        z = alpha_s * (alpha * z - sigma * v) + sigma_s * (sigma * z + alpha * v)
      return z

    return draw, number

  average = [p.detach().clone() for p in params]
  optimizer = torch.optim.AdamW(params, 1e-4, weight_decay=0.0, fused=True)
  image = torch.randint(0, 256, case.shape, dtype=torch.uint8)

  def train() -> None:
    x = image.float() / 127.5 - 1
    t, eps = torch.rand(case.batch_size), torch.randn(case.shape)
    alpha, sigma = (a[:, None, None, None] for a in alpha_sigma(t))
    kept = torch.where(torch.rand(case.batch_size) < 0.1, settings["num_classes"], label)
    error = network(alpha * x + sigma * eps, 999 * t, kept) - (alpha * eps - sigma * x)
    loss = error.square().mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
    optimizer.step()
    torch._foreach_lerp_(average, [p.detach() for p in params], 1e-4)

  return train, number


def work(name: str, case: Case) -> None:
  """A worker: says its number of parameters once warm, then answers each line of input by a time in seconds."""
  run, number = ours(case) if name == "jaxdiff" else rival(case, compiled=name == "torch.compile")
  for _ in range(WARMUP):
    run()
  print(number, flush=True)
  for _ in sys.stdin:
    start = time.perf_counter()
    for _ in range(case.runs):
      run()
    print((time.perf_counter() - start) / case.runs, flush=True)


def measure(name: str, repeats: int) -> dict[str, list[float]]:
  """Seconds of every framework that works here, round by round."""
  workers, numbers = {}, {}
  for framework in ("jaxdiff", *RIVALS):
    command = [sys.executable, "-m", "benchmarks.speed", "--worker", framework, "--case", name]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    worker = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
    number = worker.stdout.readline()
    if number:
      workers[framework], numbers[framework] = worker, int(number)
    elif framework == "jaxdiff":
      raise SystemExit(worker.communicate()[1])
    else:
      reason = [line for line in worker.communicate()[1].splitlines() if line.strip()]
      print(f"{name}: {framework} does not run here: {reason[-1][:160] if reason else 'no reason given'}")
  if len(set(numbers.values())) != 1:
    raise SystemExit(f"{name}: the networks differ in their number of parameters: {numbers}")

  seconds: dict[str, list[float]] = {framework: [] for framework in workers}
  for _ in range(repeats):
    for framework, worker in workers.items():
      time.sleep(PAUSE)
      worker.stdin.write("run\n")
      worker.stdin.flush()
      seconds[framework].append(float(worker.stdout.readline()))
  for worker in workers.values():
    worker.communicate()
  return seconds


def ratios(seconds: dict[str, list[float]], framework: str) -> list[float]:
  """A rival's time over ours, round by round."""
  return [theirs / ours for theirs, ours in zip(seconds[framework], seconds["jaxdiff"], strict=True)]


def row(name: str, seconds: dict[str, list[float]]) -> str:
  """A line of the table: medians with the quartiles of the rounds."""

  def spread(values: list[float], digits: int, unit: float = 1.0) -> str:
    low, middle, high = statistics.quantiles([unit * v for v in values], n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

  cells = [name, spread(seconds["jaxdiff"], 1, 1000)]
  for framework in RIVALS:
    if framework in seconds:
      fastest = min(seconds[framework]) / min(seconds["jaxdiff"])
      cells += [
        spread(seconds[framework], 1, 1000),
        f"{spread(ratios(seconds, framework), 2)}, {fastest:.2f}",
      ]
    else:
      cells += ["not here", ""]
  return " | ".join([*cells, f"{CASES[name].floor:.2f}"])


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--case", action="append", choices=CASES, help="only this one (may be repeated)")
  parser.add_argument("--repeats", type=int, default=15, help="rounds, of which the medians are taken")
  parser.add_argument("--quick", action="store_true", help="3 rounds")
  parser.add_argument("--json", type=Path, help="write all times there")
  parser.add_argument("--worker", choices=("jaxdiff", *RIVALS), help=argparse.SUPPRESS)
  flags = parser.parse_args()
  names = flags.case or list(CASES)
  if flags.worker:
    work(flags.worker, CASES[names[0]])
    return 0
  results = {}
  print(f"load of the machine before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
  print("case | jaxdiff, ms | torch, ms | torch/jaxdiff | torch.compile, ms | torch.compile/jaxdiff | floor")
  for name in names:
    results[name] = measure(name, 3 if flags.quick else max(2, flags.repeats))
    print(row(name, results[name]), flush=True)
  if flags.json:
    flags.json.write_text(json.dumps(results, indent=1))
  return 0


if __name__ == "__main__":
  sys.exit(main())
