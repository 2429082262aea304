"""Ways to do something, timed in turn in one process, so that a slow minute of the machine hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff import draw, parallel, runs


def timed(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
  """Seconds of each way in each round, f64[rounds], after one round that does not count, as it compiles."""
  seconds: dict[str, list[float]] = {name: [] for name in ways}
  for number in range(rounds + 1):
    for name, once in ways.items():
      begin = time.perf_counter()
      once()
      if number:
        seconds[name].append(time.perf_counter() - begin)
  return {name: np.asarray(own) for name, own in seconds.items()}


def quartiles(ratios: np.ndarray) -> tuple[float, float, float]:
  """(lower quartile, median, upper quartile)."""
  low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
  return float(low), float(middle), float(high)


def opened(config: Any, workdir: Path, batch_size: int) -> tuple[Any, draw.Draw]:
  """(state, draw) of a run, which draws so many images at a time as config.sample says."""
  strategy = parallel.mesh(config.parallel, batch_size)
  run = runs.restore(config, workdir, strategy)
  return run.state, draw.make_draw(config, run.task, strategy.place_rows)


def drawer(config: Any, workdir: Path, label: np.ndarray) -> Callable[[], np.ndarray]:
  """Draws a batch of a run's images, one of each label."""
  state, drawing = opened(config, workdir, len(label))
  return lambda: drawing(state, np.arange(len(label)), label)
