from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.diffusion import editing, samplers, schedules
from jaxdiff.types import Prediction
from tests.diffusion import mixture
from tests.diffusion.mixture import THREE

SCHEDULE = schedules.cosine()
KEY = jax.random.key(0)
PAIR = mixture.gaussian([0.3, -0.2], [[0.25, 0.2], [0.2, 0.3]])  # two pixels that know of each other
MASK = jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1)  # the first is known
COUNT = 8192


def variance_error(count, variance):
  """Four standard errors of a variance from `count` draws."""
  return 4 * variance * (2 / count) ** 0.5


@pytest.mark.parametrize(
  ("strength", "steps"), [(1.0, 10), (0.5, 5), (0.24, 2), (0.01, 1), (1e-9, 1), (0.99, 10), (0.94, 9)]
)
def test_the_last_part_of_a_grid_ends_at_zero(strength, steps):
  times = samplers.time_grid(10)
  part = editing.last_part(times, strength)
  assert part.tolist() == times[-steps - 1 :].tolist()


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.0001, float("nan")])
def test_a_strength_outside_its_range_is_an_error(strength):
  with pytest.raises(ValueError, match="strength"):
    editing.last_part(samplers.time_grid(10), strength)


def to_image(strength, image):
  times = editing.last_part(samplers.time_grid(100), strength)
  denoise = mixture.denoiser(PAIR, SCHEDULE)
  run = jax.jit(
    lambda image: editing.image_to_image(samplers.ddpm(), SCHEDULE, denoise, KEY, image, times, None)
  )
  return np.asarray(run(image), np.float64)


def test_image_to_image_stays_near_the_image_at_a_small_strength_and_nearer_at_a_smaller_one():
  image = jnp.broadcast_to(jnp.array([0.6, 0.5]).reshape(1, 1, 2, 1), (256, 1, 2, 1))
  moved = [np.sqrt(((to_image(s, image) - image) ** 2).mean()) for s in (0.01, 0.2, 1.0)]
  assert moved[0] < 0.03 and moved == sorted(moved)


def test_image_to_image_of_strength_one_draws_from_the_data():
  out = to_image(1.0, jnp.full((COUNT, 1, 2, 1), 0.9)).reshape(COUNT, 2)
  mean, covariance = mixture.moments(PAIR)
  variance = np.diag(covariance)
  np.testing.assert_array_less(np.abs(out.mean(0) - mean), 4 * (variance / COUNT) ** 0.5)
  # and 6% that ddpm's variance loses in 100 steps
  np.testing.assert_array_less(
    np.abs(np.cov(out.T) - covariance), 1.06 * variance_error(COUNT, 0.3) + 0.06 * 0.3
  )


@pytest.mark.parametrize("keys", [KEY, jax.random.split(KEY, 3)], ids=["one key", "a key each"])
def test_image_to_image_starts_from_the_image_noised(keys):
  """Seen by a denoiser that returns what it is given: z = alpha x + sigma eps, another eps each image."""
  times, image = (
    np.array([0.4, 0.0]),
    jnp.array([5.0, 5.0, 9.0]).reshape(3, 1, 1, 1) * jnp.ones((3, 16, 16, 1)),
  )
  seen = []

  def denoise(z, t, cond):
    seen.append(z)
    return Prediction(z, z)

  with jax.disable_jit():
    editing.image_to_image(samplers.ddim(), SCHEDULE, denoise, keys, image, times, None)
  eps = (seen[0] - SCHEDULE.alpha(0.4) * image) / SCHEDULE.sigma(0.4)
  assert np.abs(eps.mean((1, 2, 3))).max() < 4 / 16 and np.abs(eps.std((1, 2, 3)) - 1).max() < 4 / 512**0.5
  assert np.abs(np.corrcoef(eps.reshape(3, -1))[0, 1:]).max() < 4 / 16


def painted(sampler, repeats, image, times, schedule=SCHEDULE):
  denoise = mixture.denoiser(PAIR, schedule)

  @jax.jit
  def run(image):
    z = jax.random.normal(jax.random.fold_in(KEY, 9), image.shape)
    painter = editing.inpaint(sampler, image, MASK, repeats)
    return samplers.sample(painter, schedule, denoise, KEY, z, times, None)

  return np.asarray(run(image), np.float64).reshape(len(image), 2)


