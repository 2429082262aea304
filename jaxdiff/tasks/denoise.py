"""The task of a diffusion model: predict the clean image (or the noise, or v) from a noised one."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxdiff import configuration, models
from jaxdiff.data import pixels
from jaxdiff.diffusion import losses, parameterization, schedules
from jaxdiff.errors import UserError
from jaxdiff.types import (
  NULL_LABEL,
  Array,
  Batch,
  Cond,
  Denoiser,
  Metrics,
  Prediction,
  PyTree,
  Task,
  TrainState,
)


def make(config: Any, tx: optax.GradientTransformation) -> Task:
  """The denoising task of a config (its sections `model` and `diffusion`), trained by tx.

  Raises UserError for an unknown name, and for a network that predicts a variance, which has no loss here.
  """
  if config.model.learn_sigma:
    raise UserError(
      "a learned variance (config.model.learn_sigma=True) has no training loss here. Use False."
    )
  module = models.build(config.model)
  diffusion = config.diffusion
  schedule = configuration.build(diffusion.schedule, schedules.SCHEDULES, "schedule")
  reading = configuration.build(
    diffusion.parameterization, parameterization.PARAMETERIZATIONS, "parameterization"
  )
  weighting = configuration.build(diffusion.weighting, losses.WEIGHTINGS, "weighting")
  draw_time = configuration.build(diffusion.time_density, losses.TIME_DENSITIES, "time density")

  def init(key: Array, batch: Batch) -> TrainState:
    params_key, run_key = jax.random.split(key)
    x = pixels.to_signed(batch["image"])[:1]
    params = module.init(params_key, x, jnp.zeros((1,)), Cond(batch["label"][:1]))["params"]
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params), rng=run_key)

  def loss(params: PyTree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Metrics]:
    """The mean of losses.denoising over the batch, each example with its own noise, time and label dropout."""
    del state
    time_key, noise_key, label_key, dropout_key = jax.random.split(key, 4)
    index = batch["index"]
    x = pixels.to_signed(batch["image"])
    t = draw_time(time_key, index)
    eps = losses.per_example(lambda k: jax.random.normal(k, x.shape[1:]), noise_key, index)
    cond = Cond(drop_labels(batch["label"], diffusion.label_dropout, label_key, index))
    # Dropout masks cover a whole batch; the first index keeps the shards of a pmap from sharing one.
    rngs = {"dropout": jax.random.fold_in(dropout_key, index[0])}

    def network(z: Array, model_time: Array) -> Array:
      return module.apply({"params": params}, z, model_time, cond, train=True, rngs=rngs)

    return jnp.mean(losses.denoising(network, schedule, reading, weighting, x, t, eps)), {}

  def denoiser(params: PyTree, state: TrainState) -> Denoiser:
    del state
    return make_denoiser(module, params, schedule, reading)

  return Task(init=init, loss=loss, denoiser=denoiser, advance=lambda state: state)


def make_denoiser(
  module: nn.Module,
  params: PyTree,
  schedule: schedules.NoiseSchedule,
  reading: parameterization.Parameterization,
) -> Denoiser:
  """What a trained network says of a noised image: decode(network(encode(z), model time, cond)), in float32."""

  def denoise(z: Array, t: Array, cond: Cond) -> Prediction:
    alpha, sigma = schedules.alpha_sigma(schedule, t, z.ndim)
    out = module.apply({"params": params}, reading.encode(z, alpha, sigma), schedule.model_time(t), cond)
    return reading.decode(out.astype(jnp.float32), z, alpha, sigma)

  return denoise


def drop_labels(label: Array, rate: float, key: Array, index: Array) -> Array:
  """Each label becomes NULL_LABEL with probability rate, so that one network learns p(x | label) and p(x).

  Shapes: label: i32[B]; index: u32[B]; which examples are dropped depends on key and index alone.
  Source: Ho & Salimans 2022, algorithm 1 (rate is p_uncond).
  """
  dropped = losses.per_example(lambda k: jax.random.bernoulli(k, rate), key, index)
  return jnp.where(dropped, NULL_LABEL, label)
