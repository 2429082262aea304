"""Quick evaluations while a model is trained: few images, drawn and scored in memory, as numbers on its curves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxdiff import data, draw, parallel
from jaxdiff.errors import UserError
from jaxdiff.evaluation import drawn, evaluate, features, figures, images, report, scorer
from jaxdiff.evaluation.images import Images
from jaxdiff.reporting import Shown
from jaxdiff.types import Task


def make_preview(
  config: Any, task: Task, strategy: parallel.Strategy, source: data.Source, workdir: Path
) -> Callable[..., Shown]:
  """The function preview(state, step, is_last) -> Shown that a training loop calls every config.eval.every steps.

  It draws config.eval.quick_num images, the same noise and labels each time; its numbers are named eval/frechet, ...
  Raises UserError for settings of config.eval that cannot work.
  """
  del source  # the reference may be another split
  e, shape = config.eval, images.shape(config.data)
  scoring = scorer.make(config, check(config), workdir)
  drawing = draw.make_draw(config, task, strategy.place_rows)
  label = drawn.labels(config, e.quick_num)
  width = min(config.sample.batch_size, e.quick_num)
  width += -width % jax.device_count()

  def preview(state: Any, step: int, is_last: bool = False) -> Shown:
    del step, is_last
    batches = drawn.in_memory(drawing, state, label, width)
    found = scorer.score(scoring, Images("drawn", e.quick_num, shape, batches)).figures
    return Shown({}, {report.PREFIX + name: value for name, value in found.items()})

  return preview


def check(config: Any) -> features.Extractor:
  """The network to score with.  Raises UserError for settings of config.eval and config.sample that cannot work."""
  evaluate.check(config)
  draw.check(config)
  figures.check_num(config.eval.quick_num, "config.eval.quick_num")
  extractor = features.load(config.eval.features)
  extractor.check(images.shape(config.data))
  return extractor


def is_wanted(config: Any) -> bool:
  """Whether config.eval.every asks for any.  Raises UserError for what is no number of steps."""
  every = config.eval.every
  if every < 0:
    raise UserError(f"config.eval.every is {every}; give a number of steps, or 0 for no evaluations.")
  return every > 0
