"""What is kept of a set of images to score it: moments and counts of all, the features of at most KEEP of them.

So memory does not grow with the number of images. Which images are kept is a fixed random choice, since sets often
lie sorted by class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from jaxdiff.errors import UserError
from jaxdiff.evaluation.features import Extractor, Seen
from jaxdiff.scores import frechet
from jaxdiff.scores.frechet import Moments

KEEP = 10_000  # images whose features (and logits) are held

# (images u8[n,H,W,C], labels i[n] or None)
Batches = Iterable[tuple[np.ndarray, np.ndarray | None]]


class Votes(NamedTuple):
  """How a classifier took images of each class; those without label do not count."""

  right: np.ndarray  # i64[K]
  total: np.ndarray  # i64[K]


class Gathered(NamedTuple):
  """What is known of a set of images."""

  moments: Moments
  rows: np.ndarray  # i64[M], which images the kept features are of, rising
  kept: np.ndarray  # f32[M,D]
  logits: np.ndarray | None  # f32[M,K] of the kept ones
  votes: Votes | None


def kept_rows(num: int) -> np.ndarray:
  """Which of num images are kept: i64[min(num, KEEP)], rising."""
  if num <= KEEP:
    return np.arange(num)
  return np.sort(np.random.Generator(np.random.PCG64(0)).permutation(num)[:KEEP])


def gather(
  batches: Batches,
  num: int,
  extractor: Extractor,
  judge: Callable[[np.ndarray, Seen], np.ndarray | None] = lambda images, seen: None,
  tell: Callable[[int], None] = lambda count: None,
) -> Gathered:
  """Goes once through num images in batches of any sizes, which change nothing but rounding.

  judge: (images, what the extractor saw) -> logits f32[n,K] of a classifier that knows the labels' classes, or None.
  tell is called with the number of images done since the last call.
  """
  rows, start = kept_rows(num), 0
  moments: Moments | None = None
  kept = logits = votes = None
  for images, labels in batches:
    seen = extractor.apply(images)
    moments = frechet.update(moments or frechet.empty(seen.features.shape[1]), seen.features)
    here = slice(*np.searchsorted(rows, [start, start + len(images)]))
    kept = _fill(kept, seen.features, rows, here, start)
    logits = _fill(logits, seen.logits, rows, here, start)
    said = None if labels is None else judge(images, seen)
    if said is not None and labels is not None:
      votes = _count(votes, said, labels)
    start += len(images)
    tell(len(images))
  assert start == num and moments is not None and kept is not None, f"{start} of {num} images came"
  return Gathered(moments, rows, kept, logits, votes)


def _fill(
  held: np.ndarray | None, values: np.ndarray | None, rows: np.ndarray, here: slice, start: int
) -> np.ndarray | None:
  """The held rows after those of one batch were written to their places."""
  if values is None:
    return None
  if held is None:
    held = np.empty((len(rows), values.shape[1]), np.float32)
  held[here] = values[rows[here] - start]
  return held


def _count(votes: Votes | None, logits: np.ndarray, labels: np.ndarray) -> Votes:
  classes = logits.shape[1]
  right, total = votes or (np.zeros(classes, np.int64), np.zeros(classes, np.int64))
  if labels.max() >= classes:
    raise UserError(
      f"an image has the label {labels.max()}; the classifier that is to tell it (config.eval.classifier or "
      f"config.eval.features) knows {classes} classes, 0..{classes - 1}."
    )
  known = labels >= 0
  hit = labels[known][logits.argmax(axis=1)[known] == labels[known]]
  return Votes(
    right + np.bincount(hit, minlength=classes), total + np.bincount(labels[known], minlength=classes)
  )
