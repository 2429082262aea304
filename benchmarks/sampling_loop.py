"""Milliseconds of guided DDIM: our compiled loop, a Python loop of jitted steps, and diffusers' loop over PyTorch.

python -m benchmarks.sampling_loop [--steps 50] [--repeats 15] [--quick]     (pip install torch diffusers)

The digits DiT at batch sizes 1 and 16, float32, on this machine's CPU.  All three solve the same problem: the same
parameters, start noise and labels, the discrete cosine table with trailing steps, v-prediction, guidance by one doubled
batch; that they draw the same images is checked.  Each runs in a process of its own with its default threads, and they take
turns, with a pause between, as in benchmarks.run.  Ratios are a loop's time over that of ours in the same round, so above 1
ours is faster; medians with the quartiles of the rounds.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.suite.cases import DIGITS, TINY
from benchmarks.suite.measure import PAUSE, ratios

MODEL: dict[str, Any] = DIGITS | TINY
SIDE, SCALE = 8, 2.0
WARMUP = 3  # drawings that do not count
TOLERANCE = 1e-3  # between images, whose values are of order 1
Draw = Callable[[], np.ndarray]


def problem(batch_size: int) -> tuple[Any, Any, np.ndarray, np.ndarray]:
  """(task, parameters in NumPy, start noise f32[B,8,8,1], labels i32[B]), the same in every process."""
  os.environ["JAX_PLATFORMS"] = "cpu"
  from jaxdiff import platform

  platform.configure()
  import jax
  import ml_collections

  from configs import base
  from jaxdiff import optim, tasks

  rng = np.random.default_rng(0)
  z = rng.standard_normal((batch_size, SIDE, SIDE, MODEL["channels"])).astype(np.float32)
  label = np.arange(batch_size, dtype=np.int32) % MODEL["num_classes"]
  config = base.get_config()
  config.model = ml_collections.ConfigDict(MODEL)
  config.diffusion.schedule, config.diffusion.parameterization = "cosine_discrete", "v"
  task = tasks.make(config, optim.make_optimizer(config.optim, 1))
  shapes = jax.eval_shape(lambda: tasks.initial_state(config, task)).params
  params = jax.tree.map(lambda leaf: 0.05 * rng.standard_normal(leaf.shape).astype(np.float32), shapes)
  return task, params, z, label


def ours(batch_size: int, num_steps: int, is_compiled: bool) -> tuple[Draw, int]:
  """(one batch of samples, number of parameters): the library's loop as one program, or a program for each step."""
  task, params, z, label = problem(batch_size)
  import jax
  import jax.numpy as jnp

  from jaxdiff.diffusion import guidance, samplers, schedules
  from jaxdiff.types import Cond

  schedule, sampler, key = schedules.cosine_discrete(), samplers.ddim(), jax.random.key(0)
  times = samplers.time_grid(num_steps, "trailing").astype(np.float32)
  params, z, label = jax.tree.map(jnp.asarray, (params, z, label))

  def guided(params: Any) -> Any:
    return guidance.classifier_free(task.denoiser(params, None), SCALE)

  @jax.jit
  def loop(params: Any, z: Any, label: Any) -> Any:
    return samplers.sample(sampler, schedule, guided(params), key, z, times, Cond(label))

  @jax.jit
  def step(params: Any, z: Any, t: Any, s: Any, label: Any) -> Any:
    return sampler.step(key, z, (), t, s, Cond(label), guided(params), schedule)[0]

  def draw() -> np.ndarray:
    if is_compiled:
      return np.asarray(loop(params, z, label))
    image = z
    for t, s in itertools.pairwise(times):
      image = step(params, image, t, s, label)
    return np.asarray(image)

  return draw, sum(leaf.size for leaf in jax.tree.leaves(params))


