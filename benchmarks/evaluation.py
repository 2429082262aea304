"""Accuracy against Frechet distance of both kinds of guidance, and what an evaluation costs.

python -m benchmarks.evaluation sweep --conditional DIR --unconditional DIR --classifier DIR --judge DIR [--num 2000]
python -m benchmarks.evaluation cost --workdir DIR --judge DIR

sweep: classifier-free guidance of a conditional run and classifier guidance of an unconditional one (by --classifier, trained
on noised images), each at several scales; distances in the features of --judge, a classifier of clean images, which tells
classes too.  Next to them the same of real images where there is another split (--real test).  Prints a table and draws
--out.  On digits: configs/dit_cfg.py, the same with --config.diffusion.label_dropout=1, configs/classifier_cfg.py and
configs/classifier_cfg.py:clean.

cost: peak memory and seconds of evaluations of 1,000 and 10,000 images, each in a process of its own that starts from nothing;
seconds per 1,000 are of the difference, without what starting costs.

Runs are copied first: the workdirs stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jaxdiff import exported

SCALES = {"guidance": "0,1,1.25,1.5,2,3,5", "classifier_scale": "0,0.5,1,2,4,8,16"}
NAMES = {"guidance": "classifier-free guidance", "classifier_scale": "classifier guidance"}
COLORS = {"guidance": "#1f6fb4", "classifier_scale": "#c0392b"}
COLUMNS = ("frechet", "kid", "precision", "recall", "coverage", "accuracy", "near_copies")

Row = dict[str, Any]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  kinds = parser.add_subparsers(required=True)
  of_sweep = kinds.add_parser("sweep")
  for name in ("conditional", "unconditional", "classifier", "judge"):
    of_sweep.add_argument(f"--{name}", type=Path, required=True, metavar="DIR")
  of_sweep.add_argument("--num", type=int, default=2000)
  of_sweep.add_argument("--steps", type=int, default=50)
  of_sweep.add_argument("--real", metavar="SPLIT", help="a split of real images, scored as well")
  of_sweep.add_argument("--out", type=Path, default=Path("docs/images/guidance_sweeps.png"))
  of_sweep.set_defaults(run=sweep)
  of_cost = kinds.add_parser("cost")
  of_cost.add_argument("--workdir", type=Path, required=True, metavar="DIR")
  of_cost.add_argument("--judge", type=Path, required=True, metavar="DIR")
  of_cost.add_argument("--counts", type=int, nargs=2, default=(1000, 10_000))
  of_cost.add_argument("--steps", type=int, default=50)
  of_cost.set_defaults(run=cost)
  flags = parser.parse_args()
  flags.run(flags)


def sweep(flags: argparse.Namespace) -> None:
  shared = (f"--config.eval.num={flags.num}", f"--config.sample.steps={flags.steps}", *judged(flags.judge))
  steered = (f"--config.sample.classifier={flags.classifier.resolve()}", "--config.sample.guidance=0")
  found = {
    "guidance": rows_of(flags.conditional, *shared, f"--config.eval.sweep_guidance={SCALES['guidance']}"),
    "classifier_scale": rows_of(
      flags.unconditional,
      *shared,
      *steered,
      f"--config.eval.sweep_classifier_scale={SCALES['classifier_scale']}",
    ),
  }
  print("| | scale | " + " | ".join(COLUMNS) + " |")
  print("| --- " * (len(COLUMNS) + 2) + "|")
  for key, rows in found.items():
    for row in rows:
      print(line(NAMES[key], f"{row['settings'][f'sample.{key}']:g}", row))
  if flags.real:
    real = rows_of(flags.conditional, *shared, f"--config.eval.images=data:{flags.real}")
    print(line(f"real images, {flags.real}", "", real[-1]))
  plot(found, flags.out)


def cost(flags: argparse.Namespace) -> None:
  measured = {}
  for num in flags.counts:
    with tempfile.TemporaryDirectory() as folder:
      run = copied(flags.workdir, Path(folder))
      arguments = (f"--config.eval.num={num}", f"--config.sample.steps={flags.steps}", *judged(flags.judge))
      measured[num] = timed(command(run, *arguments))
    print(f"{num:,} images: {measured[num][0]:.0f} s, at most {measured[num][1] / 2**20:.0f} MiB", flush=True)
  (few, first), (many, second) = measured.items()
  seconds = (second[0] - first[0]) / (many - few) * 1000
  print(f"1,000 more images: {seconds:.1f} s, {(second[1] - first[1]) / 2**20 / (many - few) * 1000:.1f} MiB")


def judged(judge: Path) -> tuple[str, ...]:
  return (f"--config.eval.features=classifier:{judge.resolve()}",)


def rows_of(workdir: Path, *arguments: str) -> list[Row]:
  """The rows of evaluation.json after one evaluation of a copy of a run."""
  with tempfile.TemporaryDirectory() as folder:
    run = copied(workdir, Path(folder))
    subprocess.run(command(run, *arguments), check=True)
    return json.loads((run / "evaluation.json").read_text())["rows"]


def copied(workdir: Path, folder: Path) -> Path:
  """What of a run, or of an exported model, an evaluation reads."""
  run = folder / "run"
  if (workdir / "checkpoints").is_dir():
    shutil.copytree(workdir / "checkpoints", run / "checkpoints")
  else:
    run.mkdir()
    shutil.copy(workdir / exported.FILE, run)
  shutil.copy(workdir / "config.json", run)
  return run


def command(run: Path, *arguments: str) -> list[str]:
  return [sys.executable, "-m", "jaxdiff.main", "--mode", "evaluate", "--workdir", str(run), *arguments]


def timed(arguments: list[str]) -> tuple[float, int]:
  """(seconds, largest resident size in bytes) of a process.  Raises CalledProcessError where it fails."""
  start = time.monotonic()
  process = subprocess.Popen(arguments)
  _, status, usage = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode:
    raise subprocess.CalledProcessError(process.returncode, arguments)
  return time.monotonic() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def line(name: str, scale: str, row: Row) -> str:
  shown = (f"{row['figures'][c]:.3g}" if c in row["figures"] else "" for c in COLUMNS)
  return f"| {name} | {scale} | " + " | ".join(shown) + " |"


def plot(found: dict[str, list[Row]], path: Path) -> None:
  """Accuracy over Frechet distance, a curve for each kind of guidance, the scale beside each point."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(6.4, 4.2), dpi=120, layout="constrained")
  axis = figure.subplots()
  for key, rows in found.items():
    points = [
      (row["settings"][f"sample.{key}"], row["figures"]["frechet"], 100 * row["figures"]["accuracy"])
      for row in rows
      if "accuracy" in row["figures"]
    ]
    axis.plot([p[1] for p in points], [p[2] for p in points], color=COLORS[key], marker="o", label=NAMES[key])
    for scale, x, y in points:
      axis.annotate(f"{scale:g}", (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8)
  axis.set(xscale="log", xlabel="Frechet distance, classifier features (log)", ylabel="class accuracy, %")
  axis.grid(color="#e6e6e6")
  axis.legend()
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path)


if __name__ == "__main__":
  main()
