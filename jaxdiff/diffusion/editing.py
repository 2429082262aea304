"""From an image instead of from noise: image-to-image, inpainting, inversion. Small functions around any sampler."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.diffusion import samplers, schedules
from jaxdiff.diffusion.first_order import no_carry
from jaxdiff.diffusion.noise import fold_in, noise_like
from jaxdiff.types import Array, Cond, Denoiser, NoiseSchedule, Sampler


def last_part(times: np.ndarray, strength: float) -> np.ndarray:
  """The last steps of a grid, `strength` of them: where image-to-image starts.  strength in (0, 1]; 1 is all of it.

  At least one step.  Raises ValueError for a strength outside (0, 1].  Source: Meng et al. 2022 (SDEdit), section 3.
  """
  if not 0 < strength <= 1:
    raise ValueError(f"strength {strength} is not in (0, 1]")
  steps = max(1, round(strength * (len(times) - 1)))
  return times[len(times) - 1 - steps :]


def image_to_image(
  sampler: Sampler,
  schedule: NoiseSchedule,
  denoise: Denoiser,
  key: Array,
  image: Array,
  times: np.ndarray | Array,
  cond: Cond,
) -> Array:
  """SDEdit: noise the image to times[0], then sample from there; the less noise, the more of the image stays.

  Shapes: image: f32[B,H,W,C] in [-1, 1]; times: see last_part.  Returns f32[B,H,W,C].
  Source: Meng et al. 2022, algorithm 1.
  """
  eps = noise_like(fold_in(key, 0), image)
  z = schedules.add_noise(schedule, image, eps, jnp.asarray(times, jnp.float32)[0])
  return samplers.sample(sampler, schedule, denoise, fold_in(key, 1), z, times, cond)


def inpaint(sampler: Sampler, image: Array, mask: Array, repeats: int = 1) -> Sampler:
  """A sampler that paints only where mask is 1, in harmony with the rest: RePaint.

  After each step the rest of z_s is drawn from q(z_s | image) (at s = 0: the image itself).  With repeats > 1 each step is
  taken that often, going back between by z_t ~ q(z_t | z_s), so that the new part can answer to the old one.
  What a multistep sampler remembers is of another image then, so each step starts without: these become of first order.

  Shapes: image: f32[B or 1,H,W,C] in [-1, 1]; mask: f32[B or 1,H,W,1] in {0, 1}.
  Source: Lugmayr et al. 2022, eq. 8 and algorithm 1 (mask there is 1 where the image is known; jumps of length 1).
  """

  def step(key, z, carry, t, s, cond, denoise, schedule):
    def once(i: Array, z: Array) -> Array:
      keys = [fold_in(fold_in(key, i), k) for k in range(3)]
      z = jnp.where(i == 0, z, _forward(schedule, z, t, s, noise_like(keys[0], z)))
      z_s, _ = sampler.step(keys[1], z, sampler.init(z), t, s, cond, denoise, schedule)
      known = schedules.add_noise(schedule, image, noise_like(keys[2], z), s)
      known = jnp.where(s <= 0, image, known)
      return jnp.where(mask > 0, z_s, known).astype(z.dtype)

    return jax.lax.fori_loop(0, repeats, once, z), carry

  return Sampler(init=no_carry, step=step)


def _forward(schedule: NoiseSchedule, z_s: Array, t: Array, s: Array, noise: Array) -> Array:
  """A draw of q(z_t | z_s): alpha_t / alpha_s z_s + sigma_ts noise."""
  std = jnp.sqrt(schedules.forward_variance(schedule, t, s, z_s.ndim))
  return schedule.alpha(t) / schedule.alpha(s) * z_s + std * noise


def invert(
  schedule: NoiseSchedule,
  denoise: Denoiser,
  x: Array,
  times: np.ndarray | Array,
  cond: Cond,
  iterations: int = 3,
) -> Array:
  """The noise from which DDIM (eta = 0) draws x on this grid: DDIM's steps solved backwards.

  Shapes: x: f32[B,H,W,C]; times: [N+1], falling, as DDIM's.  Returns z at times[0], f32[B,H,W,C].
  Source: Song et al. 2021a, section 5.4; see first_order.ddim_inverse.
  """
  inverse, key = samplers.ddim_inverse(iterations), jax.random.key(0)  # the inverse draws nothing
  return samplers.sample(inverse, schedule, denoise, key, x, jnp.asarray(times)[::-1], cond)
