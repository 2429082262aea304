"""How well, and how fast, the default digits configs do what they promise.

python -m benchmarks.digits --config configs/dit_cfg.py
python -m benchmarks.digits --config configs/unet_cfg.py

Trains from scratch as a user would and reports seconds from the start to the first step and to the end; then of 1,000
images (balanced labels) the share that an SVC(gamma=0.001), trained on the 1,797 real digits, assigns to the class asked
for, with the config's guidance and without; and how many images are near-copies of training images.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxdiff.scores import neighbours

COUNT = 1000


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", default="configs/dit_cfg.py")
  parser.add_argument("--workdir", type=Path, help="keep the run here; a finished run there is only scored")
  parser.add_argument("overrides", nargs="*", metavar="--config.key=value")
  flags, overrides = parser.parse_known_args()
  workdir = flags.workdir or Path(tempfile.mkdtemp(prefix="jaxdiff-digits-"))
  first, end = train(flags.config, workdir, overrides)
  report = {"config": flags.config, "seconds_to_first_step": round(first, 1), "seconds": round(end, 1)}
  for name, options in {"guided": [], "unguided": ["--config.sample.guidance=1"]}.items():
    images, labels = sample(workdir, options)
    report[name] = {"accuracy": accuracy(images, labels)} | copies(images)
  print(json.dumps(report, indent=2))


def train(config: str, workdir: Path, overrides: Sequence[str]) -> tuple[float, float]:
  """Runs the training; seconds from the start of the program to its first step (NaN if it took none), and to its end."""
  command = ["-m", "jaxdiff.main", "--config", config, "--workdir", str(workdir), *overrides]
  start, first = time.monotonic(), float("nan")
  with subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True) as process:
    assert process.stderr is not None
    for line in process.stderr:
      sys.stderr.write(line)
      if line.startswith("Compiled"):
        first = time.monotonic() - start
  if process.returncode:
    sys.exit(process.returncode)
  return first, time.monotonic() - start


def sample(workdir: Path, options: list[str]) -> tuple[np.ndarray, np.ndarray]:
  """COUNT images of a run with balanced labels: f64[N,64] in the data set's range 0..16, i64[N]."""
  command = [
    "-m",
    "jaxdiff.main",
    "--mode",
    "sample",
    "--workdir",
    str(workdir),
    f"--config.sample.num={COUNT}",
  ]
  subprocess.run([sys.executable, *command, *options], check=True)
  drawn = np.load(workdir / "samples.npz", allow_pickle=False)
  return drawn["arr_0"].reshape(COUNT, -1) / 255 * 16, drawn["arr_1"]


def accuracy(images: np.ndarray, labels: np.ndarray) -> float:
  """The share of images that a classifier of real digits assigns to the class asked for."""
  from sklearn.datasets import load_digits
  from sklearn.svm import SVC

  digits = load_digits()
  classifier = SVC(gamma=0.001).fit(digits.data, digits.target)
  return float((classifier.predict(images) == labels).mean())


def copies(images: np.ndarray) -> dict[str, float]:
  """How close images come to the training set, against how close its own images come to each other.

  A near-copy is an image closer to its nearest training image than 99% of the training images are to theirs.
  """
  from sklearn.datasets import load_digits

  found = neighbours.near_copies(images, load_digits().data, quantile=0.01)
  return {
    "near_copies": round(found.share * len(images)),
    "median_distance": round(float(np.median(found.distance)), 2),
    "median_distance_among_real": round(float(np.median(found.distance_among_training)), 2),
  }


if __name__ == "__main__":
  main()
