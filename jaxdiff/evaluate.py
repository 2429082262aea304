"""`--mode evaluate`: how good images are; those that a run draws, or any others.

The settings of one evaluation and its figures are a row of WORKDIR/evaluation.json; see docs/evaluation.md for what they mean.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdiff import (
  draw,
  drawn,
  features,
  figures,
  gather,
  images,
  parallel,
  reference,
  report,
  reporting,
  runs,
  steering,
)
from jaxdiff.draw import Draw
from jaxdiff.errors import UserError, unknown
from jaxdiff.features import Extractor, Seen
from jaxdiff.gather import Gathered
from jaxdiff.images import Images
from jaxdiff.reference import Statistics
from jaxdiff.scores.neighbours import NearCopies

logger = logging.getLogger("jaxdiff")

LABELS = ("balanced", "data")
# key of config.eval -> the key of config.sample that it sweeps, and what its values are
SWEEPS: dict[str, tuple[str, Callable[[str], Any]]] = {
  "sweep_guidance": ("guidance", float),
  "sweep_classifier_scale": ("classifier_scale", float),
  "sweep_steps": ("steps", int),
}


UNSAID = ("num", "batch_size")  # of config.sample: images do not depend on them
# (images, what the extractor saw) -> a classifier's logits f32[n,K], or None
Judge = Callable[[np.ndarray, Seen], np.ndarray | None]


class Scorer(NamedTuple):
  """What images are scored with."""

  extractor: Extractor
  judge: Judge
  reference: Statistics
  training: Statistics | None  # of the images trained on, to find copies of


class Subject(NamedTuple):
  """What is scored."""

  settings: dict[str, Any]
  images: Images
  label_names: tuple[str, ...]


class Scored(NamedTuple):
  """What was found of a set of images."""

  figures: dict[str, float]
  per_class: dict[str, float]  # accuracy
  found: Gathered
  copies: NearCopies | None


def run(config: Any, workdir: Path) -> None:
  """Scores images with config.eval's settings, or makes statistics to compare with (config.eval.make_reference).

  Leaves in the workdir: evaluation.json and report.html, grid.png and neighbours.png in evaluation/, and what was drawn.
  Raises UserError for settings that cannot work, and for what cannot be read or written.
  """
  check(config)
  e = config.eval
  extractor = features.load(e.features)
  extractor.check(images.shape(config.data))
  if e.make_reference:
    return make_reference(config, extractor)
  restored = restore(config, workdir)
  scorer = make_scorer(config, extractor, workdir)
  for subject in subjects(config, workdir, restored):
    if jax.process_index():
      continue  # it has drawn its share; the first process scores
    scored = score(scorer, subject.images)
    said = subject.settings | of_scorer(config, scorer, subject.images)
    report.add(workdir, said, scored.figures, scored.per_class)
    logger.info("%s", report.line(scored.figures))
  return None


def check(config: Any) -> None:
  """Raises UserError for settings of config.eval that cannot work."""
  e = config.eval
  if e.labels not in LABELS:
    raise unknown("value of config.eval.labels", e.labels, LABELS)
  figures.check_num(e.num, "config.eval.num")
  swept = [key for key in SWEEPS if e[key]]
  for key in swept:
    values(key, e[key])
    if e.images:
      raise UserError(
        f"config.eval.{key} draws images, config.eval.images={e.images!r} gives them. Leave one out."
      )
  if e.reference and e.reference_split:
    raise UserError(
      f"config.eval.reference={e.reference!r} and config.eval.reference_split={e.reference_split!r} both say what to "
      "compare with. Leave one out."
    )


def values(key: str, text: str) -> list[Any]:
  """The values that a sweep goes through.  Raises UserError for what is not a list of numbers."""
  kind = SWEEPS[key][1]
  try:
    return [kind(part) for part in text.strip("()[] ").split(",") if part.strip()]
  except ValueError:
    raise UserError(f"config.eval.{key} is {text!r}; give numbers as in 1,2,3.") from None


def make_reference(config: Any, extractor: Extractor) -> None:
  """Writes the statistics of a split of the data to config.eval.make_reference."""
  path, split = Path(config.eval.make_reference).expanduser(), reference.split(config)
  reference.check_name(path)
  made = reference.of_split(config, split, extractor, None)
  reference.save(path, made)
  logger.info("Wrote %s: %s of %d images (%s).", path, extractor.name, made.num, split)


def make_scorer(config: Any, extractor: Extractor, workdir: Path) -> Scorer:
  """The extractor, with what config.eval compares to and, where there is one, a classifier that tells classes."""
  judge = make_judge(config, extractor)
  compared = reference.of(config, extractor, workdir)
  if compared.kept is not None:
    figures.check_num(len(compared.kept), "the number of images compared with (config.eval.reference)")
  return Scorer(extractor, judge, compared, training(config, extractor, compared, workdir))


def make_judge(config: Any, extractor: Extractor) -> Judge:
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


def subjects(config: Any, workdir: Path, restored: runs.Run | None) -> Iterator[Subject]:
  """What is to be scored: the images given, or those that a run draws, for each value of a sweep."""
  e = config.eval
  if restored is None:
    found = images.given(config)
    yield Subject({"images": found.name}, found, ())
    return
  config = config.copy_and_resolve_references()  # a sweep changes it
  strategy = local_mesh(config)
  drawings: dict[tuple[Any, ...], Draw] = {}
  for key, value in swept(e) or [("", None)]:
    s = config.sample.copy_and_resolve_references()
    if key:
      config.sample[key] = value
    draw.check(config)
    kind = compiled_as(config.sample)
    if kind not in drawings:
      drawings[kind] = draw.make_draw(config, restored.task, strategy.place_rows)
    place = drawn.folder(workdir, config, restored.state)
    desc = f"draw ({key}={value:g})" if key else "draw"
    label = drawn.labels(config, e.num)
    found = drawn.draw(place, drawings[kind], restored.state, label, config.sample.batch_size, desc)
    yield Subject(settings(config, restored), found, restored.label_names)
    config.sample.update(s)


def swept(e: Any) -> list[tuple[str, Any]]:
  """Each key of config.sample to be changed, with its value."""
  return [(SWEEPS[key][0], value) for key in SWEEPS if e[key] for value in values(key, e[key])]


def compiled_as(s: Any) -> tuple[Any, ...]:
  """What of config.sample a sweep may change and what draws is compiled for."""
  return s.steps, steering.is_guided(s), bool(s.guidance), steering.has_classifier(s)


def settings(config: Any, restored: runs.Run) -> dict[str, Any]:
  """What drawn images are a function of, for people and to know a row of evaluation.json again."""
  drawn_with = {f"sample.{key}": value for key, value in config.sample.items() if key not in UNSAID}
  return {"step": int(restored.state.step), "labels": config.eval.labels, **drawn_with}


def of_scorer(config: Any, scorer: Scorer, given: Images) -> dict[str, Any]:
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


def local_mesh(config: Any) -> parallel.Strategy:
  """The devices of this process: each process draws batches of its own."""
  devices = jax.local_devices()
  width = config.sample.batch_size + -config.sample.batch_size % len(devices)
  return parallel.mesh(config.parallel, width, devices)


def restore(config: Any, workdir: Path) -> runs.Run | None:
  """The run that draws what is scored, if that is not given."""
  if config.eval.images:
    figures.check_num(images.given(config).num, "the number of images in config.eval.images")
    return None
  draw.check(config)
  found = runs.restore(config, workdir, local_mesh(config))
  if found.task.denoiser is None:
    raise UserError(
      f"the run in {str(workdir)!r} draws no images: its task is {config.task!r} (config.task). Score images of others "
      "with --config.eval.images."
    )
  return found
