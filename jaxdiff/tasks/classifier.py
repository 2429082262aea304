"""The task of a classifier of noised images: p(label | z_t, t), for classifier guidance; at t = 0, of images as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdiff import models
from jaxdiff.data import pixels
from jaxdiff.diffusion import schedules
from jaxdiff.errors import UserError
from jaxdiff.tasks import process as processes
from jaxdiff.types import (
  NULL_LABEL,
  Array,
  Batch,
  ClassifierState,
  Metrics,
  NoiseSchedule,
  PyTree,
  Task,
)

TOP = (1, 5)  # accuracies that are told: the share of labels that are among so many of the likeliest
# (params, z, t) -> log p(label | z_t) for all labels, f32[B,num_classes]
LogProbs = Callable[[PyTree, Array, Array], Array]
# (params, image u8[B,H,W,C]) -> (what the last linear layer reads f32[B,D], logits f32[B,num_classes])
Features = Callable[[PyTree, Array], tuple[Array, Array]]


def make(config: Any, tx: optax.GradientTransformation) -> Task:
  """The classifying task of a config, trained by tx.  Of `diffusion` it uses the schedule and the time density.

  Raises UserError for an unknown name and where there are no classes.
  """
  module = models.build(config.model, models.CLASSIFIERS)
  if config.model.num_classes < 2:
    raise UserError(
      f"a classifier needs classes to tell apart; config.model.num_classes is {config.model.num_classes}."
    )
  schedule = processes.build_schedule(config.diffusion)
  draw_time = processes.build_time_density(config.diffusion)

  def init(key: Array, batch: Batch) -> ClassifierState:
    params_key, run_key = jax.random.split(key)
    x = pixels.to_signed(batch["image"])[:1]
    params = module.init(params_key, x, jnp.zeros((1,)))["params"]
    return ClassifierState(
      step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params), rng=run_key
    )

  def loss(params: PyTree, state: ClassifierState, batch: Batch, key: Array) -> tuple[Array, Metrics]:
    """The cross-entropy E[-log p(label | z_t, t)] over the batch, each example with its own noise and time.

    Examples without label add nothing, and the mean is over all: the parts of a batch, on several devices or one after the
    other, add up to the whole.  Accuracy is that of a part's labelled examples.
    Source: Dhariwal & Nichol 2021, section 4 and appendix H.
    """
    del state
    time_key, noise_key, dropout_key = jax.random.split(key, 3)
    _, t, _, z = processes.noised(schedule, draw_time, batch, time_key, noise_key)
    rngs = processes.dropout_rngs(dropout_key, batch["index"])
    seen, told = unit_scale(z, schedule, t), schedule.model_time(t)
    logits = module.apply({"params": params}, seen, told, train=True, rngs=rngs)
    label, is_labelled = batch["label"], batch["label"] != NULL_LABEL
    share = is_labelled / jnp.maximum(jnp.sum(is_labelled), 1)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(is_labelled, label, 0))
    right = {f"top{k}": jnp.sum(share * is_among(logits, label, k)) for k in tops(logits.shape[-1])}
    return jnp.mean(is_labelled * cross_entropy), right

  return Task(init=init, loss=loss, denoiser=None, advance=lambda state: state)


def tops(num_classes: int) -> list[int]:
  """The k for which top-k accuracy says something of so many classes."""
  return [k for k in TOP if k < num_classes]


def is_among(log_probs: Array, label: Array, k: int) -> Array:
  """1 where the label is among the k likeliest, else 0; ties and NaN count against it.  Shapes: f32[...,K], i32[...] -> f32[...]."""
  own = jnp.take_along_axis(log_probs, label[..., None], axis=-1)
  rivals = jnp.sum(~(log_probs < own), axis=-1) - 1
  return (rivals < k).astype(jnp.float32)


def make_log_probs(config: Any, noised_by: NoiseSchedule | None = None) -> LogProbs:
  """What a trained classifier says of noised images, in float32.

  noised_by is the schedule of z and t where it is not the classifier's own.  z is then read at the time at which the
  classifier's schedule has the same ratio of signal to noise: with z's scale taken out, that ratio is all there is to t.
  """
  module = models.build(config.model, models.CLASSIFIERS)
  own = processes.build_schedule(config.diffusion)
  schedule = noised_by or own

  def log_probs(params: PyTree, z: Array, t: Array) -> Array:
    own_t = t if noised_by is None else schedules.time_of_log_snr(own, schedule.log_snr(t))
    logits = module.apply({"params": params}, unit_scale(z, schedule, t), own.model_time(own_t))
    return jax.nn.log_softmax(logits.astype(jnp.float32))

  return log_probs


def make_features(config: Any) -> Features:
  """What a trained classifier sees in images as they are, at t = 0: features and logits.

  Compiled as one function, the network is run once: all but the last layer is common to both.
  """
  module = models.build(config.model, models.CLASSIFIERS)
  schedule = processes.build_schedule(config.diffusion)

  def features(params: PyTree, image: Array) -> tuple[Array, Array]:
    x, t = pixels.to_signed(image), jnp.zeros((len(image),))
    seen, told = unit_scale(x, schedule, t), schedule.model_time(t)
    read = functools.partial(module.apply, {"params": params}, seen, told)
    return read(features=True), read(features=False)

  return features


def unit_scale(z: Array, schedule: NoiseSchedule, t: Array) -> Array:
  """z_t / (alpha_t^2 + sigma_t^2)^(1/2): z itself where variance is preserved; of EDM and flows brought to that scale."""
  alpha, sigma = schedules.alpha_sigma(schedule, t, z.ndim)
  return z / jnp.sqrt(alpha**2 + sigma**2)
