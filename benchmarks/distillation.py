"""Quality against steps: students of a progressive distillation, and their teacher with DDIM and DPM-Solver++ 2M.

python -m benchmarks.distillation --teacher checkpoints/digits_dit --students checkpoints/distill_digits \
  --judge checkpoints/digits_judge [--num 2000]

Of each, --num images are scored: Frechet distance in the features of --judge (a run of configs/classifier_cfg.py:clean), and
the share that it takes for the class asked for.  The teacher is guided at its students' scale: that built
into them (config.distill.guidance), or the one they are drawn with (config.sample.guidance).  Then the milliseconds that an image takes: the guided teacher in 50 steps, students in 4 and 1.
Prints tables and draws --out.  Runs are copied first: the workdirs stay as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import turns
from benchmarks.evaluation import Row, judged, rows_of
from jaxdiff import configuration, platform, reporting, students

FULL = 256  # steps of the teacher that count as all
SOLVERS = {"teacher, DDIM": "ddim", "teacher, DPM-Solver++ 2M": "dpmpp_2m"}
COLORS = {"teacher, DDIM": "#888888", "teacher, DPM-Solver++ 2M": "#d98a1f", "students": "#1f6fb4"}
BATCH, ROUNDS = 100, 7

Curves = dict[str, dict[int, dict[str, float]]]  # name -> steps -> figures


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  for name in ("teacher", "students", "judge"):
    parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR")
  parser.add_argument("--num", type=int, default=2000)
  parser.add_argument("--jobs", type=int, default=1, help="evaluations beside each other")
  parser.add_argument("--out", type=Path, default=Path("docs/images/distillation.png"))
  flags = parser.parse_args()
  platform.configure()
  reporting.setup_logging()
  found = curves(flags)
  print(table(found))
  plot(found, flags.out)
  for line in speed(flags):
    print(line)


def curves(flags: argparse.Namespace) -> Curves:
  """The figures of students at their steps, and of the teacher at the same and at all."""
  steps = steps_of(flags.students)
  guided = f"--config.sample.guidance={guidance_of(flags.students)}"
  asked = f"--config.eval.sweep_steps={','.join(map(str, [FULL, *steps]))}"

  def evaluate(workdir: Path, *arguments: str) -> list[Row]:
    return rows_of(workdir, f"--config.eval.num={flags.num}", *judged(flags.judge), *arguments)

  with ThreadPoolExecutor(flags.jobs) as pool:
    of_teacher = {
      name: pool.submit(evaluate, flags.teacher, guided, asked, f"--config.sample.sampler={sampler}")
      for name, sampler in SOLVERS.items()
    }
    of_students = {n: pool.submit(evaluate, students.folder_of(flags.students, n)) for n in steps}
  found: Curves = {
    name: {row["settings"]["sample.steps"]: row["figures"] for row in future.result()}
    for name, future in of_teacher.items()
  }
  return found | {"students": {n: future.result()[-1]["figures"] for n, future in of_students.items()}}


def steps_of(workdir: Path) -> list[int]:
  return sorted((int(path.name.removeprefix("steps_")) for path in workdir.glob("steps_*")), reverse=True)


def guidance_of(workdir: Path) -> float:
  """The scale of what the students draw: built in, or given as they are drawn from."""
  config = configuration.of_run(workdir)
  return config.distill.guidance if config.distill.guidance != 1 else config.sample.guidance


def table(found: Curves) -> str:
  """Markdown: a row for each number of steps, distance and accuracy of each way."""
  head = ["steps", *(f"{name}: {figure}" for name in found for figure in ("frechet", "accuracy"))]
  counts = sorted({steps for row in found.values() for steps in row}, reverse=True)
  rows = [
    [str(count), *(cell for row in found.values() for cell in cells(row.get(count)))] for count in counts
  ]
  return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def cells(figures: dict[str, float] | None) -> tuple[str, str]:
  return (f"{figures['frechet']:.3g}", f"{100 * figures['accuracy']:.1f}%") if figures else ("", "")


def plot(found: Curves, path: Path) -> None:
  """Frechet distance over the number of steps."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(6.0, 4.0), dpi=120, layout="constrained")
  axis = figure.subplots()
  for name, row in found.items():
    steps = sorted(row)
    axis.plot(steps, [row[count]["frechet"] for count in steps], marker="o", color=COLORS[name], label=name)
  axis.set(xscale="log", yscale="log", xlabel="steps", ylabel="Frechet distance, classifier features")
  axis.set_xticks(sorted({steps for row in found.values() for steps in row}), minor=False)
  axis.xaxis.set_major_formatter("{x:g}")
  axis.yaxis.set_major_formatter("{x:g}")
  axis.yaxis.set_minor_formatter("{x:g}")
  axis.grid(color="#e6e6e6")
  axis.legend()
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path)


def speed(flags: argparse.Namespace) -> list[str]:
  """What an image costs each way, the ways in turn, and how many times faster than the guided teacher: medians, quartiles."""
  guided = {"guidance": guidance_of(flags.students), "steps": 50, "sampler": "ddim"}
  ways = {"teacher, guided, 50 steps": drawer(flags.teacher, guided)}
  for count in (4, 1):
    folder = students.folder_of(flags.students, count)
    if folder.is_dir():
      ways[f"student, {count} steps"] = drawer(folder, {})  # as they were scored
  seconds = turns.timed(ways, ROUNDS)
  teacher = next(iter(seconds.values()))
  return [
    f"{name}: {1000 * np.median(own) / BATCH:.2f} ms an image, {{1:.1f}} times as fast ({{0:.1f}} to {{2:.1f}})".format(
      *turns.quartiles(teacher / own)
    )
    for name, own in seconds.items()
  ]


def drawer(workdir: Path, settings: dict[str, Any]) -> Callable[[], Any]:
  """Draws a batch of a run's images, config.sample changed as settings say."""
  config = configuration.of_run(workdir)
  config.sample.update(settings)
  return turns.drawer(config, workdir, np.arange(BATCH) % 10)


if __name__ == "__main__":
  platform.with_huge_pages()
  main()
