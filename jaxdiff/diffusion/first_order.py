"""Samplers that look at one prediction: DDPM, DDIM and, in other coordinates, Euler's method.

Each is a step from z_t to z_s for any s < t (see types.Sampler): t and s are f32[], z is f32[B,H,W,C].
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdiff.diffusion import schedules
from jaxdiff.diffusion.noise import noise_like
from jaxdiff.types import Array, NoiseSchedule, Prediction, PyTree, Sampler

# (schedule, prediction, t, s) -> log variance of p(z_s | z_t)
LogVariance = Callable[[NoiseSchedule, Prediction, Array, Array], Array]


def fixed_small(schedule: NoiseSchedule, prediction: Prediction, t: Array, s: Array) -> Array:
  """log beta-tilde, the variance of q(z_s | z_t, x): right for data without spread.  -inf at s = 0.

  Source: Ho et al. 2020, section 3.2, the second choice.
  """
  return jnp.log(schedules.posterior_variance(schedule, t, s, prediction.x.ndim))


def fixed_large(schedule: NoiseSchedule, prediction: Prediction, t: Array, s: Array) -> Array:
  """log sigma_ts^2 (DDPM's beta), the variance of q(z_t | z_s): right for data that is noise.

  Source: Ho et al. 2020, section 3.2, the first choice.
  """
  return jnp.log(schedules.forward_variance(schedule, t, s, prediction.x.ndim))


def fixed_clipped(schedule: NoiseSchedule, prediction: Prediction, t: Array, s: Array) -> Array:
  """As fixed_small, but finite at s = 0, where beta-tilde is 0: that of the step before, from 2t to t, stands in.

  After t = 1/2, where 2t is beyond the end, that from 1 to 1/2.  Source: Nichol & Dhariwal 2021, section 3.1.
  """
  is_last = s <= 0
  late = jnp.where(is_last, jnp.minimum(2 * t, 1), t)
  early = jnp.where(is_last, late / 2, s)
  return fixed_small(schedule, prediction, late, early)


def learned(schedule: NoiseSchedule, prediction: Prediction, t: Array, s: Array) -> Array:
  """f log sigma_ts^2 + (1 - f) log beta-tilde, with the network's f (Prediction.log_var); finite at s = 0.

  Raises ValueError where the network predicts no variance.  Source: Nichol & Dhariwal 2021, eq. 15 and section 3.1.
  """
  f = prediction.log_var
  if f is None:
    raise ValueError("this network predicts no variance (config.model.learn_sigma=False)")
  low = fixed_clipped(schedule, prediction, t, s)
  return f * fixed_large(schedule, prediction, t, s) + (1 - f) * low


VARIANCES: dict[str, LogVariance] = {
  "fixed_small": fixed_small,
  "fixed_large": fixed_large,
  "learned": learned,
}


def ddpm(variance: str = "fixed_small") -> Sampler:
  """Ancestral sampling: z_s ~ p(z_s | z_t) = N(mean of q(z_s | z_t, x_hat), variance).

  variance: a key of VARIANCES.  Stochastic.  The last step (s = 0) adds no noise and returns the mean.
  Source: Ho et al. 2020, algorithm 2 and eq. 7.
  """
  log_variance = VARIANCES[variance]

  def step(key, z, carry, t, s, cond, denoise, schedule):  # types: see Sampler
    prediction = denoise(z, batch_time(t, z), cond)
    mean, _ = schedules.posterior(schedule, prediction.x, z, t, s)
    std = jnp.where(s <= 0, 0.0, jnp.exp(0.5 * log_variance(schedule, prediction, t, s)))
    return mean + std * noise_like(key, z), carry

  return Sampler(init=no_carry, step=step)


def ddim(eta: float | Array = 0.0) -> Sampler:
  """z_s = alpha_s x_hat + sqrt(sigma_s^2 - eta^2 beta-tilde) eps_hat + eta sqrt(beta-tilde) noise.

  eta = 0 is deterministic; eta = 1 is `ddpm`.  First order.  The last step (s = 0) adds no noise.
  Raises ValueError for an eta outside [0, 1] (not where it is traced).
  Source: Song et al. 2021a (DDIM, arXiv 2010.02502), eq. 12 and 16 (their sigma_t is eta sqrt(beta-tilde), their alpha_t our
  alpha_t^2).
  """
  if not isinstance(eta, jax.Array) and not 0 <= eta <= 1:
    raise ValueError(f"eta {eta} is not in [0, 1]")

  def step(key, z, carry, t, s, cond, denoise, schedule):
    prediction = denoise(z, batch_time(t, z), cond)
    alpha_t, sigma_t = schedules.alpha_sigma(schedule, t, z.ndim)
    alpha_s, sigma_s = schedules.alpha_sigma(schedule, s, z.ndim)
    added = eta**2 * schedules.posterior_variance(schedule, t, s, z.ndim)
    # sigma_s^2 - added without losing digits: sigma_s^2 - beta-tilde = (alpha_t sigma_s^2 / (alpha_s sigma_t))^2.
    rest = eta * alpha_t / alpha_s * sigma_s**2 / sigma_t
    kept = jnp.sqrt(jnp.maximum((1 - eta**2) * sigma_s**2 + rest**2, 0))
    z_s = alpha_s * prediction.x + kept * prediction.eps
    is_exact = (eta == 0) | (s <= 0)
    return jax.lax.cond(is_exact, lambda: z_s, lambda: z_s + jnp.sqrt(added) * noise_like(key, z)), carry

  return Sampler(init=no_carry, step=step)


def euler() -> Sampler:
  """Euler's method on d(z / alpha) / d(sigma / alpha) = eps, the probability flow: DDIM with eta = 0, term by term.

  On rectified flow it is Euler's method on dz/dt = eps - x too.  Deterministic, first order.
  Source: Karras et al. 2022, eq. 4 and algorithm 1 without its correction; the identity: Song et al. 2021a, section 4.3.
  """
  return ddim(0.0)


def euler_ancestral(eta: float | Array = 1.0) -> Sampler:
  """An Euler step to a lower noise level, then noise up to sigma_s: DDIM with this eta, so DDPM at eta = 1.

  With sigma for sigma / alpha: up^2 = eta^2 sigma_s^2 (sigma_t^2 - sigma_s^2) / sigma_t^2, down^2 = sigma_s^2 - up^2; down
  and up are DDIM's two coefficients over alpha_s.  Stochastic.  Source: k-diffusion's sample_euler_ancestral.
  """
  return ddim(eta)


def ddim_inverse(iterations: int = 1) -> Sampler:
  """DDIM backwards, from z_t to a noisier z_s: image -> the noise from which `ddim` draws it.  Needs rising times.

  Solves z_t = (DDIM step of z_s) for z_s = alpha_s (z_t - sigma_t eps_hat(z_s, s)) / alpha_t + sigma_s eps_hat(z_s, s) by
  fixed-point iteration from z_t: one iteration is the usual inversion, several make it exact.
  Deterministic.  Source: Song et al. 2021a, eq. 13 and section 5.4; the iteration: Pan et al. 2023.
  """

  def step(key, z, carry, t, s, cond, denoise, schedule):
    del key
    alpha_t, sigma_t = schedules.alpha_sigma(schedule, t, z.ndim)
    alpha_s, sigma_s = schedules.alpha_sigma(schedule, s, z.ndim)

    def improve(_: int, guess: Array) -> Array:
      eps = denoise(guess, batch_time(s, z), cond).eps
      return alpha_s * (z - sigma_t * eps) / alpha_t + sigma_s * eps

    return jax.lax.fori_loop(0, iterations, improve, z), carry

  return Sampler(init=no_carry, step=step)


def batch_time(t: Array, z: Array) -> Array:
  """The same time for each image of a batch: [B]."""
  return jnp.full(z.shape[:1], t)


def no_carry(z: Array) -> PyTree:
  """The carry of a sampler that remembers nothing."""
  del z
  return ()
