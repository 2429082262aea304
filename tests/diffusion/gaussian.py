"""Data that is a Gaussian: the best denoiser and the solution of the probability flow are known in closed form."""

import jax.numpy as jnp

from jaxdiff.diffusion import schedules
from jaxdiff.types import Prediction

MEAN, STD = 0.3, 0.5


def denoiser(schedule):
  """E[x | z_t] for x ~ N(MEAN, STD^2): MEAN + alpha STD^2 (z - alpha MEAN) / (alpha^2 STD^2 + sigma^2)."""

  def denoise(z, t, cond):
    del cond
    alpha, sigma = schedules.alpha_sigma(schedule, t, z.ndim)
    variance = (alpha * STD) ** 2 + sigma**2
    centred = (z - alpha * MEAN) / variance
    return Prediction(x=MEAN + alpha * STD**2 * centred, eps=sigma * centred)

  return denoise


def flow(schedule, z, t, s):
  """The probability flow from (z, t) to s: the standardised value stays what it is."""

  def moments(at):
    alpha, sigma = schedule.alpha(at), schedule.sigma(at)
    return alpha * MEAN, ((alpha * STD) ** 2 + sigma**2) ** 0.5

  (mean_t, std_t), (mean_s, std_s) = moments(t), moments(s)
  return mean_s + std_s * (jnp.asarray(z) - mean_t) / std_t
