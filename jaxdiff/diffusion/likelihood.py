"""The variational bound on -log p(x): how many bits a value of an image costs under the model.

  -log2 p(x) <= prior + sum over steps of KL(q(z_s | z_t, x) || p(z_s | z_t)) + decoder        (Ho et al. 2020, eq. 5)

in bits per dimension: divided by the number of values of an image and by log 2. Images are bytes brought to [-1, 1], so
a value is a bin of width 2/255; the decoder's term is the probability of that bin, and the bound is on bytes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.diffusion import schedules
from jaxdiff.diffusion.first_order import VARIANCES, LogVariance, batch_time, fixed_clipped, learned
from jaxdiff.diffusion.noise import fold_in, noise_like
from jaxdiff.types import Array, Cond, Denoiser, NoiseSchedule, Prediction

HALF_BIN = 1 / 255


class Bound(NamedTuple):
  """The terms of the bound, in bits per dimension."""

  prior: Array  # f32[B]
  steps: Array  # f32[N-1,B], from the noisiest on
  decoder: Array  # f32[B]

  @property
  def total(self) -> Array:
    """f32[B]"""
    return self.prior + self.steps.sum(axis=0) + self.decoder


def bound(
  schedule: NoiseSchedule,
  denoise: Denoiser,
  key: Array,
  x: Array,
  times: np.ndarray | Array,
  cond: Cond,
  variance: str = "fixed_small",
) -> Bound:
  """All terms of the bound for the steps of a grid, each at one draw of z_t ~ q(z_t | x).

  Shapes: x: f32[B,H,W,C] in [-1, 1]; times: [N+1], from 1 down to 0; key: one, or one for each image.  variance: a key of
  VARIANCES; fixed_small takes the step before for the decoder's.  Source: Ho et al. 2020, eq. 5; Nichol & Dhariwal 2021.
  """
  times = jnp.asarray(times, jnp.float32)

  def term(_: None, now: tuple[Array, Array, Array]) -> tuple[None, Array]:
    i, t, s = now
    z = schedules.add_noise(schedule, x, noise_like(fold_in(key, i), x), t)
    prediction = denoise(z, batch_time(t, z), cond)
    return None, step(schedule, prediction, x, z, t, s, VARIANCES[variance])

  _, terms = jax.lax.scan(term, None, (jnp.arange(times.size - 1), times[:-1], times[1:]))
  return Bound(prior(schedule, x, times[0]), terms[:-1], terms[-1])


def prior(schedule: NoiseSchedule, x: Array, t: Array) -> Array:
  """KL(q(z_t | x) || N(0, (alpha_t^2 + sigma_t^2) I)): what is left of x in the noise that sampling starts from.

  The variance is 1 for VP schedules.  Shapes: x: f32[B,H,W,C]; t: f32[].  Returns f32[B], bits per dimension.
  Source: Ho et al. 2020, L_T of eq. 5.
  """
  alpha, sigma = schedules.alpha_sigma(schedule, t, x.ndim)
  log_variance = 2 * jnp.log(sigma)
  return bits(gaussian_kl(alpha * x, log_variance, 0.0, jnp.log(alpha**2 + sigma**2)))


def step(
  schedule: NoiseSchedule,
  prediction: Prediction,
  x: Array,
  z: Array,
  t: Array,
  s: Array,
  log_variance: LogVariance,
) -> Array:
  """KL(q(z_s | z_t, x) || p(z_s | z_t)); for s = 0 the decoder's -log p(x | z_t).

  p(z_s | z_t) = N(mean of q(z_s | z_t, x_hat), exp log_variance).
  Shapes: x, z: f32[B,H,W,C]; t, s: f32[B] or f32[].  Returns f32[B], bits per dimension.
  Source: Ho et al. 2020, L_{t-1} of eq. 5 and L_0 of eq. 13.
  """
  t, s = schedules.match(t, x.ndim), schedules.match(s, x.ndim)
  is_decoder = s <= 0
  mean, _ = schedules.posterior(schedule, x, z, t, s)
  mean_hat, _ = schedules.posterior(schedule, prediction.x, z, t, s)
  true_log_variance = fixed_clipped(schedule, prediction, t, s)
  model_log_variance = log_variance(schedule, prediction, t, s)
  if log_variance is not learned:  # fixed rules say nothing of the decoder
    model_log_variance = jnp.where(is_decoder, true_log_variance, model_log_variance)
  kl = gaussian_kl(mean, true_log_variance, mean_hat, model_log_variance)
  decoder = -discretized_log_prob(x, mean_hat, model_log_variance)
  return bits(jnp.where(is_decoder, decoder, kl))


def random_step(
  schedule: NoiseSchedule, prediction: Prediction, x: Array, z: Array, t: Array, num_steps: int
) -> Array:
  """T times the term of the step t -> t - 1/T with a learned variance: its mean over t is the bound without its prior.

  Shapes: x, z: f32[B,H,W,C]; t: f32[B] uniform in {1/T, ..., 1} (losses.uniform_discrete(T)).  Returns f32[B], bits per dimension.
  Source: Nichol & Dhariwal 2021, eq. 4 and section 3.1.
  """
  s = jnp.where(t < 1.5 / num_steps, 0.0, t - 1 / num_steps)
  return num_steps * step(schedule, prediction, x, z, t, s, learned)


def gaussian_kl(mean: Array, log_variance: Array, mean_2: Array | float, log_variance_2: Array) -> Array:
  """KL(N(mean, e^log_variance) || N(mean_2, e^log_variance_2)), value by value, in nats."""
  ratio = log_variance - log_variance_2
  return 0.5 * (jnp.expm1(ratio) - ratio + (mean - mean_2) ** 2 * jnp.exp(-log_variance_2))


def discretized_log_prob(x: Array, mean: Array, log_variance: Array) -> Array:
  """log of the mass that N(mean, e^log_variance) puts in the bin of x, [x - 1/255, x + 1/255], in nats.

  The outermost bins reach to infinity.  Shapes: x: f32[...] in {-1, -1 + 2/255, ..., 1}.
  Source: Ho et al. 2020, eq. 13.
  """
  rate = jnp.exp(-0.5 * log_variance)
  upper, lower = (x - mean + HALF_BIN) * rate, (x - mean - HALF_BIN) * rate
  upper, lower = jnp.where(x > 1 - HALF_BIN, jnp.inf, upper), jnp.where(x < -1 + HALF_BIN, -jnp.inf, lower)
  # By symmetry both ends on the left, where log_ndtr has all its digits: log(e^a - e^b), a > b.
  swap = lower > 0
  right, left = jnp.where(swap, -lower, upper), jnp.where(swap, -upper, lower)
  a, b = jax.scipy.special.log_ndtr(right), jax.scipy.special.log_ndtr(left)
  return a + jnp.log(-jnp.expm1(jnp.minimum(b - a, -1e-7)))


def bits(nats: Array) -> Array:
  """The mean over an image's values, in bits: f32[B,...] -> f32[B]."""
  return nats.mean(axis=tuple(range(1, nats.ndim))) / math.log(2)
