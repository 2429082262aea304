"""What reliability costs: restarts, saves, and a step that is spread over devices.  (That nothing is lost: benchmarks.faults.)

python -m benchmarks.reliability restart [--runs 3]     seconds from a run's start to its first step: new, resumed, and resumed
                                                        with the compilation cache that the first start left
python -m benchmarks.reliability saves [--pairs 3]      a run that saves often beside one that saves at its end
python -m benchmarks.reliability scaling [--steps 20]   a train step on 1, 2, 4 devices that share this machine's cores

Digits' DiT, as configs/dit_cfg.py has it.  Each prints a table of medians.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import digits

WAYS = {  # (strategy, devices, config.parallel.fsdp)
  "1 device": ("mesh", 1, 1),
  "2, mesh": ("mesh", 2, 1),
  "4, mesh": ("mesh", 4, 1),
  "4, mesh, fsdp=4": ("mesh", 4, 4),
  "4, pmap": ("pmap", 4, 1),
}
QUIET = ("train.sample_every=0", "sample.num=4", "sample.steps=2")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("what", choices=KINDS)
  parser.add_argument("--runs", type=int, default=3)
  parser.add_argument("--pairs", type=int, default=3)
  parser.add_argument("--steps", type=int, default=20)
  flags = parser.parse_args()
  for row in KINDS[flags.what](flags):
    print(f"| {' | '.join(row)} |", flush=True)


def restart(flags: argparse.Namespace) -> list[tuple[str, ...]]:
  """Seconds to the first step of runs that are new, resumed without a cache, and resumed with one."""
  found: dict[str, list[float]] = {}
  for _ in range(flags.runs):
    with tempfile.TemporaryDirectory() as folder:
      workdir, cold, warm = (Path(folder) / name for name in ("run", "cold", "warm"))
      for number, (kind, cache) in enumerate(
        {"new": warm, "resumed": cold, "resumed, with cache": warm}.items(), 1
      ):
        # A learning rate that falls with the steps to come would make another program of each start.
        first, _ = timed_run(workdir, cache, f"train.steps={100 * number}", "optim.decay=constant")
        found.setdefault(kind, []).append(first)
  rows = [(kind, f"{statistics.median(seconds):.1f}") for kind, seconds in found.items()]
  return [("a run that is", "seconds to its first step"), ("---", "---:"), *rows]


def saves(flags: argparse.Namespace) -> list[tuple[str, ...]]:
  """Seconds that a save costs a run: the difference between one with a save every 10 steps and one without."""
  steps, every = 200, 10
  costs = []
  with tempfile.TemporaryDirectory() as folder:
    cache = Path(folder) / "cache"
    for pair in range(flags.pairs + 1):  # the first one fills the cache
      often, seldom = (
        timed_run(
          Path(folder) / f"{pair}_{save}", cache, f"train.steps={steps}", f"train.checkpoint_every={save}"
        )
        for save in (every, steps)
      )
      costs.append((often[1] - often[0] - seldom[1] + seldom[0]) / (steps / every - 1))
  cost = statistics.median(costs[1:])
  return [
    ("a save costs the run, ms", "a step, at one save in 1,000"),
    ("---:", "---:"),
    (f"{1000 * cost:.0f}", f"{cost:.2f} ms"),
  ]


def timed_run(workdir: Path, cache: Path, *options: str) -> tuple[float, float]:
  """(seconds from the start of a run to its first step, and to its end), with compiled programs in `cache`."""
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
  own = [f"--config.{option}" for option in (*QUIET, *options)]
  return digits.train("configs/dit_cfg.py", workdir, ["--allow_config_change", *own])


def scaling(flags: argparse.Namespace) -> list[tuple[str, ...]]:
  """Milliseconds of a train step by how many simulated devices share it, and how."""
  count = max(devices for _, devices, _ in WAYS.values())
  from jaxdiff import platform

  platform.simulate(count)
  platform.configure()
  found = {way: step_seconds(*given, steps=flags.steps) for way, given in WAYS.items()}
  one = found["1 device"]
  rows = [(way, f"{1000 * seconds:.0f}", f"{seconds / one:.2f}") for way, seconds in found.items()]
  return [("devices", "ms a step", "of one device's"), ("---", "---:", "---:"), *rows]


def step_seconds(name: str, devices: int, fsdp: int, steps: int) -> float:
  """The median of a compiled train step's seconds."""
  import jax
  import numpy as np

  from jaxdiff import configuration, parallel, tasks
  from jaxdiff.train_step import make_train_step

  config: Any = configuration.load("configs/dit_cfg.py")
  configuration.override(config, [f"--config.parallel.strategy={name}", f"--config.parallel.fsdp={fsdp}"])
  size = config.train.batch_size
  strategy = parallel.STRATEGIES[name](config.parallel, size, jax.devices()[:devices])
  tx = tasks.optimizer(config)
  task = tasks.make(config, tx)
  state = strategy.init(functools.partial(tasks.initial_state, config, task))
  numbers = np.arange(size)
  batch = {
    "image": np.zeros((size, 8, 8, 1), np.uint8),
    "label": (numbers % 10).astype(np.int32),
    "index": numbers.astype(np.uint32),
  }
  placed = strategy.place_batch(batch)
  step = strategy.lower(make_train_step(task, tx), state, placed).compile()
  taken = []
  for _ in range(2 + steps):
    begin = time.perf_counter()
    state, measured = step(state, placed)
    jax.block_until_ready((state, measured))
    taken.append(time.perf_counter() - begin)
  return statistics.median(taken[2:])


KINDS: dict[str, Callable[[argparse.Namespace], list[tuple[str, ...]]]] = {
  "restart": restart,
  "saves": saves,
  "scaling": scaling,
}

if __name__ == "__main__":
  from jaxdiff import platform

  platform.with_huge_pages()
  main()
