"""Data whose best denoiser is known in closed form: a few classes of points, blurred. For pictures that explain, and no training.

A point is an image of any shape: in the plane it is [1,1,2]; the digits are points of [8,8,1].
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import data
from jaxdiff.data import pixels
from jaxdiff.diffusion import schedules
from jaxdiff.types import NULL_LABEL, Array, Cond, Denoiser, NoiseSchedule, Prediction


class Mixture(NamedTuple):
  """p(x) = the mean over k of N(m_k, std^2 I); a label names the components that have it.

  Shapes: means: f32[K,H,W,C], or f64 where all is to be computed so; labels: i32[K].
  """

  means: np.ndarray
  labels: np.ndarray
  std: float


def three_classes() -> Mixture:
  """Three classes in the plane, [1,1,2], that overlap in the middle, of two components each."""
  angles = 2 * np.pi * (np.arange(3)[:, None] + np.array([-0.1, 0.1])) / 3
  means = 0.8 * np.stack([np.cos(angles), np.sin(angles)], axis=-1).reshape(6, 1, 1, 2)
  return Mixture(means.astype(np.float32), np.repeat(np.arange(3, dtype=np.int32), 2), std=0.25)


def digits(std: float = 0.05) -> Mixture:
  """The 1,797 digits of scikit-learn, each a component: what a network that knows them by heart would have learned."""
  found = data.load("digits")
  every = found.take(range(len(found)))
  images = np.stack([example["image"] for example in every])
  labels = np.asarray([example["label"] for example in every], np.int32)
  return Mixture(np.asarray(pixels.to_signed(jnp.asarray(images))), labels, std)


def draw(mixture: Mixture, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Points of the mixture and their labels: [count,H,W,C] in the dtype of the means, i32[count]."""
  rng, kind = np.random.default_rng(seed), mixture.means.dtype.type
  k = rng.integers(len(mixture.means), size=count)
  noise = rng.standard_normal((count, *mixture.means.shape[1:]), kind)
  return mixture.means[k] + kind(mixture.std) * noise, mixture.labels[k]


def denoiser(mixture: Mixture, schedule: NoiseSchedule) -> Denoiser:
  """The best denoiser there is, E[x | z_t], and with a label E[x | z_t, label]: what training tends to.

  z_t of component k is N(alpha m_k, v I), v = alpha^2 std^2 + sigma^2.  So x_hat = sum_k p(k | z_t) (m_k + g (z_t - alpha m_k))
  with g = alpha std^2 / v and p(k | z_t) prop. to exp(-|z_t - alpha m_k|^2 / 2v), over the components of the label.

  Source: Karras et al. 2022, appendix B.3, for std = 0.
  """
  means, labels = jnp.asarray(mixture.means), jnp.asarray(mixture.labels)
  flat = means.reshape(len(means), -1)

  def denoise(z: Array, t: Array, cond: Cond) -> Prediction:
    alpha, sigma = schedules.alpha_sigma(schedule, t, 2)  # [B,1]
    seen = z.reshape(len(z), -1)
    variance = alpha**2 * mixture.std**2 + sigma**2
    off = seen**2 @ jnp.ones_like(flat.T) - 2 * alpha * seen @ flat.T + alpha**2 * jnp.sum(flat**2, axis=-1)
    is_other = (cond.label[:, None] != labels) & (cond.label[:, None] != NULL_LABEL)
    share = jax.nn.softmax(jnp.where(is_other, -jnp.inf, -off / (2 * variance)))
    mean, gain = share @ flat, alpha * mixture.std**2 / variance
    x = mean + gain * (seen - alpha * mean)
    eps = (seen - alpha * x) / jnp.maximum(sigma, 1e-6)
    return Prediction(x.reshape(z.shape), eps.reshape(z.shape))

  return denoise
