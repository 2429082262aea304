"""The task of a diffusion model: predict the clean image (or the noise, or v) from a noised one."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxdiff import models
from jaxdiff.data import pixels
from jaxdiff.diffusion import likelihood, losses, schedules
from jaxdiff.tasks import process as processes
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

  Raises UserError for an unknown name and for parts of a process that do not fit together.
  """
  module = models.build(config.model)
  diffusion, process = config.diffusion, processes.build(config.diffusion)
  schedule, reading = process.schedule, process.reading
  vlb_steps = processes.table_steps(diffusion) if config.model.learn_sigma else 0

  def init(key: Array, batch: Batch) -> TrainState:
    params_key, run_key = jax.random.split(key)
    x = pixels.to_signed(batch["image"])[:1]
    params = module.init(params_key, x, jnp.zeros((1,)), Cond(batch["label"][:1]))["params"]
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params), rng=run_key)

  def loss(params: PyTree, state: TrainState, batch: Batch, key: Array) -> tuple[Array, Metrics]:
    """The mean of losses.denoising over the batch, each example with its own noise, time and label dropout.

    A network that predicts a variance learns it from the variational bound, which leaves the mean alone: L_hybrid =
    L_simple + vlb_weight L_vlb, Nichol & Dhariwal 2021, eq. 16.
    """
    del state
    time_key, noise_key, label_key, dropout_key = jax.random.split(key, 4)
    index = batch["index"]
    x, t, eps, z = processes.noised(schedule, process.draw_time, batch, time_key, noise_key)
    cond = Cond(drop_labels(batch["label"], diffusion.label_dropout, label_key, index))
    rngs = processes.dropout_rngs(dropout_key, index)

    alpha, sigma = schedules.alpha_sigma(schedule, t, x.ndim)
    seen = reading.encode(z, alpha, sigma)
    told = module.apply({"params": params}, seen, schedule.model_time(t), cond, train=True, rngs=rngs)
    out, log_var = split_variance(told.astype(jnp.float32), x.shape[-1])
    simple = jnp.mean(losses.denoising(out, schedule, reading, process.weighting, x, t, eps))
    if log_var is None:
      return simple, {}
    prediction = reading.decode(jax.lax.stop_gradient(out), z, alpha, sigma)._replace(log_var=log_var)
    bound = jnp.mean(likelihood.random_step(schedule, prediction, x, z, t, vlb_steps))
    return simple + diffusion.vlb_weight * bound, {"simple": simple, "vlb": bound}

  def denoiser(params: PyTree, state: TrainState) -> Denoiser:
    del state
    return make_denoiser(module, params, process)

  return Task(init=init, loss=loss, denoiser=denoiser, advance=lambda state: state)


def make_denoiser(module: nn.Module, params: PyTree, process: processes.Process) -> Denoiser:
  """What a trained network says of a noised image: decode(network(encode(z), model time, cond)), in float32."""
  schedule, reading = process.schedule, process.reading

  def denoise(z: Array, t: Array, cond: Cond) -> Prediction:
    alpha, sigma = schedules.alpha_sigma(schedule, t, z.ndim)
    told = module.apply({"params": params}, reading.encode(z, alpha, sigma), schedule.model_time(t), cond)
    out, log_var = split_variance(told.astype(jnp.float32), z.shape[-1])
    return reading.decode(out, z, alpha, sigma)._replace(log_var=log_var)

  return denoise


def split_variance(told: Array, channels: int) -> tuple[Array, Array | None]:
  """A network's output as the prediction and, with twice the channels, where its variance lies: (v + 1) / 2.

  Shapes: told: f32[B,H,W,C or 2C].  Returns (f32[B,H,W,C], f32[B,H,W,C] or None).
  Source: Nichol & Dhariwal 2021, eq. 15 (their v in [0, 1]; the network's range is [-1, 1], as in their code).
  """
  if told.shape[-1] == channels:
    return told, None
  out, variance = jnp.split(told, 2, axis=-1)
  return out, (variance + 1) / 2


def drop_labels(label: Array, rate: float, key: Array, index: Array) -> Array:
  """Each label becomes NULL_LABEL with probability rate, so that one network learns p(x | label) and p(x).

  Shapes: label: i32[B]; index: u32[B]; which examples are dropped depends on key and index alone.
  Source: Ho & Salimans 2022, algorithm 1 (rate is p_uncond).
  """
  dropped = losses.per_example(lambda k: jax.random.bernoulli(k, rate), key, index)
  return jnp.where(dropped, NULL_LABEL, label)
