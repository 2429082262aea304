"""What a classifier says of generated images: how sure it is and of how many classes, and how often it is right."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax, logsumexp

from jaxdiff.scores.features import checked


class InceptionScore(NamedTuple):
  """Between 1 and the number of classes."""

  mean: float  # over the splits
  std: float  # between the splits, as papers print it: sqrt(splits) times the standard error of the mean


class Accuracy(NamedTuple):
  """Shares of images that are classified right."""

  overall: float
  per_class: dict[int, float]  # of the classes that occur among the labels


def inception_score(logits: np.ndarray, splits: int = 10, seed: int | None = 0) -> InceptionScore:
  """exp(mean over images of KL(p(y | x) || p(y))), p(y) the mean of p(y | x), in each of equal parts of the images.

  It falls with the size of a split: compare numbers of the same one.  seed shuffles the images first, since a split of
  images in the order of their classes would hold one class only; None takes them in order, as Salimans et al. do.

  Shapes: logits: [N,K], N >= splits.
  Raises: ValueError that says what is wrong with the logits or splits.
  Source: Salimans et al. 2016, section 4; splits: their program.
  """
  if splits < 1:
    raise ValueError(f"splits={splits}, but at least 1 is needed")
  (logits,) = checked({"logits": logits}, at_least=splits)
  order = np.arange(len(logits)) if seed is None else np.random.default_rng(seed).permutation(len(logits))
  scores = [_inception_score(logits[part]) for part in np.array_split(order, splits)]
  return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def accuracy(logits_or_predictions: np.ndarray, labels: np.ndarray) -> Accuracy:
  """The share of images whose class is their label, of all and class by class; of equal logits the first class counts.

  Shapes: logits: [N,K], or predictions, classes that were already chosen: int[N]; labels: int[N] (in 0..K-1 for logits).
  Raises: ValueError that says what is wrong with which argument.
  """
  labels, predictions = np.asarray(labels), np.asarray(logits_or_predictions)
  if labels.ndim != 1 or labels.dtype.kind not in "iu" or not labels.size:
    raise ValueError(f"labels: {labels.dtype}{list(labels.shape)}, but they must be integers [N], N >= 1")
  if predictions.ndim == 2:
    (logits,) = checked({"logits": predictions})
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
      raise ValueError(
        f"labels: {labels.min()} to {labels.max()}, but logits of {logits.shape[1]} classes know 0 to {logits.shape[1] - 1}"
      )
    predictions = logits.argmax(axis=1)
  if predictions.dtype.kind not in "iu" or predictions.shape != labels.shape:
    raise ValueError(
      f"predictions: {predictions.dtype}{list(predictions.shape)}, but {len(labels)} labels need integers [{len(labels)}]"
    )
  right = predictions == labels
  return Accuracy(float(right.mean()), {int(c): float(right[labels == c].mean()) for c in np.unique(labels)})


def _inception_score(logits: np.ndarray) -> float:
  """The score of one split."""
  log_p = log_softmax(logits.astype(np.float64), axis=1)
  log_marginal = logsumexp(log_p, axis=0) - np.log(len(log_p))
  divergence = (np.exp(log_p) * (log_p - log_marginal)).sum(axis=1)
  return float(np.exp(divergence.mean()))
