"""Data that is a mixture of Gaussians: denoiser, conditional denoiser, classifier and moments in closed form.

p(x) = sum_k w_k N(m_k, C_k), so z_t is a mixture too, of N(alpha m_k, S_k) with S_k = alpha^2 C_k + sigma^2 I.  A label
names a component; NULL_LABEL is all of them.  Images of any shape [B,H,W,C] with H W C = D values.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from jaxdiff.diffusion import schedules
from jaxdiff.types import NULL_LABEL, NoiseSchedule, Prediction

NOISE_IS_TIME = NoiseSchedule(alpha=lambda t: 0 * t + 1.0, sigma=lambda t: t, model_time=lambda t: t)


class Mixture(NamedTuple):
  weights: np.ndarray  # f64[K]
  means: np.ndarray  # f64[K,D]
  covariances: np.ndarray  # f64[K,D,D]


def gaussian(mean, covariance):
  return Mixture(np.ones(1), np.array([mean], float), np.array([covariance], float))


THREE = Mixture(
  weights=np.array([0.5, 0.3, 0.2]),
  means=np.array([[0.6, 0.4], [-0.7, 0.3], [0.1, -0.8]]),
  covariances=np.array(
    [[[0.04, 0.02], [0.02, 0.05]], [[0.09, -0.03], [-0.03, 0.02]], [[0.03, 0.0], [0.0, 0.08]]]
  ),
)


def denoiser(mixture, schedule):
  """E[x | z_t] and E[eps | z_t]; with a label, given that component."""

  def denoise(z, t, cond):
    alpha, sigma = schedules.alpha_sigma(schedule, t, 3)
    log_joint, pull = _components(mixture, z, alpha, sigma)
    share = jax.nn.softmax(log_joint)
    if cond is not None:
      one = jax.nn.one_hot(cond.label, len(mixture.weights), dtype=share.dtype)
      share = jnp.where((cond.label == NULL_LABEL)[:, None], share, one)
    means, covariances = (jnp.asarray(a, z.dtype) for a in mixture[1:])
    x = means + alpha * jnp.einsum("kde,bke->bkd", covariances, pull)
    mean_x, mean_eps = (jnp.einsum("bk,bkd->bd", share, a).reshape(z.shape) for a in (x, sigma * pull))
    return Prediction(mean_x, mean_eps)

  return denoise


def log_prob(mixture, schedule):
  """The classifier: log p(label | z_t)."""

  def classify(z, t, cond):
    log_joint, _ = _components(mixture, z, *schedules.alpha_sigma(schedule, t, 3))
    return jnp.take_along_axis(jax.nn.log_softmax(log_joint), cond.label[:, None], axis=1)[:, 0]

  return classify


def moments(mixture, alpha=1.0, sigma=0.0):
  """Mean f64[D] and covariance f64[D,D] of z_t; of the data where alpha is 1 and sigma 0."""
  mean = mixture.weights @ mixture.means
  apart = mixture.means - mean
  spread = np.einsum("k,kd,ke->de", mixture.weights, apart, apart)
  covariance = np.einsum("k,kde->de", mixture.weights, mixture.covariances) + spread
  return alpha * mean, alpha**2 * covariance + sigma**2 * np.eye(len(mean))


def draw(mixture, count, seed=0):
  """Data: f64[count,1,1,D]."""
  rng = np.random.default_rng(seed)
  k = rng.choice(len(mixture.weights), count, p=mixture.weights)
  roots = np.linalg.cholesky(mixture.covariances)
  x = mixture.means[k] + np.einsum(
    "bde,be->bd", roots[k], rng.standard_normal((count, mixture.means.shape[1]))
  )
  return x[:, None, None, :]


def flow(mixture, schedule, z, times):
  """The probability flow from z at times[0]: f64[N+1,*z.shape], to about 1e-11.

  y = z / alpha and u = sigma / alpha follow dy/du = E[eps | y], whatever the schedule; solved over log u.
  """
  with jax.enable_x64(True):
    denoise = denoiser(mixture, NOISE_IS_TIME)

    @jax.jit
    def slope(log_u, y):
      u = jnp.exp(log_u)
      return u * denoise(y.reshape(z.shape), jnp.full(len(z), u), None).eps.ravel()

    at = np.log(schedules.noise_ratio(schedule, times))
    start = np.ravel(z) / schedule.alpha(times[0])
    solved = solve_ivp(slope, at[[0, -1]], start, "DOP853", t_eval=at, rtol=1e-12, atol=1e-12)
    assert solved.success
  return schedule.alpha(times).reshape(-1, *[1] * z.ndim) * solved.y.T.reshape(-1, *z.shape)


def _components(mixture, z, alpha, sigma):
  """log p(z_t, k) but for a constant, [B,K], and S_k^-1 (z_t - alpha m_k), [B,K,D].  alpha, sigma: [B,1,1]."""
  constants = np.log(mixture.weights), mixture.means, *np.linalg.eigh(mixture.covariances)
  log_weights, means, values, vectors = (jnp.asarray(a, z.dtype) for a in constants)
  centred = z.reshape(len(z), 1, -1) - alpha * means
  turned = jnp.einsum("kde,bkd->bke", vectors, centred)
  variance = alpha**2 * values + sigma**2
  log_density = -0.5 * jnp.sum(turned**2 / variance + jnp.log(variance), axis=-1)
  return log_weights + log_density, jnp.einsum("kde,bke->bkd", vectors, turned / variance)
