"""What kill -9 costs a run, at any moment: a few steps, and not one bit of the result.

python -m benchmarks.faults [--kills 10] [--steps 200] [--save_every 5] [--seed 0]

A tiny DiT on digits is trained once undisturbed. Then the same run is killed --kills times: every fourth time while it starts
or compiles, else while it steps and saves, at moments drawn by --seed. Each start goes on from the newest whole checkpoint;
the last one is left alone. Its state is compared with the undisturbed one's, bit for bit.

Prints a table; exit status 1 if the states differ.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdiff import checkpoints, configuration, reporting, tasks

TINY = (
  "model.width=16", "model.depth=2", "model.heads=2", "train.batch_size=8", "train.sample_every=0", "train.log_every=5",
  "optim.warmup_steps=2", "optim.ema_start_step=2", "sample.num=4", "sample.steps=2",
)  # fmt: skip


class Kill(NamedTuple):
  """One start that was killed."""

  seconds: float  # after its start
  found: int  # the newest checkpoint when it started, 0: none
  left: int  # and when it was killed
  half: int  # saves that were cut short


class Faults(NamedTuple):
  kills: list[Kill]
  start: float  # seconds of the undisturbed run until its first checkpoint
  seconds: float  # and until its end
  is_equal: bool  # the last state, to the bit


def command(workdir: Path, steps: int, save_every: int) -> list[str]:
  options = (*TINY, f"train.steps={steps}", f"train.checkpoint_every={save_every}")
  own = [f"--config.{option}" for option in options]
  return [
    sys.executable,
    "-m",
    "jaxdiff.main",
    "--config",
    "configs/dit_cfg.py",
    "--workdir",
    str(workdir),
    *own,
  ]


def finish(arguments: Sequence[str], workdir: Path) -> tuple[float, float]:
  """Runs to the end; returns the seconds until its first checkpoint and until its end.  Raises RuntimeError if it fails."""
  begin = time.monotonic()
  process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
  while not saved(workdir)[0] and process.poll() is None:
    time.sleep(0.02)
  first = time.monotonic() - begin
  if process.wait():
    raise RuntimeError(f"exit status {process.returncode} of {' '.join(arguments)}")
  return first, time.monotonic() - begin


def run(folder: Path, kills: int, steps: int, save_every: int, seed: int) -> Faults:
  """Trains undisturbed and under `kills` kills, in two workdirs of a folder."""
  whole, killed = folder / "undisturbed", folder / "killed"
  start, seconds = finish(command(whole, steps, save_every), whole)
  draw, again = random.Random(seed), command(killed, steps, save_every)
  every = []
  for number in range(1, kills + 1):
    starts = number % 4 == 0
    delay = draw.uniform(0, start / 2 if starts else (seconds - start) / kills)
    every.append(kill_after(delay, killed, again, from_first_save=not starts))
  finish(again, killed)
  states = [last_state(workdir) for workdir in (whole, killed)]
  return Faults(every, start, seconds, jax.tree.all(jax.tree.map(is_same, *states)))


def kill_after(delay: float, workdir: Path, arguments: Sequence[str], from_first_save: bool) -> Kill:
  """Starts a run and kills it so many seconds later, or after the first checkpoint of its own, unless it has ended."""
  found, _ = saved(workdir)
  begin = time.monotonic()
  process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
  while from_first_save and saved(workdir)[0] == found and process.poll() is None:
    time.sleep(0.01)
  try:
    process.wait(delay)
  except subprocess.TimeoutExpired:
    process.kill()
  finally:
    process.wait()
  return Kill(time.monotonic() - begin, found, *saved(workdir))


def saved(workdir: Path) -> tuple[int, int]:
  """(the newest whole checkpoint or 0, how many were cut short)."""
  names = [path.name for path in (workdir / checkpoints.FOLDER).glob("*")]
  return max((int(name) for name in names if name.isdigit()), default=0), sum("tmp" in name for name in names)


def last_state(workdir: Path) -> Any:
  """The newest checkpoint's state as NumPy arrays."""
  config = configuration.of_run(workdir)
  task = tasks.make(config, tasks.optimizer(config))
  abstract = jax.eval_shape(lambda: tasks.initial_state(config, task))
  restored = checkpoints.restore(checkpoints.open_for_reading(workdir), abstract, set_aside=False)
  if restored is None:
    raise RuntimeError(f"there is no checkpoint in {workdir}")
  state = restored[0]
  return jax.tree.map(np.asarray, state.replace(rng=jax.random.key_data(state.rng)))


def is_same(a: np.ndarray, b: np.ndarray) -> bool:
  return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def table(found: Faults) -> str:
  head = ["start", "killed after", "went on from step", "left step", "saves cut short"]
  rows = [
    [str(number), f"{kill.seconds:.1f} s", str(kill.found), str(kill.left), str(kill.half)]
    for number, kill in enumerate(found.kills, 1)
  ]
  lines = ["| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]]
  same = "the same to the bit" if found.is_equal else "DIFFERENT"
  return "\n".join(
    [
      *lines,
      "",
      f"Undisturbed: {found.seconds:.1f} s, {found.start:.1f} s of them to the first checkpoint. The two states are {same}.",
    ]
  )


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__.splitlines()[0] if __doc__ else None, allow_abbrev=False
  )
  parser.add_argument("--kills", type=int, default=10)
  parser.add_argument("--steps", type=int, default=200)
  parser.add_argument("--save_every", type=int, default=5)
  parser.add_argument("--seed", type=int, default=0)
  flags = parser.parse_args()
  reporting.setup_logging()
  with tempfile.TemporaryDirectory() as folder:
    found = run(Path(folder), flags.kills, flags.steps, flags.save_every, flags.seed)
  print(table(found))
  return 0 if found.is_equal else 1


if __name__ == "__main__":
  sys.exit(main())
