"""Drawing images: one compiled sampling loop, called in batches of one size, whatever the number of images.

Image i is a function of (sample seed, i) and the parameters: not of the batch it is drawn in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdiff import classifiers, data, parallel, pictures, reporting, runs, steering
from jaxdiff.draw import Draw, check, make_draw, times
from jaxdiff.reporting import Shown
from jaxdiff.tasks import process
from jaxdiff.types import NULL_LABEL, Task

logger = logging.getLogger("jaxdiff")

MAX_TILES = 100  # images in a picture
FILM_ROWS = 8


def labels(config: Any, num: int) -> np.ndarray:
  """The labels of num images: config.sample.labels in turn, or all classes in turn, or none where none has a part.  i32[num]."""
  classes = classifiers.num_classes(config) if steering.asks_for_labels(config) else 0
  wanted = config.sample.labels or tuple(range(classes)) or (NULL_LABEL,)
  return np.resize(np.asarray(wanted, np.int32), num)


def draw_all(draw: Draw, state: Any, label: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
  """Draws image i of label[i] for all i, in batches of batch_size; of the last batch only what is asked for is kept."""
  for start in range(0, len(label), batch_size):
    index = np.arange(start, start + batch_size)
    yield draw(state, index, label[index % len(label)])[: len(label) - start]


def run(config: Any, workdir: Path) -> None:
  """`--mode sample`: draws config.sample.num images with the newest checkpoint of a workdir.

  Writes samples.png (a labelled grid of at most 100) and samples.npz (arr_0 u8[N,H,W,C], arr_1 i64[N]) there.
  Raises UserError for settings that cannot work and where there is no checkpoint.
  """
  check(config)
  s = config.sample
  batch_size = _multiple(min(s.batch_size, s.num))
  strategy = parallel.mesh(config.parallel, batch_size)
  _, task, state, names = runs.restore(config, workdir, strategy)
  label, images = labels(config, s.num), []
  with reporting.progress(total=s.num, desc="sample") as bar:
    for drawn in draw_all(make_draw(config, task, strategy.place_rows), state, label, batch_size):
      images.append(drawn)
      bar.update(len(drawn))
  every = np.concatenate(images)
  pictures.save_npz(workdir / "samples.npz", every, label)
  save_grid(workdir / "samples.png", every[:MAX_TILES], label, names)
  logger.info("%d images of step %d: %s and samples.npz.", s.num, int(state.step), workdir / "samples.png")


def make_preview(
  config: Any, task: Task, strategy: parallel.Strategy, source: data.Source, workdir: Path
) -> Callable[..., Shown]:
  """The function preview(state, step, is_last) -> Shown that a training loop calls.

  It draws the same noise and labels each time, so that one can flip through a run's progress, and saves
  samples/<step>.png; at the last step also the way from noise to image, denoising.png.
  Raises UserError for settings of config.sample that cannot work.
  """
  check(config)
  draw = make_draw(config, task, strategy.place_rows)
  label = labels(config, _multiple(min(config.sample.num, MAX_TILES)))
  visited, names = times(config, process.build_schedule(config.diffusion)), source.label_names

  def preview(state: Any, step: int, is_last: bool = False) -> Shown:
    images = draw(state, np.arange(len(label)), label)
    shown = {"samples": save_grid(workdir / "samples" / f"{step:07d}.png", images, label, names)}
    if is_last:
      few = label[: _multiple(FILM_ROWS)]
      path = draw(state, np.arange(len(few)), few, record=True)
      shown["denoising"] = pictures.film_strip(path, visited, _named(few, names))
      pictures.save_png(workdir / "denoising.png", shown["denoising"])
    return Shown(shown, {})

  return preview


def save_grid(path: Path, images: np.ndarray, label: np.ndarray, names: Sequence[str]) -> np.ndarray:
  """Saves a labelled grid of images and returns it, u8[H,W,3]."""
  return pictures.grid(images, _named(label[: len(images)], names), path=path)


def _named(label: np.ndarray, names: Sequence[str]) -> list[str]:
  return [names[i] if 0 <= i < len(names) else "" for i in label]


def _multiple(count: int) -> int:
  """The next multiple of the number of devices: rows are split over them evenly."""
  return count + -count % jax.device_count()
