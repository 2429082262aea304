"""What config.eval scores images with, ready to run: a network, what to compare with, and who tells classes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdiff import reporting
from jaxdiff.errors import UserError
from jaxdiff.evaluation import features, figures, gather, images, reference
from jaxdiff.evaluation.features import Extractor, Seen
from jaxdiff.evaluation.gather import Gathered
from jaxdiff.evaluation.images import Images
from jaxdiff.evaluation.reference import Statistics
from jaxdiff.scores.neighbours import NearCopies

logger = logging.getLogger("jaxdiff")

# (images, what the extractor saw) -> a classifier's logits f32[n,K], or None
Judge = Callable[[np.ndarray, Seen], np.ndarray | None]


class Scorer(NamedTuple):
  """What images are scored with."""

  extractor: Extractor
  judge: Judge
  reference: Statistics
  training: Statistics | None  # of the images trained on, to find copies of


class Scored(NamedTuple):
  """What was found of a set of images."""

  figures: dict[str, float]
  per_class: dict[str, float]  # accuracy
  found: Gathered
  copies: NearCopies | None


def make(config: Any, extractor: Extractor, workdir: Path) -> Scorer:
  """The extractor, with what config.eval compares to and, where there is one, a classifier that tells classes."""
  judge = judge_of(config, extractor)
  compared = reference.of(config, extractor, workdir)
  if compared.kept is not None:
    figures.check_num(len(compared.kept), "the number of images compared with (config.eval.reference)")
  return Scorer(extractor, judge, compared, training(config, extractor, compared, workdir))


def judge_of(config: Any, extractor: Extractor) -> Judge:
  """What tells the class of an image: config.eval.classifier, else the extractor if it is a classifier, else nothing."""
  where = config.eval.classifier
  if not where:
    return (lambda images, seen: seen.logits) if extractor.kind == "classifier" else lambda images, seen: None
  classifier = features.load(f"classifier:{where}", "config.eval.classifier")
  classifier.check(images.shape(config.data))
  return lambda images, seen: classifier.apply(images).logits


def training(config: Any, extractor: Extractor, compared: Statistics, workdir: Path) -> Statistics | None:
  """Statistics of the images trained on, to find copies of; None where only others are at hand."""
  own = config.data.split
  if not config.eval.reference:
    is_same = reference.split(config) == own
    return compared if is_same else reference.of_split(config, own, extractor, workdir)
  try:
    mark = reference.fingerprint(images.open_split(config.data, own), config.data)
  except UserError as error:
    logger.info("Copies of training images are not looked for: %s", error)
    return None
  if compared.data == mark:
    return compared
  logger.info("Copies of training images are not looked for: %s is of other images.", config.eval.reference)
  return None


def settings(config: Any, scorer: Scorer, given: Images) -> dict[str, Any]:
  """What figures depend on beside the images."""
  return {
    "num": given.num,
    "features": scorer.extractor.name,
    "extractor": scorer.extractor.fingerprint,
    "resize": reference.resize(config.data, scorer.extractor),
    "reference": scorer.reference.data,
    "reference_num": scorer.reference.num,
    "classifier": config.eval.classifier,
  }


def score(scorer: Scorer, given: Images) -> Scored:
  """All figures of a set of images."""
  scorer.extractor.check(given.shape)
  with reporting.progress(given.num, desc="score") as bar:
    found = gather.gather(given.batches(), given.num, scorer.extractor, scorer.judge, bar.update)
  result = figures.score(found, scorer.reference)
  if found.logits is not None and scorer.extractor.kind == "inception":
    result |= figures.inception_score(found.logits)
  copies = figures.near_copies(found, scorer.training) if scorer.training else None
  if copies:
    result["near_copies"] = copies.share
  return Scored(result, figures.per_class(found.votes), found, copies)