@pytest.mark.parametrize("name", ["ddpm", "heun", "unipc"])
def test_inpainting_keeps_what_is_known_bit_for_bit(name):
  image = jax.random.uniform(KEY, (4, 1, 2, 1), minval=-1)
  out = painted(samplers.SAMPLERS[name](), 2, image, samplers.time_grid(4)).astype(np.float32)
  assert np.isfinite(out).all()
  assert (out[:, 0] == image[:, 0, 0, 0]).all() and (out[:, 1] != image[:, 0, 1, 0]).all()


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m", "unipc"])
def test_multistep_samplers_paint_without_memory(name):
  """What they remember is of the image before the known part was put in: with it 3M's variance was 100 times too large."""
  image = jax.random.uniform(KEY, (4, 1, 2, 1), minval=-1)
  wanted = painted(samplers.ddim(), 3, image, samplers.time_grid(6))
  np.testing.assert_allclose(
    painted(samplers.SAMPLERS[name](), 3, image, samplers.time_grid(6)), wanted, atol=1e-5
  )


def moments_of_painting(known, repeats, times):
  """Mean and variance of the painted pixel that RePaint with ddpm arrives at: all its steps are linear and Gaussian."""
  mean, cov = np.zeros(2), np.eye(2)
  (m,), (c,) = PAIR.means, PAIR.covariances
  for t, s in pairwise(times):
    (a_t, s_t), (a_s, s_s) = ((SCHEDULE.alpha(u), SCHEDULE.sigma(u)) for u in (t, s))
    beta = s_t**2 - (a_t / a_s * s_s) ** 2
    gain = a_t * c @ np.linalg.inv(a_t**2 * c + s_t**2 * np.eye(2))  # x_hat = m + gain (z - alpha m)
    step = (a_t / a_s * s_s**2 * np.eye(2) + a_s * beta * gain) / s_t**2
    shift = a_s * beta * (m - gain @ (a_t * m)) / s_t**2
    for i in range(repeats):
      if i:
        mean, cov = a_t / a_s * mean, (a_t / a_s) ** 2 * cov + beta * np.eye(2)
      mean, cov = step @ mean + shift, step @ cov @ step.T
      cov += (s > 0) * beta * s_s**2 / s_t**2 * np.eye(2)
      cov[0, :] = cov[:, 0] = 0
      mean[0], cov[0, 0] = (a_s * known, s_s**2) if s > 0 else (known, 0)
  return mean[1], cov[1, 1]


@pytest.mark.parametrize("repeats", [1, 10])
def test_the_painted_part_has_the_moments_of_repaint(repeats):
  times = samplers.time_grid(10)
  image = jnp.broadcast_to(jnp.array([0.9, 0.0]).reshape(1, 1, 2, 1), (COUNT, 1, 2, 1))
  out = painted(samplers.ddpm(), repeats, image, times)[:, 1]
  mean, variance = moments_of_painting(0.9, repeats, times)
  assert out.mean() == pytest.approx(mean, abs=4 * (variance / COUNT) ** 0.5)
  assert out.var() == pytest.approx(variance, abs=variance_error(COUNT, variance))
  # p(x_2 | x_1 = a) = N(m_2 + C_21 (a - m_1) / C_11, C_22 - C_21^2 / C_11): mean 0.28, standard deviation 0.37.
  distance = abs(mean - (-0.2 + 0.2 / 0.25 * (0.9 - 0.3)))
  assert (distance < 0.1) == (repeats > 1)  # 0.25 and 0.07 by the recursion


@pytest.fixture(scope="module")
def inverted():
  """Images, and by the number of iterations: their inversions, and what DDIM makes of these in 100 steps."""
  x = jnp.asarray(mixture.draw(THREE, 32).astype(np.float32))
  times = np.linspace(0.99, 0.0, 101)
  denoise = mixture.denoiser(THREE, SCHEDULE)
  with jax.enable_x64(True):
    x = x.astype(np.float64)

    @jax.jit
    def there_and_back(iterations):
      z = editing.invert(SCHEDULE, denoise, x, times, None, iterations)
      return z, samplers.sample(samplers.ddim(), SCHEDULE, denoise, KEY, z, times, None)

    return np.asarray(x), {n: jax.tree.map(np.asarray, there_and_back(n)) for n in (1, 3, 10, 30)}


def test_inversion_finds_the_noise_that_ddim_draws_the_image_from(inverted):
  x, found = inverted
  errors = {n: np.abs(back - x).max() for n, (_, back) in found.items()}
  assert 0.03 < errors[1] < 0.3 and errors[3] < errors[1] / 10 and errors[10] < 5e-5 and errors[30] < 1e-9


def test_the_noise_an_image_is_inverted_to_is_noise(inverted):
  z = inverted[1][30][0].ravel()
  assert abs(z.mean()) < 4 / len(z) ** 0.5 and abs(z.std() - 1) < 4 / (2 * len(z)) ** 0.5
