"""The figures of a set of images: every score that its features, logits and labels allow, by name."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxdiff.errors import UserError
from jaxdiff.evaluation.gather import Gathered, Votes
from jaxdiff.evaluation.reference import Statistics
from jaxdiff.scores import frechet, kernel, logits, neighbours
from jaxdiff.scores.neighbours import NearCopies

KID_SUBSETS = 100  # of 1,000 images, or as many as there are
LEAST = 10  # images that all scores can be made of

# name in evaluation.json -> what people call it
NAMES = {
  "frechet": "Frechet distance",
  "kid": "kernel distance (KID)",
  "kid_error": "its standard error",
  "precision": "precision",
  "recall": "recall",
  "density": "density",
  "coverage": "coverage",
  "inception_score": "Inception score",
  "inception_score_std": "its deviation between 10 splits",
  "accuracy": "class accuracy",
  "near_copies": "near-copies of training images",
}


def check_num(num: int, key: str) -> None:
  """Raises UserError for a set too small to be scored."""
  if num < LEAST:
    raise UserError(f"{key} is {num}; scores need at least {LEAST} images.")


def score(found: Gathered, reference: Statistics) -> dict[str, float]:
  """Distances of images from a reference, and what logits and labels tell; names as in NAMES."""
  mean, covariance = found.moments.mean, frechet.covariance(found.moments)
  figures = {"frechet": frechet.distance(mean, covariance, reference.mean, reference.covariance)}
  if reference.kept is not None:
    figures |= _of_kept(reference.kept, found.kept)
  if found.votes is not None and found.votes.total.any():
    figures["accuracy"] = float(found.votes.right.sum() / found.votes.total.sum())
  return figures


def inception_score(said: np.ndarray) -> dict[str, float]:
  """Shapes: said: f32[M,1008], Inception's logits of the kept images."""
  found = logits.inception_score(said)
  return {"inception_score": found.mean, "inception_score_std": found.std}


def per_class(votes: Votes | None) -> dict[str, float]:
  """The accuracy of each class that was asked for."""
  if votes is None:
    return {}
  return {str(c): float(votes.right[c] / votes.total[c]) for c in np.flatnonzero(votes.total)}


def near_copies(found: Gathered, training: Statistics) -> NearCopies:
  """How close the kept images come to the kept training images."""
  assert training.kept is not None
  return neighbours.near_copies(found.kept, training.kept)


def _of_kept(real: np.ndarray, fake: np.ndarray) -> dict[str, Any]:
  kid = kernel.kid(real, fake, subsets=KID_SUBSETS)
  manifold = neighbours.precision_recall(real, fake)
  balls = neighbours.density_coverage(real, fake)
  return {
    "kid": kid.value,
    "kid_error": kid.standard_error,
    **{name: float(value) for name, value in (manifold._asdict() | balls._asdict()).items()},
  }
