"""`--mode evaluate`: how good images are; those that a run draws, or any others.

The settings of one evaluation and its figures are a row of WORKDIR/evaluation.json; see docs/evaluation.md for what they mean.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdiff import distributed, draw, parallel, runs, steering, stores
from jaxdiff.errors import UserError, unknown
from jaxdiff.evaluation import drawn, features, figures, images, reference, report, scorer, show
from jaxdiff.evaluation.features import Extractor
from jaxdiff.evaluation.images import Images
from jaxdiff.signals import StopRequest
from jaxdiff.types import Task

logger = logging.getLogger("jaxdiff")

COPY = "Copy it to where you can, and give the copy with --workdir."
LABELS = ("balanced", "data")
# key of config.eval -> the key of config.sample that it sweeps, and what its values are
SWEEPS: dict[str, tuple[str, Callable[[str], Any]]] = {
  "sweep_guidance": ("guidance", float),
  "sweep_classifier_scale": ("classifier_scale", float),
  "sweep_steps": ("steps", int),
}


UNSAID = ("num", "batch_size")  # of config.sample: images do not depend on them


class Subject(NamedTuple):
  """What is scored."""

  settings: dict[str, Any]
  images: Images
  label_names: tuple[str, ...]


def run(config: Any, workdir: Path, stop: StopRequest) -> None:
  """Scores images with config.eval's settings, or makes statistics to compare with (config.eval.make_reference).

  Leaves in the workdir: evaluation.json and report.html, grid.png and neighbours.png in evaluation/, and what was drawn.
  Raises UserError for settings that cannot work, and for what cannot be read or written; Stopped where `stop` is reached
  while images are drawn, which are kept.
  """
  check(config)
  e = config.eval
  extractor = features.load(e.features)
  extractor.check(images.shape(config.data))
  if e.make_reference:
    return make_reference(config, extractor)
  restored = restore(config, workdir)
  distributed.by_first(lambda: stores.make_writable(workdir, COPY))
  if restored:
    distributed.check_shared(workdir)
  scoring = scorer.make(config, extractor, workdir)
  for subject in subjects(config, workdir, restored, stop):
    if not distributed.is_first():
      continue  # it has drawn its share; the first process scores
    scored = scorer.score(scoring, subject.images)
    said = subject.settings | scorer.settings(config, scoring, subject.images)
    rows = report.add(workdir, said, scored.figures, scored.per_class)
    logger.info("%s", report.line(scored.figures))
    show.pictures(workdir, config.data, subject.images, subject.label_names, scored, scoring.training)
    report.write(workdir, rows)
    logger.info("Report: %s", workdir / report.PAGE)
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
  distributed.by_first(
    lambda: stores.make_writable(
      path.absolute().parent, "Give another with --config.eval.make_reference=FILE.npz."
    )
  )
  made = reference.of_split(config, split, extractor, None)
  if distributed.is_first():
    reference.save(path, made)
  logger.info("Wrote %s: %s of %d images (%s).", path, extractor.name, made.num, split)


def subjects(config: Any, workdir: Path, restored: runs.Run | None, stop: StopRequest) -> Iterator[Subject]:
  """What is to be scored: the images given, or those that a run draws, for each value of a sweep."""
  e = config.eval
  if restored is None:
    found = images.given(config)
    yield Subject({"images": found.name}, found, ())
    return
  strategy = local_mesh(config)
  drawings: dict[tuple[Any, ...], Callable[..., np.ndarray]] = {}
  for varied, desc in variants(config):
    kind = compiled_as(varied.sample)
    if kind not in drawings:
      drawings[kind] = make_draw(varied, restored.task, strategy)
    place = drawn.folder(workdir, varied, restored.state)
    drawing = functools.partial(drawings[kind], varied.sample)
    label = drawn.labels(varied, e.num)
    found = drawn.draw(place, drawing, restored.state, label, varied.sample.batch_size, stop, desc)
    yield Subject(settings(varied, restored), found, restored.label_names)


def variants(config: Any) -> list[tuple[Any, str]]:
  """The config for each value of a sweep and its name, or as it is.  Raises UserError for one that cannot draw."""
  found = []
  for key, (swept, _) in SWEEPS.items():
    for value in values(key, config.eval[key]):
      varied = config.copy_and_resolve_references()
      varied.sample[swept] = value
      found.append((varied, f"draw, {swept} {value:g}"))
  for varied, _ in found:
    draw.check(varied)
  return found or [(config, "draw")]


def make_draw(config: Any, task: Task, strategy: parallel.Strategy) -> Callable[..., np.ndarray]:
  """draw.make_draw's function with config.sample as one more argument: of it all counts that is not compiled in."""
  own = config.copy_and_resolve_references()
  drawing = draw.make_draw(own, task, strategy.place_rows)

  def draw_with(s: Any, state: Any, index: np.ndarray, label: np.ndarray) -> np.ndarray:
    own.sample.update(s)
    return drawing(state, index, label)

  return draw_with


def compiled_as(s: Any) -> tuple[Any, ...]:
  """What of config.sample a sweep may change and what draws is compiled for."""
  return s.steps, steering.is_guided(s), bool(s.guidance), steering.has_classifier(s)


def settings(config: Any, restored: runs.Run) -> dict[str, Any]:
  """What drawn images are a function of, for people and to know a row of evaluation.json again."""
  drawn_with = {f"sample.{key}": value for key, value in config.sample.items() if key not in UNSAID}
  return {"step": int(restored.state.step), "labels": config.eval.labels, **drawn_with}


def local_mesh(config: Any) -> parallel.Strategy:
  """The devices of this process: each process draws batches of its own."""
  devices = jax.local_devices()
  return parallel.mesh(config.parallel, parallel.multiple(config.sample.batch_size, len(devices)), devices)


def restore(config: Any, workdir: Path) -> runs.Run | None:
  """The run that draws what is scored, if that is not given."""
  if config.eval.images:
    figures.check_num(images.given(config).num, "the number of images in config.eval.images")
    return None
  draw.check(config)
  variants(config)
  found = runs.restore(config, workdir, local_mesh(config))
  if found.task.denoiser is None:
    raise UserError(
      f"the run in {str(workdir)!r} draws no images: its task is {config.task!r} (config.task). Score images of others "
      "with --config.eval.images."
    )
  return found
