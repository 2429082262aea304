"""What a network regresses on, and how its output is read back as a clean image and a noise.

With z = alpha x + sigma eps, knowing z and one of (x, eps, v) is knowing all of them; the choice decides where
along t the network's task is easy and how its errors weigh. alpha and sigma broadcast against images: f32[B,1,1,1].
"""

from __future__ import annotations

from collections.abc import Callable

from jaxdiff.types import Array, Parameterization, Prediction


def _as_is(z: Array, alpha: Array, sigma: Array) -> Array:
  del alpha, sigma
  return z


def eps() -> Parameterization:
  """The network predicts the noise: x = (z - sigma eps) / alpha.

  |eps error|^2 = SNR |x error|^2.  Undefined where alpha = 0 (zero terminal SNR).  Source: Ho et al. 2020, eq. 14.
  """

  def decode(out: Array, z: Array, alpha: Array, sigma: Array) -> Prediction:
    return Prediction(x=(z - sigma * out) / alpha, eps=out)

  return Parameterization(
    target=lambda x, eps, alpha, sigma: eps,
    decode=decode,
    error_scale=lambda alpha, sigma: (alpha / sigma) ** 2,
    encode=_as_is,
  )


def x() -> Parameterization:
  """The network predicts the clean image: eps = (z - alpha x) / sigma.  Source: Salimans & Ho 2022, section 4."""

  def decode(out: Array, z: Array, alpha: Array, sigma: Array) -> Prediction:
    return Prediction(x=out, eps=(z - alpha * out) / sigma)

  return Parameterization(
    target=lambda x, eps, alpha, sigma: x,
    decode=decode,
    error_scale=lambda alpha, sigma: alpha * 0 + 1,
    encode=_as_is,
  )


def v() -> Parameterization:
  """The network predicts v = alpha eps - sigma x: x = alpha z - sigma v, eps = sigma z + alpha v.

  For variance-preserving schedules only.  |v error|^2 = (SNR + 1) |x error|^2.  It divides by nothing, so it is
  accurate at both ends of t.  Source: Salimans & Ho 2022, section 4 and appendix D.
  """

  def decode(out: Array, z: Array, alpha: Array, sigma: Array) -> Prediction:
    return Prediction(x=alpha * z - sigma * out, eps=sigma * z + alpha * out)

  return Parameterization(
    target=lambda x, eps, alpha, sigma: alpha * eps - sigma * x,
    decode=decode,
    error_scale=lambda alpha, sigma: (alpha / sigma) ** 2 + 1,
    encode=_as_is,
  )


def velocity() -> Parameterization:
  """The network predicts dz/dt of rectified flow: u = eps - x, so x = z - sigma u, eps = z + alpha u.

  For schedules with alpha + sigma = 1 only.  |u error|^2 = |x error|^2 / sigma^2.  Source: Liu et al. 2022, eq. 1
  (time reversed); Lipman et al. 2022, eq. 23.
  """

  def decode(out: Array, z: Array, alpha: Array, sigma: Array) -> Prediction:
    return Prediction(x=z - sigma * out, eps=z + alpha * out)

  return Parameterization(
    target=lambda x, eps, alpha, sigma: eps - x,
    decode=decode,
    error_scale=lambda alpha, sigma: 1 / sigma**2,
    encode=_as_is,
  )


PARAMETERIZATIONS: dict[str, Callable[..., Parameterization]] = {
  "eps": eps,
  "x": x,
  "v": v,
  "velocity": velocity,
}
