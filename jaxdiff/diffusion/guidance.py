"""Wrappers from Denoiser to Denoiser: samplers, models and wrappers know nothing of each other."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxdiff.diffusion import schedules
from jaxdiff.types import NULL_LABEL, Array, Cond, Denoiser, NoiseSchedule, Prediction


def classifier_free(denoise: Denoiser, scale: float | Array, null_label: int = NULL_LABEL) -> Denoiser:
  """Classifier-free guidance: prediction = scale * conditional + (1 - scale) * unconditional.

  scale 1 is the conditional prediction and 0 the unconditional one, bit for bit; above 1 it extrapolates away from
  what any label would give.  Both predictions are linear in the network's eps, so x and eps are combined alike.
  The two evaluations are one call on 2B examples, interleaved, so that a batch sharded over devices stays where it is.

  Shapes: scale: f32[] (may be traced).  The hint, if any, is kept in both.
  Source: Ho & Salimans 2022, eq. 6, with scale = 1 + w.
  """

  def guided(z: Array, t: Array, cond: Cond) -> Prediction:
    def twice(a: Array) -> Array:
      return jnp.repeat(a, 2, axis=0)

    label = jnp.stack([cond.label, jnp.full_like(cond.label, null_label)], axis=1).reshape(-1)
    both = denoise(twice(z), twice(t), jax.tree.map(twice, cond).replace(label=label))
    return jax.tree.map(lambda a: scale * a[0::2] + (1 - scale) * a[1::2], both)

  return guided


def clip_x(denoise: Denoiser, schedule: NoiseSchedule, limit: float = 1.0) -> Denoiser:
  """Clips the predicted x to [-limit, limit], the range of images, and moves eps to match: eps = (z - alpha x) / sigma.

  Source: Ho et al. 2020 (their code's `clip_denoised`).
  """

  def clipped(z: Array, t: Array, cond: Cond) -> Prediction:
    alpha, sigma = schedules.alpha_sigma(schedule, t, z.ndim)
    prediction = denoise(z, t, cond)
    x = jnp.clip(prediction.x, -limit, limit)
    # Written as a correction: where nothing was clipped, eps stays bit-equal and sigma = 0 divides nothing.
    correction = jnp.where(x == prediction.x, 0.0, alpha * (prediction.x - x) / jnp.maximum(sigma, 1e-12))
    return prediction._replace(x=x, eps=prediction.eps + correction)

  return clipped
