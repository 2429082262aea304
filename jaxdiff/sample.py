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
import jax.numpy as jnp
import numpy as np

from jaxdiff import checkpoints, configuration, optim, parallel, pictures, reporting, tasks
from jaxdiff.data import pixels
from jaxdiff.diffusion import guidance, samplers, schedules
from jaxdiff.errors import UserError, unknown
from jaxdiff.types import NULL_LABEL, Cond, PyTree, Task

logger = logging.getLogger("jaxdiff")

Draw = Callable[..., np.ndarray]  # (state, index, label, record=False) -> u8[B,H,W,C]
MAX_TILES = 100  # images in a picture
FILM_ROWS = 8


def check(config: Any) -> None:
  """Raises UserError for settings of config.sample that cannot work with this config's model."""
  s = config.sample
  configuration.parse_call(s.sampler, samplers.SAMPLERS, "sampler")
  if s.grid not in samplers.GRIDS:
    raise unknown("grid (config.sample.grid)", s.grid, samplers.GRIDS)
  for key in ("steps", "num", "batch_size"):
    if s[key] < 1:
      raise UserError(f"config.sample.{key} is {s[key]}; it must be at least 1.")
  classes = config.model.num_classes
  for label in s.labels:
    if not 0 <= label < classes and label != NULL_LABEL:
      raise UserError(
        f"label {label} (config.sample.labels) is not one of this model's {classes} classes, 0..{classes - 1}."
      )
  if s.guidance != 1 and not config.diffusion.label_dropout:
    raise UserError(
      f"guidance {s.guidance:g} (config.sample.guidance) needs a model trained with label dropout; this one was trained "
      "with config.diffusion.label_dropout=0. Use --config.sample.guidance=1."
    )


def labels(config: Any, num: int) -> np.ndarray:
  """The labels of num images: config.sample.labels in turn, or all classes in turn.  i32[num]."""
  wanted = config.sample.labels or tuple(range(config.model.num_classes)) or (NULL_LABEL,)
  return np.resize(np.asarray(wanted, np.int32), num)


def make_draw(config: Any, task: Task, place: Callable[[PyTree], PyTree]) -> Draw:
  """The function draw(state, index, label, record=False) that draws a batch of images as config.sample says.

  Noise, the sampler's steps, guidance and the way to uint8 are one compiled computation.  Another guidance scale, seed,
  label or sampler argument (eta) does not compile it again.  record=True returns the whole path.

  Shapes: index: u32[B], label: i32[B], on the host; returns u8[B,H,W,C], on the host (recorded u8[steps+1,B,H,W,C]).
  """
  s = config.sample
  schedule = configuration.build(config.diffusion.schedule, schedules.SCHEDULES, "schedule")
  name, arguments = configuration.parse_call(s.sampler, samplers.SAMPLERS, "sampler")
  times = samplers.time_grid(s.steps, s.grid)
  shape = (config.data.image_size, config.data.image_size, config.data.channels)
  is_guided = s.guidance != 1  # without guidance at half the cost

  denoiser = task.denoiser
  if denoiser is None:
    raise UserError(f"the task {config.task!r} (config.task) draws no images.")

  def solve(params, state, key, rows, scale, arguments, record):
    denoise = denoiser(params, state)
    if is_guided:
      denoise = guidance.classifier_free(denoise, scale)
    if s.clip:
      denoise = guidance.clip_x(denoise, schedule)
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)), out_axes=1)(rows["index"])
    z = schedule.sigma(jnp.float32(times[0])) * samplers.noise_like(
      keys[0], jnp.zeros((keys.shape[1], *shape))
    )
    sampler = samplers.SAMPLERS[name](**arguments)
    solver = samplers.path if record else samplers.sample
    return pixels.to_uint8(solver(sampler, schedule, denoise, keys[1], z, times, Cond(rows["label"])))

  solve = jax.jit(solve, static_argnames="record")

  def draw(state: Any, index: np.ndarray, label: np.ndarray, record: bool = False) -> np.ndarray:
    params = optim.ema_params(state) if s.ema else state.params
    rows = place({"index": index.astype(np.uint32), "label": label.astype(np.int32)})
    return np.asarray(solve(params, state, jax.random.key(s.seed), rows, s.guidance, arguments, record))

  return draw


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
  times = samplers.time_grid(config.sample.steps, config.sample.grid)

  def preview(state: Any, step: int, film: bool = False) -> np.ndarray:
    if not film:
      images = draw(state, np.arange(len(label)), label)
      return save_grid(workdir / "samples" / f"{step:07d}.png", images, label, names)
    shown = label[: _multiple(FILM_ROWS)]
    path = draw(state, np.arange(len(shown)), shown, record=True)
    picture = pictures.film_strip(path, times, _named(shown, names))
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
