"""What a run shows of itself while it trains, for each task: images it draws, or what it recognises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxdiff import accuracy, data, parallel, sample
from jaxdiff.reporting import Shown
from jaxdiff.types import Task

Preview = Callable[..., Shown]  # (state, step, is_last) -> pictures and numbers
PREVIEWS: dict[str, Callable[..., Preview]] = {
  "denoise": sample.make_preview,
  "classifier": accuracy.make_preview,
}


def make(config: Any, task: Task, strategy: parallel.Strategy, source: data.Source, workdir: Path) -> Preview:
  """The preview of config.task.  Raises UserError for settings that cannot work."""
  return PREVIEWS[config.task](config, task, strategy, source, workdir)
