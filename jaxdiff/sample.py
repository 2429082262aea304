"""Drawing images: one compiled sampling loop, called in batches of one size, whatever the number of images.

Image i is a function of (sample seed, i) and the parameters: not of the batch it is drawn in.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdiff import checkpoints, optim, parallel, pictures, reporting, tasks
from jaxdiff.draw import Draw, check, make_draw, times
from jaxdiff.errors import UserError
from jaxdiff.tasks import process
from jaxdiff.types import NULL_LABEL, PyTree, Task

logger = logging.getLogger("jaxdiff")

MAX_TILES = 100  # images in a picture
FILM_ROWS = 8


def labels(config: Any, num: int) -> np.ndarray:
  """The labels of num images: config.sample.labels in turn, or all classes in turn.  i32[num]."""
  wanted = config.sample.labels or tuple(range(config.model.num_classes)) or (NULL_LABEL,)
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
  task = tasks.make(config, optim.make_optimizer(config.optim, config.train.steps))
  restored = None
  if (workdir / checkpoints.FOLDER).is_dir():
    with contextlib.closing(checkpoints.open_for_reading(workdir)) as manager:
      abstract = strategy.abstract(lambda: tasks.initial_state(config, task))
      restored = checkpoints.restore(manager, abstract, set_aside=False)
  if restored is None:
    raise UserError(f"there is no checkpoint in {str(workdir)!r}. Train first, or give another --workdir.")
  state, record = restored
  label, images = labels(config, s.num), []
  with reporting.progress(total=s.num, desc="sample") as bar:
    for drawn in draw_all(make_draw(config, task, strategy.place_rows), state, label, batch_size):
      images.append(drawn)
      bar.update(len(drawn))
  every = np.concatenate(images)
  pictures.save_npz(workdir / "samples.npz", every, label)
  save_grid(workdir / "samples.png", every[:MAX_TILES], label, record["label_names"])
  logger.info("%d images of step %d: %s and samples.npz.", s.num, int(state.step), workdir / "samples.png")


def make_preview(
  config: Any, task: Task, place: Callable[[PyTree], PyTree], names: Sequence[str], workdir: Path
) -> Callable[..., np.ndarray]:
  """The function preview(state, step, film=False) -> u8[H,W,3] that a training loop calls for a picture.

  It draws the same noise and labels each time, so that one can flip through a run's progress, and saves
  samples/<step>.png; film=True instead draws the way from noise to image and saves denoising.png.
  """
  draw = make_draw(config, task, place)
  label = labels(config, _multiple(min(config.sample.num, MAX_TILES)))
  visited = times(config, process.build_schedule(config.diffusion))

  def preview(state: Any, step: int, film: bool = False) -> np.ndarray:
    if not film:
      images = draw(state, np.arange(len(label)), label)
      return save_grid(workdir / "samples" / f"{step:07d}.png", images, label, names)
    shown = label[: _multiple(FILM_ROWS)]
    path = draw(state, np.arange(len(shown)), shown, record=True)
    picture = pictures.film_strip(path, visited, _named(shown, names))
    pictures.save_png(workdir / "denoising.png", picture)
    return picture

  return preview


def save_grid(path: Path, images: np.ndarray, label: np.ndarray, names: Sequence[str]) -> np.ndarray:
  """Saves a labelled grid of images and returns it, u8[H,W,3]."""
  return pictures.grid(images, _named(label[: len(images)], names), path=path)


def _named(label: np.ndarray, names: Sequence[str]) -> list[str]:
  return [names[i] if 0 <= i < len(names) else "" for i in label]


def _multiple(count: int) -> int:
  """The next multiple of the number of devices: rows are split over them evenly."""
  return count + -count % jax.device_count()
