"""What the source `shapes` looks like, and what a scene costs.

python -m benchmarks.shapes [--size 64] [--columns 10] [--out docs]

Writes images/shapes.png into --out: scenes of the test split, their segmentation and their depth (near is bright).  Prints the
time to draw a scene at several sizes, on one core.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from jaxdiff import pictures
from jaxdiff.data import load

# The ground, then Okabe and Ito's colours, which the colour-blind can tell apart.
PALETTE = np.array(
  [(0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (204, 121, 167)],
  np.uint8,
)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--size", type=int, default=64)
  parser.add_argument("--columns", type=int, default=10)
  parser.add_argument("--out", type=Path, default=Path("docs"))
  flags = parser.parse_args()
  picture(flags.size, flags.columns, flags.out / "images" / "shapes.png")
  for size in (32, 64, 128):
    print(f"{size}x{size}: {cost(size) * 1e6:.0f} microseconds a scene")


def picture(size: int, columns: int, path: Path) -> None:
  rows, names = [], []
  for first in (0, columns):
    examples = load(f"shapes:{size}", "test").take(range(first, first + columns))
    images = [example["image"] for example in examples]
    kinds = [PALETTE[example["maps"]["segmentation"]] for example in examples]
    depths = [
      np.repeat((example["maps"]["depth"] >> 8).astype(np.uint8)[..., None], 3, -1) for example in examples
    ]
    for name, row in (("scene", images), ("segmentation", kinds), ("depth", depths)):
      rows += row
      names += [name] * columns
  path.parent.mkdir(parents=True, exist_ok=True)
  pictures.grid(np.stack(rows), names, columns=columns, path=path)


def cost(size: int, batch: int = 64, repeats: int = 20) -> float:
  """Seconds a scene in the fastest of several batches."""
  source = load(f"shapes:{size}")
  source.take(range(batch))
  seconds = []
  for i in range(repeats):
    start = time.perf_counter()
    source.take(range(i * batch, (i + 1) * batch))
    seconds.append(time.perf_counter() - start)
  return min(seconds) / batch


if __name__ == "__main__":
  main()
