"""Samplers: from noise to an image in a number of steps, whatever the network, its conditioning and guidance.

A sampler sees `denoise(z, t, cond) -> Prediction` and a schedule; one step goes from time t to any s < t.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.diffusion import schedules
from jaxdiff.types import Array, Cond, Denoiser, NoiseSchedule, PyTree, Sampler


def ddpm() -> Sampler:
  """Ancestral sampling: z_s ~ q(z_s | z_t, x_hat), variance beta-tilde ("fixed small").

  Stochastic.  The last step (s = 0) has variance 0 and returns the mean.  Source: Ho et al. 2020, algorithm 2 and eq. 7.
  """

  def step(key, z, carry, t, s, cond, denoise, schedule):  # types: see Sampler
    prediction = denoise(z, _times(t, z), cond)
    mean, variance = schedules.posterior(schedule, prediction.x, z, t, s)
    return mean + jnp.sqrt(jnp.maximum(variance, 0)) * noise_like(key, z), carry

  return Sampler(init=_no_carry, step=step)


def ddim(eta: float | Array = 0.0) -> Sampler:
  """z_s = alpha_s x_hat + sqrt(sigma_s^2 - eta^2 beta-tilde) eps_hat + eta sqrt(beta-tilde) noise.

  eta = 0 is deterministic; eta = 1 is `ddpm`.  First order.  Source: Song et al. 2021, eq. 12 and 16 (their sigma_t
  is eta sqrt(beta-tilde), their alpha_t our alpha_t^2).
  """

  def step(key, z, carry, t, s, cond, denoise, schedule):
    prediction = denoise(z, _times(t, z), cond)
    alpha_s, sigma_s = schedules.alpha_sigma(schedule, s, z.ndim)
    _, variance = schedules.posterior(schedule, prediction.x, z, t, s)
    added = eta**2 * jnp.maximum(variance, 0)
    kept = jnp.sqrt(jnp.maximum(sigma_s**2 - added, 0))
    z_s = alpha_s * prediction.x + kept * prediction.eps
    return jax.lax.cond(eta == 0, lambda: z_s, lambda: z_s + jnp.sqrt(added) * noise_like(key, z)), carry

  return Sampler(init=_no_carry, step=step)


SAMPLERS: dict[str, Callable[..., Sampler]] = {"ddpm": ddpm, "ddim": ddim}


def uniform_grid(num_steps: int) -> np.ndarray:
  """f64[N+1]: times evenly spaced from 1 down to 0."""
  return np.linspace(1.0, 0.0, num_steps + 1)


GRIDS: dict[str, Callable[[int], np.ndarray]] = {"uniform": uniform_grid}


def time_grid(num_steps: int, kind: str = "uniform") -> np.ndarray:
  """The times a sampler visits: f64[num_steps + 1], from 1 down to 0.  Raises KeyError for an unknown kind."""
  return GRIDS[kind](num_steps)


def sample(
  sampler: Sampler,
  schedule: NoiseSchedule,
  denoise: Denoiser,
  key: Array,
  z: Array,
  times: np.ndarray | Array,
  cond: Cond,
) -> Array:
  """Solves the reverse process from z at times[0] to times[-1]: one `lax.scan`, one compilation per grid length.

  Shapes: z: f32[B,H,W,C]; times: [N+1], decreasing; key: one typed key, or one for each example ([B]; then an image
  does not depend on the batch it is drawn in).  Returns f32[B,H,W,C].
  """
  return _solve(sampler, schedule, denoise, key, z, times, cond, keep=lambda z: None)[0]


def path(
  sampler: Sampler,
  schedule: NoiseSchedule,
  denoise: Denoiser,
  key: Array,
  z: Array,
  times: np.ndarray | Array,
  cond: Cond,
) -> Array:
  """As `sample`, but returns where z has been at each of the times: f32[N+1,B,H,W,C], from z itself to the result."""
  _, visited = _solve(sampler, schedule, denoise, key, z, times, cond, keep=lambda z: z)
  return jnp.concatenate([z[None], visited])


def _solve(sampler, schedule, denoise, key, z, times, cond, keep):
  times = jnp.asarray(times, jnp.float32)

  def body(loop, now):
    z, carry = loop
    i, t, s = now
    z, carry = sampler.step(_fold_in(key, i), z, carry, t, s, cond, denoise, schedule)
    return (z, carry), keep(z)

  steps = (jnp.arange(times.size - 1), times[:-1], times[1:])
  (last, _), kept = jax.lax.scan(body, (z, sampler.init(z)), steps)
  return last, kept


def noise_like(key: Array, z: Array) -> Array:
  """N(0, I) of z's shape, from one key or from one key for each example (key: [] or [B])."""
  if key.ndim == 0:
    return jax.random.normal(key, z.shape, z.dtype)
  return jax.vmap(lambda k: jax.random.normal(k, z.shape[1:], z.dtype))(key)


def _fold_in(key: Array, i: Array) -> Array:
  return jax.random.fold_in(key, i) if key.ndim == 0 else jax.vmap(lambda k: jax.random.fold_in(k, i))(key)


def _times(t: Array, z: Array) -> Array:
  return jnp.full(z.shape[:1], t, jnp.float32)


def _no_carry(z: Array) -> PyTree:
  del z
  return ()
