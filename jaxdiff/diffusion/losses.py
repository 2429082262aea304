"""Training losses: where along t a network is trained, and how much its errors weigh there."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdiff.diffusion import schedules
from jaxdiff.types import Array, NoiseSchedule, Parameterization

# (schedule, t f32[B]) -> the weight of |x error|^2, f32[B]
Weighting = Callable[[NoiseSchedule, Array], Array]
# (schedule, key, index u32[B]) -> t f32[B]
TimeDensity = Callable[[NoiseSchedule, Array, Array], Array]

GOLDEN = 2_654_435_769  # 2^32 over the golden ratio


def of_snr(weight: Callable[[Array], Array]) -> Weighting:
  """The weighting whose weight is a function of SNR_t = alpha_t^2 / sigma_t^2 alone."""
  return lambda schedule, t: weight((schedule.alpha(t) / schedule.sigma(t)) ** 2)


def uniform_x() -> Weighting:
  """1: plain squared error of x."""
  return of_snr(jnp.ones_like)


def uniform_eps() -> Weighting:
  """SNR: plain squared error of eps, DDPM's L_simple.  Source: Ho et al. 2020, eq. 14."""
  return of_snr(lambda snr: snr)


def uniform_v() -> Weighting:
  """SNR + 1: plain squared error of v.  Source: Salimans & Ho 2022, section 4 ("SNR+1 weighting")."""
  return of_snr(lambda snr: snr + 1)


def truncated_snr() -> Weighting:
  """max(SNR, 1): eps error at low noise, x error at high noise.  Source: Salimans & Ho 2022, section 4."""
  return of_snr(lambda snr: jnp.maximum(snr, 1))


def min_snr(gamma: float = 5.0) -> Weighting:
  """min(SNR, gamma): as eps error, but bounded where there is hardly any noise.  Source: Hang et al. 2023, eq. 8."""
  return of_snr(lambda snr: jnp.minimum(snr, gamma))


def p2(gamma: float = 1.0, k: float = 1.0) -> Weighting:
  """SNR / (k + SNR)^gamma: eps error with less weight on the last traces of noise.  Source: Choi et al. 2022, eq. 8."""
  return of_snr(lambda snr: snr / (k + snr) ** gamma)


def edm(sigma_data: float = 0.5) -> Weighting:
  """SNR + 1 / sigma_data^2: plain squared error of the parameterization `edm`'s target (at alpha = 1).

  Source: Karras et al. 2022, table 1: lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2.
  """
  return of_snr(lambda snr: snr + 1 / sigma_data**2)


def sigmoid(bias: float = 0.0) -> Weighting:
  """SNR sigmoid(bias - log-SNR): eps error, fading where log-SNR exceeds bias.

  Their losses have a factor -d log-SNR / dt too, which makes them free of the schedule; with uniform t this one is not.
  Source: Kingma & Gao 2023, section 4.2 (bias is their k); Hoogeboom et al. 2024, section 3.1.
  """
  return of_snr(lambda snr: snr / (1 + snr * jnp.exp(-bias)))


def vlb(num_steps: int = 1000) -> Weighting:
  """T / 2 (SNR_s - SNR_t) with s = t - 1/T: the variational bound of T steps, in nats a value, its two ends left out.

  The first step (s = 0) has weight 0: its term is the decoder's, not a squared error (see likelihood.bound).
  Source: Kingma et al. 2021, eq. 13 and 14.
  """

  def weight(schedule: NoiseSchedule, t: Array) -> Array:
    s = jnp.maximum(t - 1 / num_steps, 0.5 / num_steps)
    snr_t, snr_s = (jnp.exp(schedule.log_snr(at)) for at in (t, s))
    return jnp.where(t - 1 / num_steps < 0.5 / num_steps, 0.0, 0.5 * num_steps * (snr_s - snr_t))

  return weight


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
  "uniform_x": uniform_x,
  "uniform_eps": uniform_eps,
  "uniform_v": uniform_v,
  "truncated_snr": truncated_snr,
  "min_snr": min_snr,
  "p2": p2,
  "edm": edm,
  "sigmoid": sigmoid,
  "vlb": vlb,
}


