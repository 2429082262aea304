"""How images are drawn: config.sample as one compiled computation, from noise or from a given image to uint8.

Noise, the solver's steps, guidance and the way to bytes are compiled together, once for each number of steps; another
guidance scale, seed, label or number among the sampler's arguments (eta) does not compile it again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import classifiers, configuration, control, distributed, optim, steering
from jaxdiff.data import files, pixels
from jaxdiff.diffusion import editing, samplers, schedules
from jaxdiff.errors import UserError
from jaxdiff.tasks import process
from jaxdiff.types import NULL_LABEL, NoiseSchedule, PyTree, Task

Draw = Callable[..., np.ndarray]  # (state, index, label, record=False) -> u8[B,H,W,C]


def check(config: Any) -> None:
  """Raises UserError for settings of config.sample that cannot work with this config's model."""
  s = config.sample
  for key in ("steps", "num", "batch_size", "repeats"):
    if s[key] < 1:
      raise UserError(f"config.sample.{key} is {s[key]}; it must be at least 1.")
  _check_student(s)
  sampler, words, _ = _sampler(s)
  if sampler == "ddpm":
    _check_variance(words.get("variance", "fixed_small"), config.model.learn_sigma)
  configuration.build(s.sampler, samplers.SAMPLERS, "sampler")
  schedule = process.build_schedule(config.diffusion)
  steering.check_threshold(s, schedule)
  times(config, schedule)
  _check_needs(s)
  steering.check(config)
  control.check(config)
  _check_labels(config)
  _given_image(config)


def _check_student(s: Any) -> None:
  """Raises UserError where a student would take other steps than those it has learned."""
  if not s.only_steps:
    return
  learned = {"steps": s.only_steps, "sampler": "ddim", "grid": "uniform"}
  for key, value in learned.items():
    if s[key] != value:
      raise UserError(
        f"this student has learned {s.only_steps} steps of ddim on the uniform grid; config.sample.{key} is {s[key]!r}. "
        f"Use --config.sample.{key}={value}, or the student of another round."
      )


def _check_labels(config: Any) -> None:
  classes = classifiers.num_classes(config)
  if not classes and config.sample.classifier:
    return  # a function of the user's: it alone knows
  for label in config.sample.labels:
    if not 0 <= label < classes and label != NULL_LABEL:
      if not classes:
        raise UserError(
          f"label {label} (config.sample.labels) is asked of a model that knows none (config.model.num_classes=0)."
        )
      raise UserError(
        f"label {label} (config.sample.labels) is not one of this model's {classes} classes, 0..{classes - 1}."
      )


def _check_needs(s: Any) -> None:
  """Raises UserError for a setting that would do nothing for want of another."""
  is_free = steering.is_guided(s) or steering.is_guided_by_hint(s)
  is_steered = is_free or steering.has_classifier(s)
  for key, needed, is_alone in (
    ("guidance_interval", "guidance", tuple(s.guidance_interval) != steering.ALWAYS and not is_steered),
    ("guidance_rescale", "guidance", s.guidance_rescale != 0 and not is_free),
    ("classifier_scale", "classifier", s.classifier_scale != 1 and not s.classifier),
    ("classifier_sees", "classifier", s.classifier_sees != "auto" and not s.classifier),
    ("mask", "image", s.mask and not s.image),
    ("strength", "image", s.strength != 1 and not s.image),
    ("repeats", "mask", s.repeats != 1 and not s.mask),
  ):
    if is_alone:
      raise UserError(f"config.sample.{key} is {s[key]!r}, which needs a --config.sample.{needed} too.")


def _check_variance(name: str, learn_sigma: bool) -> None:
  if name not in samplers.VARIANCES:
    raise UserError(
      f"unknown variance {name!r} of sampler 'ddpm'. Known: {', '.join(sorted(samplers.VARIANCES))}."
    )
  if name == "learned" and not learn_sigma:
    raise UserError(
      "ddpm(variance=learned) (config.sample.sampler) needs a model trained with config.model.learn_sigma=True. "
      "Use ddpm(variance=fixed_small) or fixed_large."
    )


