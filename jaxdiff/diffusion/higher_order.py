"""Samplers of second and third order: they look at a second prediction, or remember those of earlier steps.

With lambda = log(alpha / sigma), half of log-SNR, the probability flow from t to s is solved exactly but for x_hat:

  z_s = sigma_s / sigma_t z_t + sigma_s int_{lambda_t}^{lambda_s} e^lambda x_hat(lambda) d lambda     (Lu et al. 2022b, eq. 8)

A constant x_hat is DDIM.  DPM-Solver++ continues it as a line or a parabola through the last predictions.  Below,
h = lambda_s - lambda_t, and decay = sigma_s / sigma_t, gain = alpha_s (1 - e^-h) are the two coefficients of DDIM.
Lu et al. 2022b is DPM-Solver++, arXiv 2211.01095.  t and s are f32[], z is f32[B,H,W,C].

All but the SDE are deterministic: they ignore the key.  Where memory is missing (first steps), and on the last step, to
s = 0, where h has no end, the method of lower order steps in.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.diffusion import schedules
from jaxdiff.diffusion.first_order import batch_time, ddim, no_carry
from jaxdiff.diffusion.noise import noise_like
from jaxdiff.types import Array, NoiseSchedule, Sampler

UNBOUNDED = jnp.inf  # the size of a step that there has not been: differences over it vanish


def heun(sigma_max: float = 200.0) -> Sampler:
  """Euler's step, then again with the mean of the slopes eps_hat at both ends: two evaluations a step but the last.

  z_s = Euler's z_s + alpha_s (sigma_s/alpha_s - sigma_t/alpha_t) (eps_hat_s - eps_hat_t) / 2.
  Second order on a grid that is smooth in sigma / alpha.  Above sigma / alpha = sigma_max, where a schedule may run to
  infinity and a chord says nothing, it is Euler's step.  Source: Karras et al. 2022, algorithm 1.
  """

  def step(key, z, carry, t, s, cond, denoise, schedule):
    del key
    now = denoise(z, batch_time(t, z), cond)
    alpha_s, sigma_s = schedules.alpha_sigma(schedule, s, z.ndim)
    z_s = alpha_s * now.x + sigma_s * now.eps
    ratio = schedules.noise_ratio(schedule, t)

    def corrected() -> Array:
      after = denoise(z_s, batch_time(s, z), cond)
      return z_s + (sigma_s - alpha_s * ratio) * (after.eps - now.eps) / 2

    return jax.lax.cond((s > 0) & (ratio <= sigma_max), corrected, lambda: z_s), carry

  return Sampler(init=no_carry, step=step)


def dpmpp_1() -> Sampler:
  """DPM-Solver++ of first order: x_hat is constant over a step.  DDIM with eta = 0.  Source: Lu et al. 2022b, eq. 12."""
  return ddim(0.0)


class Stride(NamedTuple):
  """The coefficients of a step from t to s; each f32[] but is_last, bool[]."""

  decay: Array  # sigma_s / sigma_t
  gain: Array  # alpha_s (1 - e^-h) = alpha_s - sigma_s alpha_t / sigma_t
  alpha: Array  # alpha_s
  h: Array  # lambda_s - lambda_t; inf where sigma_s or alpha_t is 0
  is_last: Array  # s = 0

  def per(self, h_before: Array) -> Array:
    """h / h_before, the step over an earlier one; 0 on the last step and where there was none."""
    return jnp.where(self.is_last | jnp.isinf(h_before), 0.0, self.h / h_before)


def stride(schedule: NoiseSchedule, t: Array, s: Array) -> Stride:
  """The coefficients of the step from t to s, f32[] each.  Source: Lu et al. 2022b, eq. 8 and 12."""
  alpha_t, sigma_t, alpha_s, sigma_s = (
    schedule.alpha(t),
    schedule.sigma(t),
    schedule.alpha(s),
    schedule.sigma(s),
  )
  h = (schedule.log_snr(s) - schedule.log_snr(t)) / 2
  decay = sigma_s / sigma_t
  return Stride(decay, alpha_s - decay * alpha_t, alpha_s, h, s <= 0)


class Memory(NamedTuple):
  """The last predictions and the steps taken from them."""

  x: Array  # x_hat of one step ago, [B,H,W,C]
  h: Array  # the step taken then, UNBOUNDED if none
  x_before: Array  # of two steps ago
  h_before: Array

  def then(self, x: Array, h: Array) -> Memory:
    return Memory(x, h.astype(self.h.dtype), self.x, self.h)


def no_memory(z: Array) -> Memory:
  """Times are f32, or f64 with f64 images: steps take the dtype of z, which the solver has made f32 at least."""
  none = jnp.asarray(UNBOUNDED, z.dtype)
  return Memory(jnp.zeros_like(z), none, jnp.zeros_like(z), none)


def _second_order(take: Stride, z: Array, x: Array, memory: Memory) -> Array:
  """decay z + gain (x_hat + (x_hat - x_hat before) h / h_before / 2): the line's value at mid-step."""
  return take.decay * z + take.gain * (x + take.per(memory.h) / 2 * (x - memory.x))


def dpmpp_2m() -> Sampler:
  """DPM-Solver++(2M): x_hat as a line through the last two predictions.  Second order, one evaluation a step.

  Source: Lu et al. 2022b, algorithm 2; its "midpoint" form, as in k-diffusion.
  """

  def step(key, z, memory, t, s, cond, denoise, schedule):
    del key
    x = denoise(z, batch_time(t, z), cond).x
    take = stride(schedule, t, s)
    return _second_order(take, z, x, memory), memory.then(x, take.h)

  return Sampler(init=no_memory, step=step)