def uniform() -> TimeDensity:
  """t ~ U(0, 1]."""
  return lambda schedule, key, index: 1 - per_example(jax.random.uniform, key, index)


def uniform_discrete(num_steps: int = 1000) -> TimeDensity:
  """t uniform over {1/T, 2/T, ..., 1}, the points of a T-step table.  Source: Ho et al. 2020, algorithm 1."""

  def draw(key: Array) -> Array:
    return (jax.random.randint(key, (), 0, num_steps) + 1) / num_steps

  return lambda schedule, key, index: per_example(draw, key, index)


def low_discrepancy() -> TimeDensity:
  """t ~ U(0, 1], spread evenly over the examples of a batch: t_i = 1 - frac(u + i (sqrt(5) - 1) / 2), u ~ U[0, 1).

  The steps of the golden ratio keep any run of indices evenly spread, so that the loss of a batch varies less, and t
  depends on (key, index) alone.  Source: Kingma et al. 2021, appendix I.1, where the steps are 1 / B.
  """

  def draw(schedule: NoiseSchedule, key: Array, index: Array) -> Array:
    offset = jax.random.bits(key, (), jnp.uint32)
    points = offset + index.astype(jnp.uint32) * jnp.uint32(GOLDEN)  # modulo 2^32
    return 1 - (points >> 8).astype(jnp.float32) / 2**24

  return draw


def logit_normal(mean: float = 0.0, std: float = 1.0) -> TimeDensity:
  """logit(t) ~ N(mean, std^2): most often the middle of the path.  Source: Esser et al. 2024, section 3.1."""

  def draw(schedule: NoiseSchedule, key: Array, index: Array) -> Array:
    normal = per_example(jax.random.normal, key, index)
    return jax.nn.sigmoid(mean + std * normal)

  return draw


def edm_log_normal(mean: float = -1.2, std: float = 1.2) -> TimeDensity:
  """log(sigma / alpha) ~ N(mean, std^2), and the t at which the schedule has that noise.

  Source: Karras et al. 2022, table 1 (P_mean, P_std).
  """

  def draw(schedule: NoiseSchedule, key: Array, index: Array) -> Array:
    log_sigma = mean + std * per_example(jax.random.normal, key, index)
    return schedules.time_of_log_snr(schedule, -2 * log_sigma)

  return draw


def clean() -> TimeDensity:
  """t = 0: images as they are, for what learns to recognise them.  A denoiser has nothing to learn there."""
  return lambda schedule, key, index: jnp.zeros(index.shape, jnp.float32)


TIME_DENSITIES: dict[str, Callable[..., TimeDensity]] = {
  "uniform": uniform,
  "uniform_discrete": uniform_discrete,
  "low_discrepancy": low_discrepancy,
  "logit_normal": logit_normal,
  "edm_log_normal": edm_log_normal,
  "clean": clean,
}


def per_example(draw: Callable[[Array], Array], key: Array, index: Array) -> Array:
  """One draw for each example from fold_in(key, index): what an example gets depends on its index alone.

  The run is then the same on any number of devices.  Shapes: index: u32[B]; returns [B, ...] of what draw returns.
  """
  return jax.vmap(lambda i: draw(jax.random.fold_in(key, i)))(index)


def denoising(
  out: Array,
  schedule: NoiseSchedule,
  parameterization: Parameterization,
  weighting: Weighting,
  x: Array,
  t: Array,
  eps: Array,
) -> Array:
  """w(t) |x_hat(z_t, t) - x|^2, the mean over an image's values, for the network's output at z_t = alpha_t x + sigma_t eps.

  Computed as w / k |out - target|^2 with k the parameterization's error_scale, which is the same number without
  dividing small errors by small alphas or sigmas.

  Shapes: out, x, eps: f32[B,H,W,C]; t: f32[B] in (0, 1].  Returns f32[B].
  Source: Salimans & Ho 2022, eq. 9 and section 4.
  """
  alpha, sigma = schedules.alpha_sigma(schedule, t, x.ndim)
  error = out - parameterization.target(x, eps, alpha, sigma)
  weight = schedules.match(weighting(schedule, t), x.ndim) / parameterization.error_scale(alpha, sigma)
  return jnp.mean(weight * error**2, axis=tuple(range(1, x.ndim)))
