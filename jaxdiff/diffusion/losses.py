"""Training losses: where along t a network is trained, and how much its errors weigh there."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdiff.diffusion import schedules
from jaxdiff.types import Array, NoiseSchedule, Parameterization

Weighting = Callable[[Array], Array]  # SNR -> the weight of |x error|^2
TimeDensity = Callable[[Array, Array], Array]  # (key, index u32[B]) -> t f32[B]


def uniform_x() -> Weighting:
  """1: plain squared error of x."""
  return lambda snr: jnp.ones_like(snr)


def uniform_eps() -> Weighting:
  """SNR: plain squared error of eps, DDPM's L_simple.  Source: Ho et al. 2020, eq. 14."""
  return lambda snr: snr


def uniform_v() -> Weighting:
  """SNR + 1: plain squared error of v.  Source: Salimans & Ho 2022, section 4 ("SNR+1 weighting")."""
  return lambda snr: snr + 1


def truncated_snr() -> Weighting:
  """max(SNR, 1): eps error at low noise, x error at high noise.  Source: Salimans & Ho 2022, section 4."""
  return lambda snr: jnp.maximum(snr, 1)


def min_snr(gamma: float = 5.0) -> Weighting:
  """min(SNR, gamma): as eps error, but bounded where there is hardly any noise.  Source: Hang et al. 2023, eq. 8."""
  return lambda snr: jnp.minimum(snr, gamma)


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
  "uniform_x": uniform_x,
  "uniform_eps": uniform_eps,
  "uniform_v": uniform_v,
  "truncated_snr": truncated_snr,
  "min_snr": min_snr,
}


def uniform() -> TimeDensity:
  """t ~ U(0, 1]."""
  return lambda key, index: 1 - per_example(jax.random.uniform, key, index)


def uniform_discrete(num_steps: int = 1000) -> TimeDensity:
  """t uniform over {1/T, 2/T, ..., 1}, the points of a T-step table.  Source: Ho et al. 2020, algorithm 1."""

  def draw(key: Array) -> Array:
    return (jax.random.randint(key, (), 0, num_steps) + 1) / num_steps

  return lambda key, index: per_example(draw, key, index)


TIME_DENSITIES: dict[str, Callable[..., TimeDensity]] = {
  "uniform": uniform,
  "uniform_discrete": uniform_discrete,
}


def per_example(draw: Callable[[Array], Array], key: Array, index: Array) -> Array:
  """One draw for each example from fold_in(key, index): what an example gets depends on its index alone.

  The run is then the same on any number of devices.  Shapes: index: u32[B]; returns [B, ...] of what draw returns.
  """
  return jax.vmap(lambda i: draw(jax.random.fold_in(key, i)))(index)


def denoising(
  network: Callable[[Array, Array], Array],
  schedule: NoiseSchedule,
  parameterization: Parameterization,
  weighting: Weighting,
  x: Array,
  t: Array,
  eps: Array,
) -> Array:
  """w(SNR_t) |x_hat(z_t, t) - x|^2, the mean over an image's values, for z_t = alpha_t x + sigma_t eps.

  Computed as w / k |out - target|^2 with k the parameterization's error_scale, which is the same number without
  dividing small errors by small alphas or sigmas.

  Shapes: x, eps: f32[B,H,W,C]; t: f32[B] in (0, 1]; network: (z, model time f32[B]) -> f32[B,H,W,C].
  Returns f32[B].  Source: Salimans & Ho 2022, eq. 9 and section 4.
  """
  alpha, sigma = schedules.alpha_sigma(schedule, t, x.ndim)
  z = alpha * x + sigma * eps
  out = network(parameterization.encode(z, alpha, sigma), schedule.model_time(t))
  error = out.astype(jnp.float32) - parameterization.target(x, eps, alpha, sigma)
  weight = weighting((alpha / sigma) ** 2) / parameterization.error_scale(alpha, sigma)
  return jnp.mean(weight * error**2, axis=tuple(range(1, x.ndim)))