def times(config: Any, schedule: NoiseSchedule) -> np.ndarray:
  """The times that config.sample visits: f64[steps + 1], fewer where it starts from an image (strength).

  Raises UserError for a grid that is unknown or has no such number of steps, and for a strength outside (0, 1].
  """
  s = config.sample
  grid = configuration.build(s.grid, samplers.GRIDS, "grid")
  try:
    every = samplers.time_grid(s.steps, grid, schedule)
  except ValueError as error:
    raise UserError(f"{error} (config.sample.grid={s.grid!r}, config.sample.steps={s.steps}).") from None
  try:
    return editing.last_part(every, s.strength) if s.image else every
  except ValueError:
    raise UserError(
      f"config.sample.strength is {s.strength:g}. Give a share of the steps above 0 and up to 1."
    ) from None


def make_draw(config: Any, task: Task, place: Callable[[PyTree], PyTree]) -> Draw:
  """The function draw(state, index, label, record=False) that draws a batch of images as config.sample says.

  record=True returns the whole path.
  Shapes: index: u32[B], label: i32[B], on the host; returns u8[B,H,W,C], on the host (recorded u8[steps+1,B,H,W,C]).
  Of several processes that share the state's devices each gives all rows, and gets all images.
  Raises UserError for a task that draws no images, and for an image or mask that cannot be read.
  """
  s = config.sample
  schedule = process.build_schedule(config.diffusion)
  name, words, _ = _sampler(s)
  visited = times(config, schedule)
  given = _given_image(config)
  # What is to be painted over shines through a noise that is not all noise, as at the first time of some grids.
  starts_from_image = "image" in given and not ("mask" in given and s.strength == 1)
  shape = (config.data.image_size, config.data.image_size, config.data.channels)
  steer, asked = steering.make(config, schedule), control.make(config)

  denoiser = task.denoiser
  if denoiser is None:
    raise UserError(f"the task {config.task!r} (config.task) draws no images.")

  def solve(params, state, key, rows, strengths, steered_by, numbers, given, record):
    denoise = steer.wrap(denoiser(params, state), steered_by)
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)), out_axes=1)(rows["index"])
    noise = samplers.noise_like(keys[0], jnp.zeros((keys.shape[1], *shape)))
    sampler = samplers.SAMPLERS[name](**words, **numbers)
    if "mask" in given:
      sampler = editing.inpaint(sampler, given["image"], given["mask"], s.repeats)
    z = schedules.start(schedule, noise, visited[0])
    if starts_from_image:
      z = schedules.add_noise(schedule, given["image"], noise, jnp.float32(visited[0]))
    solver = samplers.path if record else samplers.sample
    cond = asked.cond(rows["label"], rows["hint"], strengths, params)
    return pixels.to_uint8(solver(sampler, schedule, denoise, keys[1], z, visited, cond))

  solve = jax.jit(solve, static_argnames="record")

  def draw(state: Any, index: np.ndarray, label: np.ndarray, record: bool = False) -> np.ndarray:
    params = asked.params(state, optim.ema_params(state) if s.ema else state.params)
    rows = place(
      {"index": index.astype(np.uint32), "label": label.astype(np.int32), "hint": asked.rows(index)}
    )
    numbers = _sampler(s)[2]
    key = jax.random.key(s.seed)
    drawn = solve(params, state, key, rows, asked.strengths(), steer.values(), numbers, given, record)
    return distributed.to_host(drawn)

  return draw


def _sampler(s: Any) -> tuple[str, dict[str, str], dict[str, float]]:
  """(name, words, numbers) of config.sample.sampler: words are compiled in, numbers are not."""
  name, arguments = configuration.parse_call(s.sampler, samplers.SAMPLERS, "sampler")
  words = {key: value for key, value in arguments.items() if isinstance(value, str)}
  return name, words, {key: value for key, value in arguments.items() if key not in words}


def _given_image(config: Any) -> dict[str, jax.Array]:
  """What config.sample starts from: {} or {"image": f32[1,H,W,C] in [-1, 1], "mask": f32[1,H,W,1] of 0 and 1}."""
  s = config.sample
  given: dict[str, jax.Array] = {}
  if s.image:
    image, mask = files.read_image(s.image, s.mask, config.data)
    given["image"] = pixels.to_signed(jnp.asarray(image[None]))
    if mask is not None:
      given["mask"] = jnp.asarray(mask[None], jnp.float32)
  return given
