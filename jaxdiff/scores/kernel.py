"""The kernel distance of two sets of features (KID, with Inception's).

  MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),   k(a, b) = (a.b / D + 1)^3

It is estimated without bias, so that numbers from different counts of images can be compared; around 0 it may be negative.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxdiff.scores.features import blocks, checked


class Estimate(NamedTuple):
  """A number known from samples."""

  value: float
  standard_error: float  # how far value is from the truth by the luck of the draw, one standard deviation


def kid(
  real: np.ndarray, fake: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> Estimate:
  """The mean over random subsets, drawn without replacement, of the unbiased estimate of MMD^2.

  The standard error is of value as an estimate of the distributions' MMD^2: it holds what other images would have given,
  not only other subsets of these.  To first order, with f_x and f_y the witness at real and fake features,

  4 Var(f_x) (1/N_x + (1/m - 1/N_x) / subsets) + the same of f_y,   m: the size of a subset

  is its square, 1/N_x for the images and the rest for the subsets.  Where real and fake are the same in law there is no
  first order, and it is too large rather than too small.  (The deviation between subsets, which other programs print, is
  of one subset.)

  Shapes: real: [N_x,D], fake: [N_y,D], at least 2 of each; a subset takes at most the smaller set.
  Raises: ValueError that names the argument.
  Source: Binkowski et al. 2018, section 4; its variance: Hoeffding 1948, the first term for U-statistics.
  """
  real, fake = checked({"real": real, "fake": fake}, at_least=2)
  if subsets < 1 or subset_size < 2:
    raise ValueError(f"{subsets} subsets of {subset_size} features, but take at least 1 subset of at least 2")
  size = min(subset_size, len(real), len(fake))
  if size == len(real) == len(fake):
    subsets = 1  # all would be the same
  rng = np.random.default_rng(seed)
  values, variances = [], []
  for _ in range(subsets):
    x, y = (features[rng.permutation(len(features))[:size]].astype(np.float64) for features in (real, fake))
    of_x, of_y = witness(x, y), witness(y, x)
    values.append(of_x.mean() + of_y.mean())
    variances.append((of_x.var(ddof=1), of_y.var(ddof=1)))
  counts = np.array([len(real), len(fake)])
  weights = 1 / counts + (1 / size - 1 / counts) / subsets
  return Estimate(float(np.mean(values)), float(np.sqrt(4 * np.mean(variances, axis=0) @ weights)))


def witness(points: np.ndarray, others: np.ndarray) -> np.ndarray:
  """mean over x' of k(x, x') - mean over y of k(x, y) at each x of points, where x' are the rest of points, y the others.

  Its mean and that with the roles swapped add up to the unbiased estimate of MMD^2.

  Shapes: points: f64[N,D], N >= 2; others: f64[M,D].  Returns f64[N].
  Source: Gretton et al. 2012, lemma 6.
  """
  result = np.empty(len(points))
  for rows in blocks(len(points), max(len(points), len(others))):
    among = polynomial(points[rows], points)
    np.fill_diagonal(among[:, rows], 0)
    across = polynomial(points[rows], others)
    result[rows] = among.sum(axis=1) / (len(points) - 1) - across.mean(axis=1)
  return result


def polynomial(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """k(a, b) = (a.b / D + 1)^3.  Shapes: a: f64[N,D]; b: f64[M,D].  Returns f64[N,M]."""
  base = a @ b.T / a.shape[1] + 1
  return base * base * base  # ** 3 takes the general power, ten times slower