def dpmpp_3m() -> Sampler:
  """DPM-Solver++(3M): x_hat as a parabola through the last three predictions.  Third order after its first two steps.

  z_s = decay z + gain x_hat + alpha_s (phi_2 d_1 - 2 phi_3 d_2): the integral above for the parabola x_hat + d_1 u + d_2 u^2,
  u from 0 to 1 over the step, with phi_2 = 1 - (1 - e^-h) / h and phi_3 = (h - 1 + e^-h) / h^2 - 1/2.
  diffusers, k-diffusion and the authors' code lack the 2 (d_2 is half the second derivative) and are of second order.
  Source: Lu et al. 2022b, section 4.
  """

  def step(key, z, memory, t, s, cond, denoise, schedule):
    del key
    x = denoise(z, batch_time(t, z), cond).x
    take = stride(schedule, t, s)
    first = take.per(memory.h) * (x - memory.x)
    earlier = take.per(memory.h_before) * (memory.x - memory.x_before)
    span = memory.h + memory.h_before
    is_third = jnp.isfinite(span) & ~take.is_last
    bend = jnp.where(is_third, (first - earlier) / span, 0.0)
    h = jnp.where(jnp.isinf(take.h), 1.0, take.h)  # an infinite step uses no differences
    phi_2 = 1 + jnp.expm1(-h) / h
    phi_3 = phi_2 / h - 0.5
    slope = first + jnp.where(is_third, memory.h, 0.0) * bend
    z_s = take.decay * z + take.gain * x + take.alpha * (phi_2 * slope - 2 * phi_3 * h * bend)
    return z_s, memory.then(x, take.h)

  return Sampler(init=no_memory, step=step)


def dpmpp_sde_2m() -> Sampler:
  """SDE-DPM-Solver++(2M): the reverse SDE with x_hat as a line through the last two predictions.  Stochastic.

  z_s = e^-h decay z + alpha_s (1 - e^-2h) (x_hat + (x_hat - x_hat before) h / h_before / 2) + sigma_s sqrt(1 - e^-2h) noise.
  With a constant x_hat it is `ddpm`.  Source: Lu et al. 2022b, section 5 and appendix; "midpoint" as in k-diffusion.
  """

  def step(key, z, memory, t, s, cond, denoise, schedule):
    x = denoise(z, batch_time(t, z), cond).x
    take = stride(schedule, t, s)
    line = x + take.per(memory.h) / 2 * (x - memory.x)
    lost = -jnp.expm1(-2 * take.h)
    noise = jnp.where(take.is_last, 0.0, schedule.sigma(s) * jnp.sqrt(lost)) * noise_like(key, z)
    return jnp.exp(-take.h) * take.decay * z + take.alpha * lost * line + noise, memory.then(x, take.h)

  return Sampler(init=no_memory, step=step)


class Corrected(NamedTuple):
  """What UniPC remembers: Memory, and the point and time from which the last step was taken."""

  memory: Memory
  z: Array
  t: Array


def unipc() -> Sampler:
  """UniPC of second order (bh2, predicting x): dpmpp_2m's step, corrected once x_hat at its end is known.

  The corrector takes the same step again with x_hat at both ends and one before; it costs no evaluation, since the
  corrected z is not looked at again.  Third order on a smooth grid, after its first steps.
  Source: Zhao et al. 2023, algorithm 1 and 2 (B_2(h) = e^h - 1, written for x_hat).
  """

  def step(key, z, carry, t, s, cond, denoise, schedule):
    del key
    x = denoise(z, batch_time(t, z), cond).x
    z = _correct(schedule, carry, z, x, t)
    take = stride(schedule, t, s)
    z_s = _second_order(take, z, x, carry.memory)
    return z_s, Corrected(carry.memory.then(x, take.h), z, t)

  return Sampler(init=lambda z: Corrected(no_memory(z), z, jnp.ones((), z.dtype)), step=step)


def _correct(schedule: NoiseSchedule, carry: Corrected, z: Array, x: Array, t: Array) -> Array:
  """UniC: z_t again, now that x_hat at t is known; z itself where no step led here.

  z_t = decay z_p + gain (x_p + rho_1 D + rho_2 (x - x_p)), D = (x_pp - x_p) / r the earlier difference, and rho chosen
  to integrate a parabola (rho_2 = 1/2, a line, while there is no earlier one).
  """
  memory, taken = carry.memory, stride(schedule, carry.t, t)
  is_first, is_second = jnp.isinf(memory.h), jnp.isinf(memory.h_before)
  h = jnp.where(is_first, 1.0, memory.h)
  r = jnp.where(is_second, -1.0, -memory.h_before / h)
  # Integrals of 1 - e^.. against 1, lambda and lambda^2 (UniPC's h phi_k), over B = e^-h - 1.
  whole = jnp.expm1(-h)
  linear = -whole / h - 1
  square = -linear / h - 0.5
  b_1, b_2 = linear / whole, 2 * square / whole
  rho_1 = jnp.where(is_second, 0.0, (b_1 - b_2) / (1 - r))
  rho_2 = jnp.where(is_second, 0.5, b_1 - rho_1)
  line = memory.x + rho_1 / r * (memory.x_before - memory.x) + rho_2 * (x - memory.x)
  return jnp.where(is_first, z, taken.decay * carry.z + taken.gain * line)
