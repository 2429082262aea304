"""How a train step grows: its time with the tokens of an image and with the batch, its memory with the network's depth.

python -m benchmarks.growth [--quick] [--out growth] [--width 384] [--tokens 64,256,1024,4096] [--batches 1,2,4,8,16,32]

Writes growth.json and growth.png there.  A DiT's real train step on this machine's first device, one axis at a time; the fastest
of a few steps.  FLOPs are those of the formula in benchmarks/suite/flops.py: where time grows faster than they do, the device does
worse, and where it grows slower, better.  The percentages are of the rate of a product of large square matrices, measured after
each point.  Memory is that of one device as --mode plan has it (state, batch and what the compiler
plans for the step beside them, one image on each), so that no depth has to fit: with blocks kept or computed again in the backward
pass (config.model.remat), and with the state split over four devices (config.parallel.fsdp), which the CPU passes for where they
are not here.  Blocks are in a loop there (config.model.scan): elsewhere XLA:CPU undoes the computing again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.suite import flops, report, wheels
from benchmarks.suite.cases import LATENTS, Case
from benchmarks.suite.measure import WARM

PATCH = 2  # pixels, so that 4 tokens are an image of 4x4
SHARED = 4  # devices, where they share a state
# a curve -> (devices that share a state, config.model.remat)
PLANS = {f"remat {name}": (1, name) for name in ("none", "dots", "full")} | {
  f"fsdp over {SHARED}, remat {name}": (SHARED, name) for name in ("none", "full")
}
Point = dict[str, float]


def case(width: int, depth: int, tokens: int, batch_size: int, *changes: str, scan: bool = False) -> Case:
  """A train step of a DiT that works on so many tokens an image."""
  side = round(tokens**0.5)
  if side**2 != tokens:
    raise SystemExit(f"{tokens} tokens are no square. Use 64, 256, 1024 or 4096.")
  size = {"patch_size": PATCH, "width": width, "depth": depth, "heads": max(1, width // 64)}
  model = LATENTS | size | {"scan": scan}
  return Case("train", model, PATCH * side, batch_size, changes=changes)


def timed(what: Case, steps: int) -> Point:
  """Seconds and FLOPs of a step, and the FLOP/s of products of large matrices right after it."""
  from benchmarks.suite import ours

  runner = ours.train(what)
  begin, seconds = time.perf_counter(), []
  while time.perf_counter() - begin < WARM:
    runner.run()
  for _ in range(steps):
    start = time.perf_counter()
    runner.run()
    seconds.append(time.perf_counter() - start)
  assert runner.matmul is not None
  return {"seconds": min(seconds), "flops": flops.of_step(what), "matmul": runner.matmul()}


def planned(width: int, tokens: int, depths: Sequence[int]) -> dict[str, dict[int, Point]]:
  """Bytes of a device for each curve and depth.  Runs in a process of its own, whose CPU may pass for several devices."""
  wheels.stand_in()
  from benchmarks.suite import ours
  from jaxdiff import parallel, plan, tasks

  available = plan.devices_for(SHARED)

  def point(depth: int, devices: int, remat: str) -> Point:
    changes = (f"model.remat={remat}", f"parallel.fsdp={devices}")
    c = ours.config(case(width, depth, tokens, devices, *changes, scan=True))
    state, step = plan.abstract(c)
    held = plan.state_bytes(state, parallel.shardings(c.parallel, devices, state))
    batch = tasks.abstract_batch(c, devices)
    beside = plan.step_bytes(step, state, batch, available[:devices], devices)
    return {"bytes": sum(held.values()) + plan.tree_bytes(batch) / devices + beside}

  return {name: {depth: point(depth, *how) for depth in depths} for name, how in PLANS.items()}


def times(flags: argparse.Namespace) -> dict[str, dict[int, Point]]:
  """The curves of time, each {x: point}; prints a line for each point."""
  steps, tokens = 1 if flags.quick else 5, flags.tokens
  points = {"tokens": [(n, 1) for n in tokens], "batch": [(tokens[0], n) for n in flags.batches]}
  found: dict[str, dict[int, Point]] = {axis: {} for axis in points}
  for axis, sizes in points.items():
    for size in sizes:
      n = size[axis == "batch"]
      point = found[axis][n] = timed(case(flags.width, flags.depth, *size), steps)
      rate = point["flops"] / point["seconds"]
      share = f"{rate / 1e9:,.1f} GFLOP/s, {100 * rate / point['matmul']:.0f}%"
      print(f"{axis} {n}: {1000 * point['seconds']:.1f} ms, {share}", flush=True)
  return found


def memory(flags: argparse.Namespace) -> dict[str, dict[int, Point]]:
  """The curves of memory, each {blocks: point}; prints a line for each curve."""
  with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
    found = other.submit(planned, flags.width, flags.tokens[-1], flags.depths).result()
  for name, curve in found.items():
    told = (f"{n} blocks {point['bytes'] / 2**20:,.0f} MiB" for n, point in curve.items())
    print(f"{name}: {', '.join(told)}", flush=True)
  return found


def numbers(text: str) -> list[int]:
  """For argparse: 64,256."""
  return [int(part) for part in text.split(",")]


def plot(found: dict[str, Any], path: Path) -> None:
  """Three panels: time against tokens and batch, with the line on which it grows as the FLOPs; memory against depth."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(12, 3.6), layout="constrained")
  panels: Sequence[Any] = figure.subplots(1, 3)
  for panel, axis, label in zip(
    panels, ("tokens", "batch"), ("tokens an image", "images a batch"), strict=False
  ):
    curve = found[axis]
    first = next(iter(curve.values()))
    xs = [int(n) for n in curve]
    panel.loglog(xs, [point["seconds"] for point in curve.values()], "o-", label="measured")
    asked = [first["seconds"] * point["flops"] / first["flops"] for point in curve.values()]
    panel.loglog(xs, asked, ":", color="gray", label="as the FLOPs grow")
    panel.set(xlabel=label, ylabel="seconds a step")
  for name, curve in found["depth"].items():
    panels[2].plot(
      [int(n) for n in curve], [point["bytes"] / 2**20 for point in curve.values()], "o-", label=name
    )
  panels[2].set(xlabel="blocks", ylabel="MiB of a device", ylim=(0, None))
  for panel in panels:
    panel.legend()
    panel.grid(alpha=0.3)
  figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> int:
  flags = parse(arguments)
  if lacking := wheels.missing((*wheels.ALWAYS, "matplotlib")):
    raise SystemExit(f"not here: {', '.join(lacking)}.")
  wheels.stand_in()
  from jaxdiff import platform

  platform.configure()
  print(of := report.heading(), flush=True)
  flags.out.mkdir(parents=True, exist_ok=True)
  file, found = flags.out / "growth.json", {"of": of} | times(flags)
  file.write_text(json.dumps(found, indent=1) + "\n")  # minutes of measuring, before what else may fail
  found |= {"depth": memory(flags)}
  file.write_text(json.dumps(found, indent=1) + "\n")
  plot(found, flags.out / "growth.png")
  return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=Path, default=Path("growth"), help="folder")
  parser.add_argument("--width", type=int, default=384)
  parser.add_argument("--depth", type=int, default=4, help="blocks, where time is measured")
  parser.add_argument("--tokens", type=numbers, default="64,256,1024,4096", help="of an image, at batch 1")
  parser.add_argument(
    "--batches", type=numbers, default="1,2,4,8,16,32", help="at the first number of tokens"
  )
  parser.add_argument(
    "--depths", type=numbers, default="2,4,8,12", help="at the last number of tokens, batch 1"
  )
  parser.add_argument("--quick", action="store_true", help="one step each")
  return parser.parse_args(arguments)


if __name__ == "__main__":
  from jaxdiff import platform

  platform.with_huge_pages()
  sys.exit(main())
