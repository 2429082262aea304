"""The diffusion process that a config's section `diffusion` describes: what every task noises by and learns from."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdiff import configuration
from jaxdiff.data import pixels
from jaxdiff.diffusion import losses, parameterization, schedules
from jaxdiff.errors import UserError
from jaxdiff.types import Array, Batch, NoiseSchedule, Parameterization


class Process(NamedTuple):
  """How images are noised, what a network says of them, and how it is taught."""

  schedule: NoiseSchedule
  reading: Parameterization
  weighting: losses.Weighting
  draw_time: losses.TimeDensity


def build(diffusion: Any) -> Process:
  """The process of config.diffusion.  Raises UserError for an unknown name and for parts that do not fit together."""
  schedule = build_schedule(diffusion)
  reading = configuration.build(
    diffusion.parameterization, parameterization.PARAMETERIZATIONS, "parameterization"
  )
  name, _ = configuration.parse_call(
    diffusion.parameterization, parameterization.PARAMETERIZATIONS, "parameterization"
  )
  if name == "eps" and schedule.alpha(np.float64(1.0)) == 0:
    raise UserError(
      "the parameterization 'eps' (config.diffusion.parameterization) says nothing of the image where the schedule leaves "
      "only noise (zero terminal SNR, a flow). Use v, x or velocity."
    )
  weighting = configuration.build(diffusion.weighting, losses.WEIGHTINGS, "weighting")
  draw_time = build_time_density(diffusion)
  if is_clean(diffusion):
    raise UserError(
      "the time density 'clean' (config.diffusion.time_density) has no noise to predict; it is for classifiers. Use uniform."
    )
  return Process(schedule, reading, weighting, draw_time)


def build_time_density(diffusion: Any) -> losses.TimeDensity:
  """Where along t config.diffusion has a task learn.  Raises UserError for an unknown density."""
  return configuration.build(diffusion.time_density, losses.TIME_DENSITIES, "time density")


def is_clean(diffusion: Any) -> bool:
  """Whether config.diffusion has a task learn from images without noise alone."""
  return configuration.parse_call(diffusion.time_density, losses.TIME_DENSITIES, "time density")[0] == "clean"


class Noised(NamedTuple):
  """Images on their way to noise, z_t = alpha_t x + sigma_t eps.  Shapes: x, eps, z: f32[B,H,W,C]; t: f32[B]."""

  x: Array
  t: Array
  eps: Array
  z: Array


def noised(
  schedule: NoiseSchedule, draw_time: losses.TimeDensity, batch: Batch, time_key: Array, noise_key: Array
) -> Noised:
  """A batch at random times: t from draw_time, eps ~ N(0, I), each a function of its key and the example's index."""
  x = pixels.to_signed(batch["image"])
  t = draw_time(schedule, time_key, batch["index"])
  eps = losses.per_example(lambda key: jax.random.normal(key, x.shape[1:]), noise_key, batch["index"])
  return Noised(x, t, eps, schedules.add_noise(schedule, x, eps, t))


def dropout_rngs(key: Array, index: Array) -> dict[str, Array]:
  """The rngs of a network in training.  Dropout masks cover a whole batch, so that key and first index make them.

  The index keeps the shards of a pmap from sharing one.
  """
  return {"dropout": jax.random.fold_in(key, index[0])}


def table_steps(diffusion: Any) -> int:
  """T of the time density uniform_discrete, whose steps a learned variance is taught on.  Raises UserError for others."""
  density = diffusion.time_density
  name, arguments = configuration.parse_call(density, losses.TIME_DENSITIES, "time density")
  if name != "uniform_discrete":
    raise UserError(
      f"a learned variance (config.model.learn_sigma=True) is taught on the steps of a table, not with the time density "
      f"{density!r}. Use --config.diffusion.time_density=uniform_discrete."
    )
  return arguments.get("num_steps", 1000)


def build_schedule(diffusion: Any) -> NoiseSchedule:
  """The schedule of config.diffusion: shifted, then brought to zero terminal SNR, as the config says."""
  schedule = configuration.build(diffusion.schedule, schedules.SCHEDULES, "schedule")
  try:
    if diffusion.shift != 1:
      schedule = schedules.shifted(schedule, diffusion.shift)
    return schedules.zero_terminal_snr(schedule) if diffusion.zero_terminal_snr else schedule
  except ValueError as error:
    raise UserError(
      f"{error}; config.diffusion.schedule is {diffusion.schedule!r} (shift {diffusion.shift:g}, zero_terminal_snr "
      f"{diffusion.zero_terminal_snr}). Use linear, cosine or sigmoid."
    ) from None
