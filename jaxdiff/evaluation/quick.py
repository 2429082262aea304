"""Quick evaluations while a model is trained: few images, drawn and scored in memory, as numbers on its curves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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

  Its numbers are make_measure's.  Raises UserError for settings of config.eval that cannot work.
  """
  del source  # the reference may be another split
  measure = make_measure(config, workdir)
  drawing = draw.make_draw(config, task, strategy.place_rows)

  def preview(state: Any, step: int, is_last: bool = False) -> Shown:
    del step, is_last
    return Shown({}, measure(drawing, state))

  return preview


def make_measure(config: Any, workdir: Path) -> Callable[[draw.Draw, Any], dict[str, float]]:
  """The function (drawing, state) -> {"eval/frechet": ..., ...}: the figures of images drawn from a state.

  There are config.eval.quick_num of them, of the same noise and labels each time.  What they are scored with is made once,
  here; the statistics to compare with are kept in the workdir.
  Raises UserError for settings of config.eval that cannot work.
  """
  e, shape = config.eval, images.shape(config.data)
  scoring = scorer.make(config, check(config), workdir)
  label = drawn.labels(config, e.quick_num)
  width = parallel.multiple(min(config.sample.batch_size, e.quick_num))

  def measure(drawing: draw.Draw, state: Any) -> dict[str, float]:
    batches = drawn.in_memory(drawing, state, label, width)
    found = scorer.score(scoring, Images("drawn", e.quick_num, shape, batches)).figures
    return {report.PREFIX + name: value for name, value in found.items()}

  return measure


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
