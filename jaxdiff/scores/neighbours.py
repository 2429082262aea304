"""What nearest neighbours tell of two sets of features: quality apart from variety, and images that are copies.

Squared distances come from |a|^2 + |b|^2 - 2 a.b in blocks, which is fast but loses what is close to rounding. So that
table only rules pairs out: whatever its error bound leaves in doubt is decided by the sum of (a - b)^2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxdiff.scores.features import blocks, checked


class Neighbours(NamedTuple):
  """The nearest references of each query, the nearest first."""

  row: np.ndarray  # i64[N,k], among references
  distance: np.ndarray  # f64[N,k]


class PrecisionRecall(NamedTuple):
  """Both in 0..1."""

  precision: float
  recall: float


class DensityCoverage(NamedTuple):
  """Density is about 1 for equal distributions, and may be more; coverage is in 0..1."""

  density: float
  coverage: float


class NearCopies(NamedTuple):
  """How close generated images come to training images, against how close those come to each other."""

  share: float  # of generated images that are near-copies
  distance: np.ndarray  # f64[N], of each generated image to its nearest training image
  distance_among_training: np.ndarray  # f64[M], of each training image to its nearest other one


def nearest(queries: np.ndarray, references: np.ndarray, k: int = 1) -> Neighbours:
  """The k nearest references of each query by Euclidean distance; of equally near ones the first in references.

  Exact, as sums of (a - b)^2 in float64.  References that are almost equal make it slow: each is such a sum.

  Shapes: queries: [N,D]; references: [M,D], M >= k.
  Raises: ValueError that names the argument.
  """
  queries, references = checked({"queries": queries, "references": references})
  if not 1 <= k <= len(references):
    raise ValueError(f"k={k}, but of {len(references)} references 1 to {len(references)} can be the nearest")
  few = _without_further_copies(references, k)
  references = references[few]
  row = np.empty((len(queries), k), np.int64)
  distance = np.empty((len(queries), k))
  for block, squared, margin in _rough(queries, references):
    bound = np.partition(squared, k - 1, axis=1)[:, k - 1 : k] + 2 * margin
    rows, columns = np.nonzero(squared <= bound)
    exact = _distances(queries[block], references, rows, columns)
    order = np.lexsort((columns, exact, rows))
    starts = np.searchsorted(rows, np.arange(len(squared)))
    chosen = order[starts[:, None] + np.arange(k)]
    row[block], distance[block] = few[columns[chosen]], exact[chosen]
  return Neighbours(row, distance)


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> PrecisionRecall:
  """Precision: the share of fakes in the real manifold.  Recall: the share of reals in that of the fakes.

  A set's manifold is the union of a closed ball around each member, out to its k-th nearest other member.

  Shapes: real: [N,D], fake: [M,D], more than k of each.
  Raises: ValueError that names the argument.
  Source: Kynkaanniemi et al. 2019, eq. 1 and 2.
  """
  real, fake = checked({"real": real, "fake": fake})
  fakes_balls, _ = _members(fake, real, _radii("real", real, k))
  reals_balls, _ = _members(real, fake, _radii("fake", fake, k))
  return PrecisionRecall(float(np.mean(fakes_balls > 0)), float(np.mean(reals_balls > 0)))


def density_coverage(real: np.ndarray, fake: np.ndarray, k: int = 5) -> DensityCoverage:
  """Density: how many real balls hold a fake, on average, over k.  Coverage: the share of real balls that hold a fake.

  A real ball reaches out to the k-th nearest other real.  It is closed, as in precision_recall (the authors' program takes
  open ones): they differ only where distances are equal, and so for copies.

  Shapes: real: [N,D], fake: [M,D], more than k reals.
  Raises: ValueError that names the argument.
  Source: Naeem et al. 2020, eq. 5 and 7.
  """
  real, fake = checked({"real": real, "fake": fake})
  balls, held = _members(fake, real, _radii("real", real, k))
  return DensityCoverage(float(np.mean(balls) / k), float(np.mean(held > 0)))


def near_copies(generated: np.ndarray, training: np.ndarray, quantile: float = 0.01) -> NearCopies:
  """Which share of generated images is closer to a training image than nearly all training images are to each other.

  Closer than the quantile of the training images' distances to their nearest other one; an exact copy counts in any case.

  Shapes: generated: [N,D]; training: [M,D], M >= 2.
  Raises: ValueError that names the argument.
  """
  generated, training = checked({"generated": generated, "training": training})
  among = _radii("training", training, 1)
  distance = nearest(generated, training).distance[:, 0]
  is_copy = (distance < np.quantile(among, quantile)) | (distance == 0)
  return NearCopies(float(is_copy.mean()), distance, among)


def _radii(name: str, features: np.ndarray, k: int) -> np.ndarray:
  """The distance of each feature to its k-th nearest other one.  Shapes: features: [N,D], N > k.  Returns f64[N]."""
  if not 1 <= k < len(features):
    raise ValueError(
      f"{name}: {len(features)} images, but k={k} must be at least 1 and less than their number"
    )
  return nearest(features, features, k + 1).distance[:, k]  # itself at distance 0 is the first


def _members(points: np.ndarray, centres: np.ndarray, radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """In how many closed balls each point lies, and how many points lie in each ball.

  Shapes: points: [N,D]; centres: [M,D]; radius: f64[M].  Returns i64[N], i64[M].
  """
  balls, held = np.empty(len(points), np.int64), np.zeros(len(centres), np.int64)
  for block, squared, margin in _rough(points, centres):
    beyond = squared - radius**2
    inside = beyond <= 0
    rows, columns = np.nonzero(np.abs(beyond) <= margin)
    inside[rows, columns] = _distances(points[block], centres, rows, columns) <= radius[columns]
    balls[block] = inside.sum(axis=1)
    held += inside.sum(axis=0)
  return balls, held


def _without_further_copies(features: np.ndarray, k: int) -> np.ndarray:
  """The rows with fewer than k rows before them that equal them: all that can be among the k nearest of anything.

  A generator that draws one image always would otherwise leave every pair in doubt.
  """
  seen: Counter[bytes] = Counter()
  rows = []
  for row, values in enumerate(features):
    key = values.tobytes()
    seen[key] += 1
    if seen[key] <= k:
      rows.append(row)
  return np.array(rows)


def _rough(queries: np.ndarray, references: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
  """Squared distances of a block of queries to all references, with a bound of their error for each query.

  Yields (which queries, f64[n,M], f64[n,1]).  The error of a dot product of D terms is at most D eps |a| |b|; all is
  taken about the references' mean, which does not change a distance but makes |a| and |b| small.
  """
  centre = references.mean(axis=0, dtype=np.float64)
  moved = references - centre
  norms = np.square(moved).sum(axis=1)
  relative = 8 * (references.shape[1] + 8) * np.finfo(np.float64).eps
  for block in blocks(len(queries), max(references.shape)):
    from_centre = queries[block] - centre
    own_norms = np.square(from_centre).sum(axis=1, keepdims=True)
    squared = from_centre @ moved.T
    squared *= -2
    squared += own_norms
    squared += norms
    yield block, squared, relative * (own_norms + norms.max())


def _distances(
  queries: np.ndarray, references: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
  """The distance of queries[rows[i]] to references[columns[i]], from their difference: f64[len(rows)]."""
  result = np.empty(len(rows))
  for part in blocks(len(rows), queries.shape[1]):
    gap = queries[rows[part]].astype(np.float64) - references[columns[part]]
    result[part] = np.sqrt(np.square(gap, out=gap).sum(axis=1))
  return result
