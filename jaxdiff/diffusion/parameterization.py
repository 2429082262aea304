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

  |eps error|^2 = SNR |x error|^2.  Undefined where alpha = 0 (zero terminal SNR, the start of a flow).
  Source: Ho et al. 2020, eq. 14.
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


def x_and_eps() -> Parameterization:
  """The network predicts both, x~ and eps~, which are weighed by where each is known: x = sigma^2 x~ + alpha (z - sigma eps~).

  Divided by alpha^2 + sigma^2, which is 1 for variance-preserving schedules.  What is taught is that x, so that the two are free
  to share the work.  Source: Salimans & Ho 2022, section 4, second method.
  """

  def combine(images: Array, z: Array, alpha: Array, sigma: Array) -> Array:
    channels = images.shape[-1] // 2
    of_x, of_eps = images[..., :channels], images[..., channels:]
    return (sigma**2 * of_x + alpha * (z - sigma * of_eps)) / (alpha**2 + sigma**2)

  return x()._replace(outputs=2, combine=combine)


def v() -> Parameterization:
  """The network predicts v = alpha eps - sigma x: x = alpha z - sigma v, eps = sigma z + alpha v, both / (alpha^2 + sigma^2).

  That divisor is 1 for variance-preserving schedules.  |v error|^2 = (SNR + 1) |x error|^2 for these.  Accurate at both
  ends of t.  Source: Salimans & Ho 2022, section 4 and appendix D.
  """

  def decode(out: Array, z: Array, alpha: Array, sigma: Array) -> Prediction:
    norm = alpha**2 + sigma**2
    return Prediction(x=(alpha * z - sigma * out) / norm, eps=(sigma * z + alpha * out) / norm)

  return Parameterization(
    target=lambda x, eps, alpha, sigma: alpha * eps - sigma * x,
    decode=decode,
    error_scale=lambda alpha, sigma: ((alpha**2 + sigma**2) / sigma) ** 2,
    encode=_as_is,
  )


def velocity() -> Parameterization:
  """The network predicts u = eps - x: x = z - sigma u, eps = z + alpha u, both / (alpha + sigma).

  That divisor is 1 for rectified flow, where u is dz/dt.  |u error|^2 = |x error|^2 / sigma^2 there.
  Source: Liu et al. 2022a, eq. 1 (time reversed); Lipman et al. 2022, eq. 23.
  """

  def decode(out: Array, z: Array, alpha: Array, sigma: Array) -> Prediction:
    norm = alpha + sigma
    return Prediction(x=(z - sigma * out) / norm, eps=(z + alpha * out) / norm)

  return Parameterization(
    target=lambda x, eps, alpha, sigma: eps - x,
    decode=decode,
    error_scale=lambda alpha, sigma: ((alpha + sigma) / sigma) ** 2,
    encode=_as_is,
  )


def edm(sigma_data: float = 0.5) -> Parameterization:
  """x = c_skip z + c_out F(c_in z): the network's input and its target F both have variance 1 at every noise level.

  With n = sqrt(sigma^2 + (alpha sigma_data)^2):  c_in = 1 / n, c_skip = alpha sigma_data^2 / n^2, c_out = sigma sigma_data / n.
  For alpha = 1 these are the paper's; elsewhere they are its functions of z / alpha and sigma / alpha.  For VP and
  sigma_data = 1, F = -v.  sigma_data: the standard deviation of the data.  |F error|^2 = |x error|^2 / c_out^2.
  Source: Karras et al. 2022, eq. 7 and table 1.
  """

  def coefficients(alpha: Array, sigma: Array) -> tuple[Array, Array, Array]:
    variance = sigma**2 + (alpha * sigma_data) ** 2
    return variance**-0.5, alpha * sigma_data**2 / variance, sigma * sigma_data * variance**-0.5

  def target(x: Array, eps: Array, alpha: Array, sigma: Array) -> Array:
    """(x - c_skip z) / c_out, written so that sigma divides nothing."""
    variance = sigma**2 + (alpha * sigma_data) ** 2
    return (sigma * x / sigma_data - alpha * sigma_data * eps) * variance**-0.5

  def decode(out: Array, z: Array, alpha: Array, sigma: Array) -> Prediction:
    c_in, c_skip, c_out = coefficients(alpha, sigma)
    return Prediction(x=c_skip * z + c_out * out, eps=c_in**2 * sigma * z - alpha * sigma_data * c_in * out)

  return Parameterization(
    target=target,
    decode=decode,
    error_scale=lambda alpha, sigma: coefficients(alpha, sigma)[2] ** -2,
    encode=lambda z, alpha, sigma: coefficients(alpha, sigma)[0] * z,
  )


PARAMETERIZATIONS: dict[str, Callable[..., Parameterization]] = {
  "eps": eps,
  "x": x,
  "x_and_eps": x_and_eps,
  "v": v,
  "velocity": velocity,
  "edm": edm,
}