def diffusers(batch_size: int, num_steps: int) -> tuple[Draw, int]:
  """The same of diffusers' DDIMScheduler, in the loop that its pipelines run."""
  _, params, start, classes = problem(batch_size)
  import torch
  from diffusers import DDIMScheduler

  from benchmarks.rivals import torch_dit
  from jaxdiff.models import dit

  settings = {key: value for key, value in MODEL.items() if key != "name"}
  side = SIDE // settings["patch_size"]
  model = torch_dit.DiT(**settings, position=dit.position_table(side, side, settings["width"]))
  torch_dit.load(model, params)
  scheduler: Any = DDIMScheduler(
    beta_schedule="squaredcos_cap_v2",
    prediction_type="v_prediction",
    timestep_spacing="trailing",
    clip_sample=False,
  )
  noise, label = torch.from_numpy(start), torch.from_numpy(classes).long()
  labels = torch.cat([label, torch.full_like(label, settings["num_classes"])])

  @torch.inference_mode()
  def draw() -> np.ndarray:
    scheduler.set_timesteps(num_steps)
    z = noise
    for t in scheduler.timesteps:
      conditional, unconditional = model(torch.cat([z, z]), t.expand(len(labels)), labels).chunk(2)
      v = unconditional + SCALE * (conditional - unconditional)
      z = scheduler.step(v, t, z, eta=0.0).prev_sample
    return z.numpy()

  return draw, sum(p.numel() for p in model.parameters())


LOOPS: dict[str, Callable[[int, int], tuple[Draw, int]]] = {
  "jaxdiff": lambda batch_size, num_steps: ours(batch_size, num_steps, is_compiled=True),
  "Python loop": lambda batch_size, num_steps: ours(batch_size, num_steps, is_compiled=False),
  "diffusers": diffusers,
}


def work(pipe: Any, name: str, batch_size: int, num_steps: int) -> None:
  """A worker: sends its images and number of parameters once warm, then a time in seconds for each True."""
  draw, number = LOOPS[name](batch_size, num_steps)
  for _ in range(WARMUP):
    images = draw()
  pipe.send((images, number))
  while pipe.recv():
    start = time.perf_counter()
    draw()
    pipe.send(time.perf_counter() - start)


def measure(batch_size: int, num_steps: int, repeats: int) -> dict[str, list[float]]:
  """Seconds of every loop, round by round."""
  context = multiprocessing.get_context("spawn")
  workers, pipes, images, numbers = [], {}, {}, {}
  for name in LOOPS:
    pipes[name], end = context.Pipe()
    workers.append(context.Process(target=work, args=(end, name, batch_size, num_steps), daemon=True))
    workers[-1].start()
    end.close()  # so that a worker that dies is an EOFError here
    images[name], numbers[name] = pipes[name].recv()
  apart = max(float(np.abs(image - images["jaxdiff"]).max()) for image in images.values())
  if len(set(numbers.values())) != 1 or not apart < TOLERANCE:
    raise SystemExit(
      f"the loops do not solve the same problem: parameters {numbers}, images {apart:.1e} apart"
    )
  print(f"batch size {batch_size}: {numbers['jaxdiff']:,} parameters, images {apart:.0e} apart at most")

  seconds: dict[str, list[float]] = {name: [] for name in LOOPS}
  for _ in range(repeats):
    for name, pipe in pipes.items():
      time.sleep(PAUSE)
      pipe.send(True)
      seconds[name].append(pipe.recv())
  for pipe in pipes.values():
    pipe.send(False)
  for worker in workers:
    worker.join()
  return seconds


def spread(values: list[float], digits: int) -> str:
  """Median and quartiles."""
  low, middle, high = statistics.quantiles(values, n=4)
  return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--steps", type=int, default=50)
  parser.add_argument("--repeats", type=int, default=15, help="rounds, of which the medians are taken")
  parser.add_argument("--quick", action="store_true", help="3 rounds")
  flags = parser.parse_args()
  print(f"load of the machine before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
  rows = []
  for batch_size in (1, 16):
    seconds = measure(batch_size, flags.steps, 3 if flags.quick else max(2, flags.repeats))
    cells = [str(batch_size), *(spread([1000 * v for v in seconds[name]], 1) for name in LOOPS)]
    cells += [spread(ratios(seconds, name), 2) for name in LOOPS if name != "jaxdiff"]
    rows.append("| " + " | ".join(cells) + " |")
  others = [f"{name} / jaxdiff" for name in LOOPS if name != "jaxdiff"]
  print("\n| batch size | " + " | ".join([f"{name}, ms" for name in LOOPS] + others) + " |")
  print("| ---: |" + " ---: |" * (len(LOOPS) + len(others)))
  print("\n".join(rows))


if __name__ == "__main__":
  from jaxdiff import platform

  platform.with_huge_pages()
  main()
