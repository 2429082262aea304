"""Noise schedules: how much signal alpha_t and noise sigma_t a noised image z_t holds at time t.

  q(z_t | x) = N(alpha_t x, sigma_t^2 I),  t in [0, 1],  log-SNR = log(alpha_t^2 / sigma_t^2), falling in t.

Three families: variance preserving (VP), alpha^2 + sigma^2 = 1; rectified flow, alpha + sigma = 1; and variance exploding
(VE, `edm`), alpha = 1. `zero_terminal_snr` and `shifted` make another schedule of one. A table of T discrete steps (DDPM) is a
function of continuous time too: t = (i + 1) / T is step i, and log-SNR is linear between the table's points.

Every function of t is element-wise; NumPy in gives NumPy float64 out, a JAX array in gives float32 out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.types import Array, NoiseSchedule


def linear(num_steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> NoiseSchedule:
  """DDPM's schedule: beta_i linear from beta_min to beta_max, alpha_i^2 = prod_{j<=i} (1 - beta_j).

  The betas are given for 1000 steps and scaled by 1000 / num_steps, so that the noise at the end is the same
  for any num_steps. Source: Ho et al. 2020, section 4; the scaling: Nichol & Dhariwal 2021 (their code).
  """
  scale = 1000 / num_steps
  return _from_betas(np.linspace(scale * beta_min, scale * beta_max, num_steps))


def scaled_linear(num_steps: int = 1000, beta_min: float = 0.00085, beta_max: float = 0.012) -> NoiseSchedule:
  """Latent diffusion's schedule: sqrt(beta_i) linear. Betas scale with num_steps as in `linear`.

  Source: Rombach et al. 2022, appendix; the values of their 1000-step models.
  """
  scale = 1000 / num_steps
  return _from_betas(np.linspace((scale * beta_min) ** 0.5, (scale * beta_max) ** 0.5, num_steps) ** 2)


def cosine_discrete(num_steps: int = 1000, offset: float = 0.008, beta_max: float = 0.999) -> NoiseSchedule:
  """The cosine table: alpha_bar(u) = cos^2(pi/2 (u + s) / (1 + s)), beta_i = 1 - alpha_bar(u_{i+1}) / alpha_bar(u_i).

  u_i = i / num_steps, s = offset; betas are clipped at beta_max. Source: Nichol & Dhariwal 2021, eq. 17.
  """
  u = np.arange(num_steps + 1) / num_steps
  alpha_bar = np.cos(np.pi / 2 * (u + offset) / (1 + offset)) ** 2
  return _from_betas(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], beta_max))


def cosine(log_snr_min: float = -20.0, log_snr_max: float = 20.0) -> NoiseSchedule:
  """The continuous cosine schedule: alpha_t = cos(a t + b), log-SNR = -2 log tan(a t + b).

  a and b put log-SNR at log_snr_max for t = 0 and at log_snr_min for t = 1; with +-20, sigma_0 = alpha_1 = 4.5e-5.
  The network is told 1000 t. Source: Salimans & Ho 2022, section 4 and appendix D (their code's `logsnr_schedule`).
  """
  b = np.arctan(np.exp(-log_snr_max / 2))
  end = np.arctan(np.exp(-log_snr_min / 2))
  a = end - b
  # cos(a t + b) written as a sine that is small where alpha is: near t = 1 a float32 cosine has no digits left.
  rest = np.pi / 2 - end
  return NoiseSchedule(
    alpha=lambda t: _xp(t).sin(a * (1 - t) + rest),
    sigma=lambda t: _xp(t).sin(a * t + b),
    model_time=_thousand,
  )


def sigmoid(start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> NoiseSchedule:
  """alpha_t^2 a sigmoid in t, rescaled to run from 1 at t = 0 to 0 (floor 1e-9) at t = 1.

  With f the logistic function and u_t = (start + t (end - start)) / tau,
  alpha_t^2 = (f(u_1) - f(u_t)) / (f(u_1) - f(u_0)), and sigma_t^2 = 1 - alpha_t^2.
  Source: Jabri et al. 2022, algorithm 1 (`gamma` is alpha^2); values of Chen 2023, section 2.
  """
  low, high = start / tau, end / tau
  span = 1 / (1 + np.exp(-high)) - 1 / (1 + np.exp(-low))

  # f(b) - f(u) = sinh((b - u) / 2) / (2 cosh(b / 2) cosh(u / 2)): the differences without losing digits at either end.
  def gone(t: Any, fixed: float, share: Any) -> Any:
    xp = _xp(t)
    u = low + t * (high - low)
    return xp.sinh((high - low) * share / 2) / (2 * np.cosh(fixed / 2) * xp.cosh(u / 2) * span)

  return NoiseSchedule(
    alpha=lambda t: _xp(t).sqrt(_xp(t).clip(gone(t, high, 1 - t), 1e-9, 1.0)),
    sigma=lambda t: _xp(t).sqrt(_xp(t).clip(gone(t, low, t), 0.0, 1 - 1e-9)),
    model_time=_thousand,
  )


def rectified_flow() -> NoiseSchedule:
  """alpha_t = 1 - t, sigma_t = t: the straight path. The network is told 1000 t.

  All noise at t = 1, so `eps` says nothing there: `velocity` is its parameterization.
  Source: Liu et al. 2022a, eq. 1, with time reversed (their t = 1 is data).
  """
  return NoiseSchedule(alpha=lambda t: 1 - t, sigma=lambda t: 1 * t, model_time=_thousand)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> NoiseSchedule:
  """Variance exploding: alpha_t = 1, sigma_t from sigma_min to sigma_max.  The network is told log(sigma) / 4.

  sigma^(1/rho) is linear in t from t = 0.001 to 1, so Karras et al.'s grid is evenly spaced here too (grids.karras); before,
  sigma is linear, to 0 at t = 0.  Train with the time density edm_log_normal.
  Source: Karras et al. 2022, table 1 (c_noise) and eq. 5.
  """
  first, low, high = 1e-3, sigma_min ** (1 / rho), sigma_max ** (1 / rho)

  def sigma(t: Any) -> Any:
    above = (low + _xp(t).maximum(t - first, 0) / (1 - first) * (high - low)) ** rho
    return _xp(t).where(t < first, sigma_min / first * t, above)

  return NoiseSchedule(
    alpha=lambda t: 0 * t + 1.0,
    sigma=sigma,
    model_time=lambda t: _xp(t).log(_xp(t).maximum(sigma(t), 1e-12)) / 4,
  )


SCHEDULES: dict[str, Callable[..., NoiseSchedule]] = {
  "linear": linear,
  "scaled_linear": scaled_linear,
  "cosine_discrete": cosine_discrete,
  "cosine": cosine,
  "sigmoid": sigmoid,
  "rectified_flow": rectified_flow,
  "edm": edm,
}


def zero_terminal_snr(schedule: NoiseSchedule) -> NoiseSchedule:
  """A VP schedule moved and stretched so that nothing of x is left at the end: alpha_1 = 0, alpha_0 as it was.

  alpha'_t = (alpha_t - alpha_1) alpha_0 / (alpha_0 - alpha_1).  What a network sees at t = 1 is then what it starts from
  when it draws. eps says nothing of x there, so train with v or x.
  Raises ValueError for a schedule that is not VP.  Source: Lin et al. 2023, algorithm 1 (which keeps alpha at the table's
  first step; we at t = 0).
  """
  if not _is_family(schedule, lambda alpha, sigma: alpha**2 + sigma**2):
    raise ValueError("zero terminal SNR is defined for variance-preserving schedules")
  first, last = (float(schedule.alpha(np.float64(t))) for t in (0.0, 1.0))
  stretch = first / (first - last)

  def alpha(t: Any) -> Any:
    return _xp(t).where(t >= 1, 0.0, _xp(t).maximum(schedule.alpha(t) - last, 0.0) * stretch)

  def sigma(t: Any) -> Any:
    # 1 - alpha' = (1 - first) + stretch (first - alpha), and first - alpha from the sigmas: no digits are lost near t = 0.
    first_variance = schedule.sigma(np.float64(0.0)) ** 2
    gone = (schedule.sigma(t) ** 2 - first_variance) / (schedule.alpha(t) + first)
    rest = first_variance / (1 + first) + stretch * gone
    return _xp(t).sqrt(_xp(t).maximum(rest, 0.0) * (1 + alpha(t)))

  return NoiseSchedule(alpha, sigma, schedule.model_time)


def shifted(schedule: NoiseSchedule, shift: float) -> NoiseSchedule:
  """The schedule with `shift` times the noise for the same signal: log-SNR'(t) = log-SNR(t) - 2 log(shift).

  Averaging over neighbours hides more noise in larger images, so they need more of it; with `shift` = the ratio of the
  image's side to the one the schedule was made for, the coarse picture is hidden alike.  A VP schedule stays VP; a flow
  stays a flow, its noise becoming shift t / (1 + (shift - 1) t), and its network is told 1000 times that.
  Raises ValueError for other families (for `edm`, choose sigma_max).
  Source: Hoogeboom et al. 2023, section 3.1; for flows Esser et al. 2024, eq. 23.
  """
  if not shift > 0:
    raise ValueError(f"the shift is a factor of the noise and must be above 0, not {shift}")
  is_flow = _is_family(schedule, lambda alpha, sigma: alpha + sigma)
  if not is_flow and not _is_family(schedule, lambda alpha, sigma: alpha**2 + sigma**2):
    raise ValueError("a shift is defined for variance-preserving schedules and for flows")

  def norm(t: Any) -> Any:
    alpha, sigma = schedule.alpha(t), shift * schedule.sigma(t)
    return alpha + sigma if is_flow else _xp(t).sqrt(alpha**2 + sigma**2)

  def sigma(t: Any) -> Any:
    return shift * schedule.sigma(t) / norm(t)

  return NoiseSchedule(
    alpha=lambda t: schedule.alpha(t) / norm(t),
    sigma=sigma,
    model_time=(lambda t: _thousand(sigma(t))) if is_flow else schedule.model_time,
  )


def _is_family(schedule: NoiseSchedule, one: Callable[[Any, Any], Any]) -> bool:
  t = np.linspace(0.0, 1.0, 11)
  return bool(np.allclose(one(schedule.alpha(t), schedule.sigma(t)), 1, atol=1e-9))


def noise_ratio(schedule: NoiseSchedule, t: Any) -> Any:
  """sigma_t / alpha_t, the noise level of z_t / alpha_t: EDM's sigma.  Infinite where alpha_t = 0."""
  return schedule.sigma(t) / schedule.alpha(t)


def time_of_log_snr(schedule: NoiseSchedule, log_snr: Any) -> Any:
  """The inverse of schedule.log_snr: t in [0, 1], by bisection; beyond the schedule's range its nearer end.

  NumPy in, float64 out, to the last digits; a JAX array in, float32 out, within 4e-7.
  """
  xp = _xp(log_snr)
  low = xp.zeros_like(log_snr, _dtype(log_snr))
  high = xp.ones_like(low)

  def halve(_: Any, ends: tuple[Any, Any]) -> tuple[Any, Any]:
    low, high = ends
    middle = (low + high) / 2
    is_cleaner = schedule.log_snr(middle) > log_snr
    return xp.where(is_cleaner, middle, low), xp.where(is_cleaner, high, middle)

  if xp is jnp:
    low, high = jax.lax.fori_loop(0, 30, halve, (low, high))
  else:
    with np.errstate(divide="ignore"):
      # A few dozen halvings where t is not tiny, 1100 for the smallest that float64 holds.
      for i in range(1100):
        if np.all(high - low <= np.spacing(high)):
          break
        low, high = halve(i, (low, high))
  return (low + high) / 2


def match(values: Array, ndim: int = 4) -> Array:
  """One value for each image, with axes of size 1 behind, to multiply images. f32[B] or f32[] -> f32[B,1,1,1]."""
  return values.reshape(values.shape + (1,) * (ndim - values.ndim))


def alpha_sigma(schedule: NoiseSchedule, t: Array, ndim: int = 4) -> tuple[Array, Array]:
  """alpha_t and sigma_t, to multiply images. t: f32[B] or f32[]; returns f32[B,1,1,1]."""
  t = match(t, ndim)
  return schedule.alpha(t), schedule.sigma(t)


def add_noise(schedule: NoiseSchedule, x: Array, eps: Array, t: Array) -> Array:
  """A draw of q(z_t | x): z_t = alpha_t x + sigma_t eps for eps ~ N(0, I).

  Shapes: x, eps: f32[B,H,W,C]; t: f32[B] or f32[].  Source: Ho et al. 2020, eq. 4.
  """
  alpha, sigma = alpha_sigma(schedule, t, x.ndim)
  return alpha * x + sigma * eps


def start(schedule: NoiseSchedule, noise: Array, t: float) -> Array:
  """Where sampling starts at time t: noise of the size that z_t has for data of variance 1, sqrt(alpha_t^2 + sigma_t^2).

  1 for VP schedules, about sigma_max for `edm`.  Shapes: noise: f32[B,H,W,C].  Returns f32[B,H,W,C].
  Source: Ho et al. 2020, algorithm 2.
  """
  return np.float32(np.hypot(schedule.alpha(np.float64(t)), schedule.sigma(np.float64(t)))) * noise


def posterior(schedule: NoiseSchedule, x: Array, z: Array, t: Array, s: Array) -> tuple[Array, Array]:
  """q(z_s | z_t, x), the distribution of a less noisy z_s given z_t and the clean x.

  Mean     (alpha_ts sigma_s^2 z_t + alpha_s sigma_ts^2 x) / sigma_t^2
  Variance sigma_ts^2 sigma_s^2 / sigma_t^2,   alpha_ts = alpha_t / alpha_s,  sigma_ts^2 = sigma_t^2 - alpha_ts^2 sigma_s^2

  Shapes: x, z: f32[B,H,W,C]; t, s: f32[B] or f32[] in [0, 1], s < t.  Returns (mean f32[B,H,W,C], variance f32[B,1,1,1]).
  Source: Ho et al. 2020, eq. 6 and 7, for any stride: Kingma et al. 2021, eq. 25. (DDPM's beta_t is sigma_ts^2 at stride 1.)
  """
  alpha_t, sigma_t = alpha_sigma(schedule, t, z.ndim)
  alpha_s, sigma_s = alpha_sigma(schedule, s, z.ndim)
  variance_ts = forward_variance(schedule, t, s, z.ndim)
  mean = (alpha_t / alpha_s * sigma_s**2 * z + alpha_s * variance_ts * x) / sigma_t**2
  return mean, posterior_variance(schedule, t, s, z.ndim)


def forward_variance(schedule: NoiseSchedule, t: Array, s: Array, ndim: int = 4) -> Array:
  """sigma_ts^2 = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2, the variance of q(z_t | z_s): DDPM's beta_t at stride 1.

  Shapes: t, s: f32[B] or f32[], s < t.  Returns f32[B,1,1,1].  Source: Kingma et al. 2021, appendix A.
  """
  alpha_t, sigma_t = alpha_sigma(schedule, t, ndim)
  alpha_s, sigma_s = alpha_sigma(schedule, s, ndim)
  return _xp(sigma_t).maximum(sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2, 0)


def posterior_variance(schedule: NoiseSchedule, t: Array, s: Array, ndim: int = 4) -> Array:
  """beta-tilde = sigma_ts^2 sigma_s^2 / sigma_t^2, the variance of q(z_s | z_t, x).

  Shapes: t, s: f32[B] or f32[], s < t.  Returns f32[B,1,1,1].  Source: Ho et al. 2020, eq. 7.
  """
  sigma_t, sigma_s = alpha_sigma(schedule, t, ndim)[1], alpha_sigma(schedule, s, ndim)[1]
  return forward_variance(schedule, t, s, ndim) * (sigma_s / sigma_t) ** 2


def _xp(t: Any) -> Any:
  return jnp if isinstance(t, jax.Array) else np


def _dtype(t: Any) -> Any:
  return t.dtype if isinstance(t, jax.Array) else np.float64


def _thousand(t: Any) -> Any:
  """Continuous time as DDPM's step count, the range that sinusoidal embeddings were made for."""
  return 1000 * t


def _from_betas(betas: np.ndarray) -> NoiseSchedule:
  """The schedule of a table beta_1..beta_T: alpha_bar_i = prod_{j<=i} (1 - beta_j) at t = i / T.

  Below the first point log-SNR has no finite end; there sigma^2 is linear in t, from 0 at t = 0: finite for t > 0,
  monotone, and clean data at t = 0.
  """
  num_steps = len(betas)
  if num_steps < 2 or not ((betas > 0) & (betas < 1)).all():
    raise ValueError("a table needs 2 steps or more, and each of its betas between 0 and 1")
  alpha_bar = np.cumprod(1 - betas)
  table = np.log(alpha_bar) - np.log1p(-alpha_bar)
  first_variance = 1 - alpha_bar[0]

  def step(t: Any) -> Any:
    """The (fractional) step index t T - 1; exactly a whole number where t is a point of the table, up to rounding."""
    xp = _xp(t)
    position = t * num_steps - 1
    nearest = xp.round(position)
    rounding = 2 * num_steps * xp.finfo(_dtype(t)).eps
    return xp.where(xp.abs(position - nearest) < rounding, nearest, position)

  def log_snr(t: Any) -> Any:
    xp = _xp(t)
    points = xp.asarray(table, _dtype(t))
    position = step(t)
    low = xp.clip(xp.floor(position), 0, num_steps - 2).astype(np.int32)
    share = position - low
    inside = (1 - share) * points[low] + share * points[low + 1]
    variance = first_variance * t * num_steps
    with np.errstate(divide="ignore", invalid="ignore"):
      below = xp.log1p(-variance) - xp.log(variance)
    return xp.where(position < 0, below, inside)

  # sqrt(sigmoid(+-log-SNR)), exact to the last digits at both ends.
  return NoiseSchedule(
    alpha=lambda t: _xp(t).exp(-0.5 * _xp(t).logaddexp(0, -log_snr(t))),
    sigma=lambda t: _xp(t).exp(-0.5 * _xp(t).logaddexp(0, log_snr(t))),
    model_time=step,
  )
