"""A picture of the five hints: docs/images/hints.png, with the time that each takes; and how steady detectors are.

python -m benchmarks.hints
python -m benchmarks.hints shapes:96 folder:my_photographs
python -m benchmarks.hints shapes shapes:96 --steady

A row for each of a few images of every source: "photographs" are the two that come with scikit-learn, other names are
those of config.data.source. An image is seen as a model sees it, at the largest of SIZES that it has, and the picture
enlarges it. A cell stays empty where a source has no depth.

--steady: how much of a hint is left (F1 of pixels, one pixel of tolerance) where images have Gaussian noise of so many of 255
levels: what a branch cannot give back however well it obeys, as an image that it draws is never equal to the real one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxdiff import data, pictures
from jaxdiff.data import hinted, hints, transforms
from jaxdiff.data.base import Example
from jaxdiff.errors import UserError
from jaxdiff.scores.fidelity import FIDELITY

SIZES = (192, 96, 64, 32)  # pixels: divisors of the largest, to which all are enlarged
SOURCES = ["shapes:96", "photographs", "idx:/usr/share/datasets/fashion-mnist"]
ROWS = {"idx": (0, 7)}  # which examples of a source: by default the first two
REPEATS = 5
DETECTED = ("canny", "hough", "hough(orders=8)", "hough(detector=lsd)", "scribble")  # what --steady compares
NOISES = (2, 5, 10)  # standard deviations, in levels of 255
IMAGES = 200


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("sources", nargs="*", default=SOURCES)
  parser.add_argument("--out", type=Path, default=Path("docs/images/hints.png"))
  parser.add_argument("--steady", action="store_true")
  flags = parser.parse_args()
  if flags.steady:
    print("| hint, of images with noise of | " + " | ".join(f"{noise} levels" for noise in NOISES) + " |")
    print("| --- " * (1 + len(NOISES)) + "|")
    for spec in flags.sources:
      steady(spec)
    return
  tiles = [tile for source in flags.sources for example in examples(source) for tile in row(example)]
  columns = ["image", *hints.HINTS]
  captions = columns * (len(tiles) // len(columns))
  pictures.grid(np.stack(tiles), captions, columns=len(columns), scale=1, path=flags.out)


def steady(spec: str) -> None:
  """Prints for each detector what of the hints of a source's first images is found again under noise."""
  source, noise = data.load(spec), np.random.default_rng(0)
  images = np.stack([example["image"] for example in source.take(range(min(IMAGES, len(source))))])
  noisy = [
    np.clip(np.rint(images + noise.normal(0, level, images.shape)), 0, 255).astype(np.uint8)
    for level in NOISES
  ]
  for name in DETECTED:
    hint = hints.parse(name)
    assert hint is not None
    asked, *found = (np.stack([hints.detect(hint, image, 0) for image in some]) for some in (images, *noisy))
    figures = " | ".join(f"{FIDELITY[hint.name](asked, again):.2f}" for again in found)
    print(f"| {name}, {spec} | {figures} |", flush=True)


def examples(spec: str) -> Iterator[Example]:
  if spec == "photographs":
    from sklearn.datasets import load_sample_images

    yield from ({"image": image, "label": 0} for image in load_sample_images().images)
  else:
    yield from data.load(spec).take(ROWS.get(spec.partition(":")[0], (0, 1)))


def row(example: Example) -> Iterator[np.ndarray]:
  """The image and its five hints, each uint8[SIZES[0],SIZES[0],3]."""
  image = example["image"]
  size = next((size for size in SIZES if size <= min(image.shape[:2])), SIZES[-1])
  resize = "pad" if min(image.shape[:2]) < size else "auto"
  view = transforms.View(size, image.shape[-1], resize, random_crop=False, random_flip=False)
  seen = transforms.fit(image, view)
  yield enlarged(seen)
  for name in hints.HINTS:
    hint = hints.parse(name)
    assert hint is not None
    try:
      start = time.perf_counter()
      for _ in range(REPEATS):
        made = hinted.of_batch([example], seen[None], np.zeros(1, np.uint32), 0, view, hint)[0]
    except UserError:  # no depth
      yield np.full((SIZES[0], SIZES[0], 3), pictures.PAPER, np.uint8)
      continue
    print(f"{size}x{size} {name}: {(time.perf_counter() - start) / REPEATS * 1e3:.1f} ms")
    yield enlarged(made)


def enlarged(image: np.ndarray) -> np.ndarray:
  factor = SIZES[0] // image.shape[0]
  return np.broadcast_to(image.repeat(factor, 0).repeat(factor, 1), (SIZES[0], SIZES[0], 3))


if __name__ == "__main__":
  main()
