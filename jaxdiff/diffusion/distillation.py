"""Progressive distillation: what a student, which samples in N steps, learns from a teacher, which takes 2N.

The student's steps go along t = 1, (N-1)/N, ..., 1/N, 0; the teacher takes two DDIM steps where the student takes one.
Source: Salimans & Ho 2022 (arXiv 2202.00512), algorithm 2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxdiff.diffusion import losses, schedules
from jaxdiff.types import Array, Cond, Denoiser, NoiseSchedule


def draw_step(key: Array, index: Array, num_steps: Array) -> Array:
  """i ~ U{0, ..., N-1} for each example; the student's step goes from t = (i+1)/N to s = i/N.

  Shapes: index: u32[B]; num_steps: N, i32[], may be traced.  Returns i32[B], a function of key and index alone.
  """
  share = losses.per_example(jax.random.uniform, key, index)
  return jnp.minimum(jnp.floor(share * num_steps).astype(jnp.int32), num_steps - 1)


def target(
  schedule: NoiseSchedule, teacher: Denoiser, z: Array, i: Array, num_steps: Array, cond: Cond
) -> Array:
  """The x~ which, predicted at t, takes one DDIM step to where the teacher comes by two: x~ such that DDIM(z_t, x~, t -> s) = z_s.

    t = (i + 1) / N,  t' = t - 0.5 / N,  t'' = s = t - 1 / N = i / N
    z_t'  = alpha_t'  x(z_t)   + (sigma_t' / sigma_t)  (z_t  - alpha_t  x(z_t))
    z_t'' = alpha_t'' x(z_t')  + (sigma_t''/ sigma_t') (z_t' - alpha_t' x(z_t'))
    x~ = (z_t'' - (sigma_t''/sigma_t) z_t) / (alpha_t'' - (sigma_t''/sigma_t) alpha_t)

  In the last step, i = 0, x~ is the teacher's second x, which the formula gives too where sigma_0 = 0. Nothing is clipped.

  Shapes: z: f32[B,H,W,C], at t; i: i32[B]; num_steps: N, i32[], may be traced.  Returns f32[B,H,W,C].
  Source: Salimans & Ho 2022, algorithm 2 and appendix G.
  """
  # From i, not by subtracting: the end of the last step is exactly 0.
  t, mid, s = ((i + part) / num_steps for part in (1.0, 0.5, 0.0))
  alpha_t, sigma_t = schedules.alpha_sigma(schedule, t, z.ndim)
  alpha_mid, sigma_mid = schedules.alpha_sigma(schedule, mid, z.ndim)
  alpha_s, sigma_s = schedules.alpha_sigma(schedule, s, z.ndim)
  first = teacher(z, t, cond).x
  z_mid = alpha_mid * first + sigma_mid / sigma_t * (z - alpha_t * first)
  second = teacher(z_mid, mid, cond).x
  z_s = alpha_s * second + sigma_s / sigma_mid * (z_mid - alpha_mid * second)
  ratio = sigma_s / sigma_t
  solved = (z_s - ratio * z) / (alpha_s - ratio * alpha_t)
  return jnp.where(schedules.match(i, z.ndim) == 0, second, solved)
