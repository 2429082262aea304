"""The Frechet distance of two sets of features, each summed up by its mean and covariance (FID, with Inception's features).

    moments = frechet.empty(2048)
    for batch in batches:
      moments = frechet.update(moments, batch)
    frechet.distance(moments.mean, frechet.covariance(moments), real_mean, real_covariance)

The distance is biased upwards, the more the fewer images: compare numbers of the same count only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg

from jaxdiff.scores.features import blocks, check_finite, checked

ROUNDING = 1e-5  # relative: a covariance may be so far from symmetric or positive, as float32 leaves it


class Moments(NamedTuple):
  """What is known of the features seen so far."""

  num: int  # of features
  mean: np.ndarray  # f64[D]
  scatter: np.ndarray  # f64[D,D], the sum of (x - mean) (x - mean)^T


def empty(dim: int) -> Moments:
  """No features yet, of dim numbers each."""
  return Moments(0, np.zeros(dim), np.zeros((dim, dim)))


def update(moments: Moments, features: np.ndarray) -> Moments:
  """The moments after more features, in whatever batches they come.

  Shapes: features: [N,D], N >= 0.
  Raises: ValueError where features do not fit or are not finite.
  """
  (features,) = checked({"features": features}, at_least=0)
  if features.shape[1] != len(moments.mean):
    raise ValueError(f"features: shape {features.shape}, but the moments are of [N, {len(moments.mean)}]")
  for rows in blocks(*features.shape):
    moments = merge(moments, _of_block(features[rows].astype(np.float64)))
  return moments


def merge(a: Moments, b: Moments) -> Moments:
  """The moments of two sets together.

  mean = mean_a + (n_b / n) d,  scatter = scatter_a + scatter_b + (n_a n_b / n) d d^T,  d = mean_b - mean_a

  Source: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
  """
  if a.mean.shape != b.mean.shape:
    raise ValueError(f"moments of {len(a.mean)} numbers and of {len(b.mean)} are not of the same features")
  if not a.num or not b.num:
    return a if a.num else b
  num = a.num + b.num
  gap = b.mean - a.mean
  mean = a.mean + gap * (b.num / num)
  return Moments(num, mean, a.scatter + b.scatter + np.outer(gap, gap) * (a.num * b.num / num))


def covariance(moments: Moments) -> np.ndarray:
  """scatter / (n - 1), the unbiased estimate, as numpy.cov.  Returns f64[D,D]."""
  if moments.num < 2:
    raise ValueError(f"a covariance needs at least 2 features, not {moments.num}")
  return moments.scatter / (moments.num - 1)


def distance(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
  """The squared 2-Wasserstein distance of N(mean_a, cov_a) and N(mean_b, cov_b).

  |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)),   tr (C_a C_b)^(1/2) = sum of singular values of A^T B,
  where C_a = A A^T, C_b = B B^T

  A^T B instead of a root of C_a C_b: real by construction, and as exact for singular covariances (fewer images than
  features).  Equal arguments give 0 to rounding, which may fall below 0.

  Shapes: mean_a, mean_b: [D]; cov_a, cov_b: [D,D], symmetric, no eigenvalue below 0.
  Raises: ValueError that names the argument.
  Source: Dowson & Landau 1982; Heusel et al. 2017, eq. 6.
  """
  named = {"mean_a": mean_a, "cov_a": cov_a, "mean_b": mean_b, "cov_b": cov_b}
  mean_a, cov_a, mean_b, cov_b = (np.asarray(values, np.float64) for values in named.values())
  dim = mean_a.size
  for (name, values), shape in zip(named.items(), [(dim,), (dim, dim)] * 2, strict=True):
    if np.shape(values) != shape:
      raise ValueError(f"{name}: shape {np.shape(values)}, but it must be {shape}, as mean_a says")
    check_finite(name, np.asarray(values))
  root_a, root_b = _factor("cov_a", cov_a), _factor("cov_b", cov_b)
  overlap = scipy.linalg.svdvals(root_a.T @ root_b).sum() if root_a.size and root_b.size else 0.0
  gap = mean_a - mean_b
  return float(gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * overlap)


def _of_block(block: np.ndarray) -> Moments:
  """Moments by two passes over f64[N,D], the mean relative to the first row so that a large one costs no digits."""
  centred = block - block[0]
  shift = centred.mean(axis=0)
  centred -= shift
  return Moments(len(block), block[0] + shift, centred.T @ centred)


def _factor(name: str, cov: np.ndarray) -> np.ndarray:
  """A with A A^T = cov: f64[D,rank]."""
  scale = np.abs(cov).max()
  if np.abs(cov - cov.T).max() > ROUNDING * scale:
    raise ValueError(f"{name} is not symmetric, as a covariance is")
  values, vectors = scipy.linalg.eigh(cov)
  if values[0] < -ROUNDING * scale:
    raise ValueError(f"{name} has the eigenvalue {values[0]:.3g}, but a covariance has none below 0")
  # An eigenvalue that is 0 comes out as rounding, whose root is no longer small: thousands of 1e-8 would add up.
  kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
  return vectors[:, kept] * np.sqrt(values[kept])
