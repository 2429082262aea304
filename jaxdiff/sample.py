"""Drawing images: one compiled sampling loop, called in batches of one size, whatever the number of images.

Image i is a function of (sample seed, i) and the parameters: not of the batch it is drawn in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff import (
  classifiers,
  control,
  data,
  distributed,
  fidelity,
  parallel,
  pictures,
  reporting,
  runs,
  steering,
  stores,
)
from jaxdiff.draw import Draw, check, make_draw, times
from jaxdiff.reporting import Shown
from jaxdiff.signals import StopRequest
from jaxdiff.tasks import process
from jaxdiff.types import NULL_LABEL, Task

logger = logging.getLogger("jaxdiff")

MAX_TILES = 100  # images in a picture
FILM_ROWS = 8


def labels(config: Any, num: int) -> np.ndarray:
  """The labels of num images: config.sample.labels in turn, or all classes in turn, or none where none has a part.  i32[num].

  Where their hints are those of the data's examples (config.sample.hint), these have labels too.
  """
  if not steering.asks_for_labels(config):
    return np.full(num, NULL_LABEL, np.int32)
  of_data = None if config.sample.labels else control.labels_of_data(config, num)
  if of_data is not None:
    return of_data
  wanted = config.sample.labels or tuple(range(classifiers.num_classes(config))) or (NULL_LABEL,)
  return np.resize(np.asarray(wanted, np.int32), num)


def preview_labels(config: Any) -> np.ndarray:
  """The labels of the images that a run shows of itself: a grid's at most, as many as its devices draw at once.  i32[N]."""
  return labels(config, parallel.multiple(min(config.sample.num, MAX_TILES)))


def draw_all(
  draw: Draw, state: Any, label: np.ndarray, batch_size: int, stop: StopRequest | None = None
) -> Iterator[np.ndarray]:
  """Draws image i of label[i] for all i, in batches of batch_size; of the last batch only what is asked for is kept.

  Raises Stopped between two batches where `stop` is reached.
  """
  for start in range(0, len(label), batch_size):
    if stop is not None:
      stop.check()
    index = np.arange(start, start + batch_size)
    yield draw(state, index, label[index % len(label)])[: len(label) - start]


def draw_shown(
  draw: Draw, state: Any, label: np.ndarray, batch_size: int, desc: str, stop: StopRequest | None = None
) -> np.ndarray:
  """All images of draw_all, u8[N,H,W,C], with a progress bar named `desc`.  Raises Stopped as draw_all."""
  images = []
  with reporting.progress(total=len(label), desc=desc) as bar:
    for drawn in draw_all(draw, state, label, batch_size, stop):
      images.append(drawn)
      bar.update(len(drawn))
  return np.concatenate(images)


def run(config: Any, workdir: Path, stop: StopRequest) -> None:
  """`--mode sample`: draws config.sample.num images with the newest checkpoint of a workdir.

  Writes samples.png (a labelled grid of at most 100) and samples.npz (arr_0 u8[N,H,W,C], arr_1 i64[N]) into
  config.sample.folder, or else there.
  Raises UserError for settings that cannot work and where there is no checkpoint; Stopped, with nothing written, where
  `stop` is reached.
  """
  check(config)
  s = config.sample
  batch_size = parallel.multiple(min(s.batch_size, s.num))
  strategy = parallel.mesh(config.parallel, batch_size)
  _, task, state, names = runs.restore(config, workdir, strategy)
  folder = Path(s.folder).expanduser() if s.folder else workdir
  distributed.by_first(lambda: stores.make_writable(folder, "Give another with --config.sample.folder=DIR."))
  distributed.check_shared(folder)
  label, look = labels(config, s.num), fidelity.make(config)
  draw = make_draw(config, task, strategy.place_rows)
  every, number = draw_shown(draw, state, label, batch_size, "sample", stop), np.arange(s.num)
  if not distributed.is_first():
    return
  pictures.save_npz(folder / "samples.npz", every, label)
  seen = look(every, number)
  save_grid(folder / "samples.png", seen.tiles(MAX_TILES), label, names)
  logger.info("%d images of step %d: %s and samples.npz.", s.num, int(state.step), folder / "samples.png")
  for name, value in seen.numbers.items():
    logger.info("%s %.3f", name, value)


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
  label = preview_labels(config)
  visited, names = times(config, process.build_schedule(config.diffusion)), source.label_names
  look, number = fidelity.make(config), np.arange(len(label))
  fidelity.warn_if_blind(config)

  def preview(state: Any, step: int, is_last: bool = False) -> Shown:
    seen = look(draw(state, number, label), number)
    path = workdir / "samples" / f"{step:07d}.png"
    shown = {"samples": save_grid(path, seen.tiles(len(label)), label, names)}
    if is_last:
      few = label[: parallel.multiple(FILM_ROWS)]
      frames = draw(state, np.arange(len(few)), few, record=True)
      shown["denoising"] = pictures.film_strip(frames, visited, _named(few, names))
      if distributed.is_first():
        pictures.save_png(workdir / "denoising.png", shown["denoising"])
    return Shown(shown, seen.numbers)

  return preview


def make_bounds_preview(
  config: Any, task: Task, strategy: parallel.Strategy, source: data.Source, workdir: Path
) -> Callable[..., Shown]:
  """The function preview(state, step, is_last) -> Shown: what the pictures' number would be without control, and of real images.

  It draws them once, as the base does not change.
  """
  del source, workdir
  label = preview_labels(config)
  number, look = np.arange(len(label)), fidelity.make(config)
  without = config.copy_and_resolve_references()
  without.sample.control_scale, without.sample.hint_guidance = (0.0,), 1.0
  draw = make_draw(without, task, strategy.place_rows)

  kept: list[dict[str, float]] = []

  def preview(state: Any, step: int, is_last: bool = False) -> Shown:
    del step, is_last
    if not kept:
      alone = look(draw(state, number, label), number).numbers
      bounds = {f"{name}/without": value for name, value in alone.items()}
      kept.append(bounds | fidelity.of_real_images(config, number))
    return Shown({}, kept[0])

  return preview


def save_grid(path: Path, images: np.ndarray, label: np.ndarray, names: Sequence[str]) -> np.ndarray:
  """Saves a labelled grid of images, of several processes in the first, and returns it, u8[H,W,3]."""
  where = path if distributed.is_first() else None
  return pictures.grid(images, _named(label[: len(images)], names), path=where)


def _named(label: np.ndarray, names: Sequence[str]) -> list[str]:
  return [names[i] if 0 <= i < len(names) else "" for i in label]
