"""Classifier guidance on digits, next to classifier-free guidance.

python -m benchmarks.classifier_guidance --workdir checkpoints/guidance

Trains what the folder does not hold yet: a DiT that knows labels, one that has never seen any (label dropout 1), and
classifiers of noised and of clean digits (9 minutes on two cores).  Then, of 1,000 images with balanced labels for each
scale, the share that an SVC(gamma=0.001) of the real digits assigns to the class asked for, and the median distance to
the nearest training image (between real digits it is 16.1); and the time an image takes each way.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import digits, turns
from jaxdiff import configuration, platform, reporting, sample
from jaxdiff.files import write_atomically

RUNS = {
  "labelled": ("configs/dit_cfg.py", []),
  "unlabelled": (
    "configs/dit_cfg.py",
    ["--config.diffusion.label_dropout=1.0", "--config.sample.guidance=0"],
  ),
  "classifier": ("configs/classifier_cfg.py", []),
  "classifier_clean": ("configs/classifier_cfg.py:clean", []),
}
CURVES = {  # name: (run, what config.sample is set to, the key that is swept, its values)
  "classifier, no labels": (
    "unlabelled",
    {"classifier": "classifier"},
    "classifier_scale",
    (0, 1, 2, 3, 5, 10),
  ),
  "clean classifier, of x, no labels": (
    "unlabelled",
    {"classifier": "classifier_clean"},
    "classifier_scale",
    (0, 1, 3, 10),
  ),
  "classifier-free": ("labelled", {}, "guidance", (0, 1, 1.5, 2, 3, 5)),
  "classifier-free at 1.5, and classifier": (
    "labelled",
    {"classifier": "classifier", "guidance": 1.5},
    "classifier_scale",
    (0, 1, 3),
  ),
}
TIMED = {  # name: (run, what config.sample is set to)
  "no guidance": ("unlabelled", {}),
  "classifier-free": ("labelled", {"guidance": 1.5}),
  "classifier": ("unlabelled", {"classifier": "classifier"}),
  "clean classifier, of x": ("unlabelled", {"classifier": "classifier_clean"}),
  "both": ("labelled", {"guidance": 1.5, "classifier": "classifier"}),
}
REFERENCE = "classifier-free"
BATCH = 100


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", type=Path, required=True, help="holds the four runs, or gets them")
  parser.add_argument("--out", type=Path, help="folder of classifier_guidance.png; default the workdir")
  parser.add_argument("--rounds", type=int, default=7, help="of timing")
  flags = parser.parse_args()
  platform.configure()
  reporting.setup_logging()
  for name, (config, overrides) in RUNS.items():
    if not (flags.workdir / name / "loss.png").exists():
      digits.train(config, flags.workdir / name, overrides)
  print(json.dumps(timed(flags.workdir, flags.rounds), indent=2), flush=True)
  found = curves(flags.workdir)
  print(json.dumps(found, indent=2))
  plot(found, (flags.out or flags.workdir) / "classifier_guidance.png")


def config_of(workdir: Path, run: str, settings: dict[str, Any]) -> Any:
  """The config of a run, config.sample changed as settings say; classifiers are named as in RUNS."""
  config = configuration.of_run(workdir / run)
  classifier = settings.get("classifier")
  config.sample.update(settings | ({"classifier": str(workdir / classifier)} if classifier else {}))
  return config


def curves(workdir: Path) -> dict[str, list[dict[str, float]]]:
  """For each curve and scale the share in the class asked for, and how near to the training images."""
  return {name: list(curve(workdir, *what)) for name, what in CURVES.items()}


def curve(
  workdir: Path, run: str, settings: dict[str, Any], key: str, scales: tuple[float, ...]
) -> Iterator[dict[str, float]]:
  label = np.resize(np.arange(10, dtype=np.int32), digits.COUNT)
  for scale in scales:
    config = config_of(workdir, run, settings | {key: float(scale)})
    state, draws = turns.opened(config, workdir / run, BATCH)
    drawn = np.concatenate(list(sample.draw_all(draws, state, label, BATCH)))
    images = drawn.reshape(len(drawn), -1) / 255 * 16
    yield {"scale": scale, "accuracy": digits.accuracy(images, label)} | digits.copies(images)


def timed(workdir: Path, rounds: int) -> dict[str, dict[str, float]]:
  """Seconds an image, the ways in turn, and their ratio to classifier-free guidance: medians and quartiles of the rounds."""
  label = np.resize(np.arange(10), BATCH)
  ways = {
    name: turns.drawer(config_of(workdir, run, settings), workdir / run, label)
    for name, (run, settings) in TIMED.items()
  }
  seconds = turns.timed(ways, rounds)
  return {name: row(own / BATCH, seconds[REFERENCE] / BATCH) for name, own in seconds.items()}


def row(own: np.ndarray, reference: np.ndarray) -> dict[str, float]:
  low, middle, high = turns.quartiles(own / reference)
  return {"seconds": float(np.median(own)), "ratio": middle, "ratio_low": low, "ratio_high": high}


def plot(found: dict[str, list[dict[str, float]]], path: Path) -> None:
  """Share of the asked class and distance to real digits, over the scale."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 3.8), dpi=120, layout="constrained")
  left, right = figure.subplots(1, 2)
  for name, rows in found.items():
    scale = [point["scale"] for point in rows]
    left.plot(scale, [100 * point["accuracy"] for point in rows], marker="o", markersize=4, label=name)
    right.plot(scale, [point["median_distance"] for point in rows], marker="o", markersize=4)
  left.set(xlabel="scale", ylabel="in the class asked for, %", ylim=(0, 102))
  right.axhline(next(iter(found.values()))[0]["median_distance_among_real"], color="#888888", linestyle=":")
  right.set(xlabel="scale", ylabel="distance to the nearest training image")
  right.set_title("dotted: between real digits", fontsize=9)
  left.legend(fontsize=8, loc="lower right")
  for axis in (left, right):
    axis.set_xticks([0, 1, 2, 3, 5, 10])
    axis.grid(color="#e6e6e6")
  path.parent.mkdir(parents=True, exist_ok=True)
  write_atomically(path, lambda file: figure.savefig(file, format="png"))


if __name__ == "__main__":
  platform.with_huge_pages()
  main()
