"""What a run shows of itself while it trains, for each task: images it draws, how good they are, what it recognises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxdiff import accuracy, data, parallel, sample, students
from jaxdiff.evaluation import quick
from jaxdiff.reporting import Shown
from jaxdiff.types import Task

Show = Callable[..., Shown]  # (state, step, is_last) -> pictures and numbers


class Preview(NamedTuple):
  """What is shown, and when; the loop knows no more of it."""

  due: Callable[[int], bool]  # step -> whether there is anything to show
  show: Callable[[Any, int], Shown]  # (state, step) -> all that is due


class Part(NamedTuple):
  """One thing that a task shows."""

  make: Callable[..., Show]  # (config, task, strategy, source, workdir)
  is_due: Callable[[Any, Task, int], bool]  # (config, task, step); at the end it is shown in any case
  is_wanted: Callable[[Any], bool] = lambda config: True


def _with_pictures(config: Any, task: Task, step: int) -> bool:
  return _every(config.train.sample_every, step)


def _with_evaluations(config: Any, task: Task, step: int) -> bool:
  return _every(config.eval.every, step)


def _with_stages(config: Any, task: Task, step: int) -> bool:
  return step in task.stages


def _every(steps: int, step: int) -> bool:
  """0: never."""
  return bool(steps) and step % steps == 0


DRAWN = (
  Part(sample.make_preview, _with_pictures),
  Part(quick.make_preview, _with_evaluations, quick.is_wanted),
)
PREVIEWS: dict[str, tuple[Part, ...]] = {
  "denoise": DRAWN,
  "controlnet": (*DRAWN, Part(sample.make_bounds_preview, _with_pictures)),
  "distill": (Part(students.make_preview, _with_stages),),
  "classifier": (Part(accuracy.make_preview, _with_pictures),),
}


def make(config: Any, task: Task, strategy: parallel.Strategy, source: data.Source, workdir: Path) -> Preview:
  """The preview of config.task.  Raises UserError for settings that cannot work."""
  last = config.train.steps
  parts = [
    (part.is_due, part.make(config, task, strategy, source, workdir))
    for part in PREVIEWS[config.task]
    if part.is_wanted(config)
  ]

  def due(step: int) -> list[Show]:
    return [show for is_due, show in parts if step == last or is_due(config, task, step)]

  def show(state: Any, step: int) -> Shown:
    every = [show(state, step, is_last=step == last) for show in due(step)]
    pictures = {name: picture for shown in every for name, picture in shown.pictures.items()}
    numbers = {name: number for shown in every for name, number in shown.numbers.items()}
    return Shown(pictures, numbers)

  return Preview(lambda step: bool(due(step)), show)
