"""Samplers: from noise to an image in a number of steps, whatever the network, its conditioning and guidance.

A sampler sees `denoise(z, t, cond) -> Prediction` and a schedule; one step goes from time t to any s < t.  The methods
themselves are in first_order and higher_order, the times they visit in grids; this module names and runs them.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.diffusion.first_order import VARIANCES, ddim, ddim_inverse, ddpm, euler, euler_ancestral
from jaxdiff.diffusion.grids import GRIDS, time_grid
from jaxdiff.diffusion.higher_order import dpmpp_1, dpmpp_2m, dpmpp_3m, dpmpp_sde_2m, heun, unipc
from jaxdiff.diffusion.noise import fold_in, noise_like
from jaxdiff.types import Array, Cond, Denoiser, NoiseSchedule, Sampler

__all__ = [
  "GRIDS",
  "SAMPLERS",
  "VARIANCES",
  "ddim",
  "ddim_inverse",
  "ddpm",
  "dpmpp_1",
  "dpmpp_2m",
  "dpmpp_3m",
  "dpmpp_sde_2m",
  "euler",
  "euler_ancestral",
  "heun",
  "noise_like",
  "path",
  "sample",
  "time_grid",
  "unipc",
]

SAMPLERS: dict[str, Callable[..., Sampler]] = {
  "ddpm": ddpm,
  "ddim": ddim,
  "euler": euler,
  "euler_ancestral": euler_ancestral,
  "heun": heun,
  "dpmpp_1": dpmpp_1,
  "dpmpp_2m": dpmpp_2m,
  "dpmpp_3m": dpmpp_3m,
  "dpmpp_sde_2m": dpmpp_sde_2m,
  "unipc": unipc,
}


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
  does not depend on the batch it is drawn in).  Returns [B,H,W,C] of z's dtype; it computes in float32 at least.
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
  """As `sample`, but returns where z has been at each of the times: [N+1,B,H,W,C], from z itself to the result."""
  _, visited = _solve(sampler, schedule, denoise, key, z, times, cond, keep=lambda z: z)
  return jnp.concatenate([z[None], visited])


def _solve(sampler, schedule, denoise, key, z, times, cond, keep):
  dtype, exact = z.dtype, jnp.promote_types(z.dtype, jnp.float32)
  z, times = z.astype(exact), jnp.asarray(times, exact)

  def body(loop, now):
    z, carry = loop
    i, t, s = now
    z, carry = sampler.step(fold_in(key, i), z, carry, t, s, cond, denoise, schedule)
    return (z.astype(exact), carry), keep(z.astype(dtype))

  steps = (jnp.arange(times.size - 1), times[:-1], times[1:])
  (last, _), kept = jax.lax.scan(body, (z, sampler.init(z)), steps)
  return last.astype(dtype), kept
