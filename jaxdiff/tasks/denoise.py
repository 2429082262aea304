"""The task of a diffusion model: predict the clean image (or the noise, or v) from a noised one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

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
  Parameterization,
  Prediction,
  PyTree,
  Task,
  TrainState,
)


class Network(NamedTuple):
  """A denoising network and how it is taught: what differs between the tasks that learn to denoise."""

  # (params, state, z, t, cond, train=False, rngs=None) -> out, f32[B,H,W,C or 2C]; t is the model time
  apply: Callable[..., Array]
  # (batch, key) -> what its examples are conditioned on in training
  condition: Callable[[Batch, Array], Cond]


def make(config: Any, tx: optax.GradientTransformation) -> Task:
  """The denoising task of a config (its sections `model` and `diffusion`), trained by tx.

  Raises UserError for an unknown name and for parts of a process that do not fit together.
  """
  module = build_network(config)

  def init(key: Array, batch: Batch) -> TrainState:
    params_key, run_key = jax.random.split(key)
    params = module.init(params_key, *example(batch))["params"]
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params), rng=run_key)

  def apply(params: PyTree, state: TrainState, *inputs: Any, **settings: Any) -> Array:
    del state
    return module.apply({"params": params}, *inputs, **settings)

  def condition(batch: Batch, key: Array) -> Cond:
    return Cond(drop_labels(batch["label"], config.diffusion.label_dropout, key, batch["index"]))

  return from_network(config, init, Network(apply, condition))


def build_network(config: Any) -> nn.Module:
  """The network of config.model, with as many outputs as config.diffusion.parameterization reads.  Raises UserError."""
  return models.build(config.model).clone(outputs=processes.build(config.diffusion).reading.outputs)


def from_network(config: Any, init: Callable[[Array, Batch], Any], network: Network) -> Task:
  """The task of teaching a network to denoise, as config.diffusion says."""
  diffusion, process = config.diffusion, processes.build(config.diffusion)
  schedule, reading = process.schedule, process.reading
  vlb_steps = processes.table_steps(diffusion) if config.model.learn_sigma else 0

  def loss(params: PyTree, state: Any, batch: Batch, key: Array) -> tuple[Array, Metrics]:
    """The mean of losses.denoising over the batch, each example with its own noise, time and label dropout.

    A network that predicts a variance learns it from the variational bound, which leaves the mean alone: L_hybrid =
    L_simple + vlb_weight L_vlb, Nichol & Dhariwal 2021, eq. 16.
    """
    time_key, noise_key, label_key, dropout_key = jax.random.split(key, 4)
    x, t, eps, z = processes.noised(schedule, process.draw_time, batch, time_key, noise_key)
    cond = network.condition(batch, label_key)
    rngs = processes.dropout_rngs(dropout_key, batch["index"])

    alpha, sigma = schedules.alpha_sigma(schedule, t, x.ndim)
    seen = reading.encode(z, alpha, sigma)
    told = network.apply(params, state, seen, schedule.model_time(t), cond, train=True, rngs=rngs)
    out, log_var = interpret(reading, told, z, alpha, sigma)
    simple = jnp.mean(losses.denoising(out, schedule, reading, process.weighting, x, t, eps))
    if log_var is None:
      return simple, {}
    prediction = reading.decode(jax.lax.stop_gradient(out), z, alpha, sigma)._replace(log_var=log_var)
    bound = jnp.mean(likelihood.random_step(schedule, prediction, x, z, t, vlb_steps))
    return simple + diffusion.vlb_weight * bound, {"simple": simple, "vlb": bound}

  def denoiser(params: PyTree, state: Any) -> Denoiser:
    return read(functools.partial(network.apply, params, state), process)

  return Task(init=init, loss=loss, denoiser=denoiser, advance=lambda state: state)


def read(network: Callable[[Array, Array, Cond], Array], process: processes.Process) -> Denoiser:
  """What a trained network says of a noised image: decode(network(encode(z), model time, cond)), in float32."""
  schedule, reading = process.schedule, process.reading

  def denoise(z: Array, t: Array, cond: Cond) -> Prediction:
    alpha, sigma = schedules.alpha_sigma(schedule, t, z.ndim)
    told = network(reading.encode(z, alpha, sigma), schedule.model_time(t), cond)
    out, log_var = interpret(reading, told, z, alpha, sigma)
    return reading.decode(out, z, alpha, sigma)._replace(log_var=log_var)

  return denoise


def example(batch: Batch) -> tuple[Array, Array, Cond]:
  """(z, t, cond) of a batch's first example, to initialise a network with."""
  cond = Cond(batch["label"][:1], pixels.to_unit(batch["hint"][:1]) if "hint" in batch else None)
  return pixels.to_signed(batch["image"])[:1], jnp.zeros((1,)), cond


def interpret(
  reading: Parameterization, told: Array, z: Array, alpha: Array, sigma: Array
) -> tuple[Array, Array | None]:
  """Splits a network's output into what is compared with reading.target, and where a learned variance lies, (v + 1) / 2, or None.

  Shapes: told: [B,H,W,outputs C], or C channels more; z: f32[B,H,W,C].  Returns (f32[B,H,W,C], f32[B,H,W,C] or None).
  Source: Nichol & Dhariwal 2021, eq. 15 (their v in [0, 1]; the network's range is [-1, 1], as in their code).
  """
  images, variance = jnp.split(told.astype(jnp.float32), [reading.outputs * z.shape[-1]], axis=-1)
  out = reading.combine(images, z, alpha, sigma)
  return out, (variance + 1) / 2 if variance.shape[-1] else None


def drop_labels(label: Array, rate: float, key: Array, index: Array) -> Array:
  """Each label becomes NULL_LABEL with probability rate, so that one network learns p(x | label) and p(x).

  Shapes: label: i32[B]; index: u32[B]; which examples are dropped depends on key and index alone.
  Source: Ho & Salimans 2022, algorithm 1 (rate is p_uncond).
  """
  dropped = losses.per_example(lambda k: jax.random.bernoulli(k, rate), key, index)
  return jnp.where(dropped, NULL_LABEL, label)
