"""What a run shows of itself while it trains, for each task: images it draws, how good they are, what it recognises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxdiff import accuracy, data, parallel, sample
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
  every: Callable[[Any], int]  # config -> steps; 0: only at the end
  is_wanted: Callable[[Any], bool] = lambda config: True


def _pictures(config: Any) -> int:
  return config.train.sample_every


DRAWN = (
  Part(sample.make_preview, _pictures),
  Part(quick.make_preview, lambda config: config.eval.every, quick.is_wanted),
)
PREVIEWS: dict[str, tuple[Part, ...]] = {
  "denoise": DRAWN,
  "controlnet": (*DRAWN, Part(sample.make_bounds_preview, _pictures)),
  "classifier": (Part(accuracy.make_preview, _pictures),),
}


def make(config: Any, task: Task, strategy: parallel.Strategy, source: data.Source, workdir: Path) -> Preview:
  """The preview of config.task.  Raises UserError for settings that cannot work."""
  last = config.train.steps
  parts = [
    (part.every(config), part.make(config, task, strategy, source, workdir))
    for part in PREVIEWS[config.task]
    if part.is_wanted(config)
  ]

  def is_due(step: int, every: int) -> bool:
    return step == last or bool(every and step % every == 0)

  def show(state: Any, step: int) -> Shown:
    every = [show(state, step, is_last=step == last) for every, show in parts if is_due(step, every)]
    pictures = {name: picture for shown in every for name, picture in shown.pictures.items()}
    numbers = {name: number for shown in every for name, number in shown.numbers.items()}
    return Shown(pictures, numbers)

  return Preview(lambda step: any(is_due(step, every) for every, _ in parts), show)
