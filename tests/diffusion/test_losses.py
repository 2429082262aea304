import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.diffusion import losses, parameterization, schedules

SCHEDULE = schedules.cosine()
T = jnp.asarray([0.05, 0.3, 0.5, 0.8, 0.97])
X = jax.random.uniform(jax.random.key(0), (5, 4, 4, 2), minval=-1)
EPS = jax.random.normal(jax.random.key(1), X.shape)


def loss(reading, weighting, x_error=0.1):
  """The loss of a network whose decoded x is wrong by x_error everywhere."""
  alpha, sigma = schedules.alpha_sigma(SCHEDULE, T)

  def network(z, model_time):
    del model_time
    off = X + x_error
    return reading.target(off, (z - alpha * off) / sigma, alpha, sigma)

  return losses.denoising(network, SCHEDULE, reading, weighting, X, T, EPS)


@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
@pytest.mark.parametrize("name", ["eps", "x", "v"])
def test_the_same_error_of_x_costs_the_same_in_every_parameterization(name, weighting):
  weight = losses.WEIGHTINGS[weighting]()
  snr = jnp.exp(SCHEDULE.log_snr(T))
  got = loss(parameterization.PARAMETERIZATIONS[name](), weight)
  np.testing.assert_allclose(got, weight(snr) * 0.1**2, rtol=2e-3)


@pytest.mark.parametrize("name", ["eps", "x", "v"])
def test_the_uniform_weighting_of_a_target_is_its_plain_squared_error(name):
  reading = parameterization.PARAMETERIZATIONS[name]()
  out = jax.random.normal(jax.random.key(2), X.shape)
  got = losses.denoising(
    lambda z, t: out, SCHEDULE, reading, losses.WEIGHTINGS[f"uniform_{name}"](), X, T, EPS
  )
  alpha, sigma = schedules.alpha_sigma(SCHEDULE, T)
  wanted = jnp.mean((out - reading.target(X, EPS, alpha, sigma)) ** 2, axis=(1, 2, 3))
  np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_weightings_are_those_of_the_papers():
  snr = jnp.asarray([0.01, 1.0, 5.0, 100.0])
  weights = {name: make()(snr).tolist() for name, make in losses.WEIGHTINGS.items()}
  assert weights["truncated_snr"] == pytest.approx([1, 1, 5, 100])
  assert weights["uniform_v"] == pytest.approx([1.01, 2, 6, 101])
  assert weights["min_snr"] == pytest.approx([0.01, 1, 5, 5])
  assert losses.min_snr(gamma=1.0)(snr).tolist() == pytest.approx([0.01, 1, 1, 1])


def test_the_network_is_told_the_schedules_model_time():
  told = []
  schedule = schedules.linear()
  losses.denoising(
    lambda z, t: told.append(t) or z, schedule, parameterization.eps(), losses.uniform_eps(), X, T, EPS
  )
  np.testing.assert_allclose(told[0], T * 1000 - 1, rtol=1e-5)


def test_draws_depend_on_key_and_index_alone():
  index = jnp.asarray([7, 3, 11], jnp.uint32)
  normal = lambda key: jax.random.normal(key, (2,))
  whole = losses.per_example(normal, jax.random.key(5), index)
  for i, position in enumerate(index):
    alone = losses.per_example(normal, jax.random.key(5), position[None])
    assert (alone[0] == whole[i]).all()
  assert not (losses.per_example(normal, jax.random.key(6), index) == whole).any()


@pytest.mark.parametrize("name", losses.TIME_DENSITIES)
def test_time_densities_cover_all_of_time_but_zero(name):
  t = np.asarray(losses.TIME_DENSITIES[name]()(jax.random.key(0), jnp.arange(20_000, dtype=jnp.uint32)))
  assert t.min() > 0 and t.max() <= 1
  # Kolmogorov-Smirnov at p = 0.001 for 20,000 draws.
  assert np.abs(np.sort(t) - np.arange(1, 20_001) / 20_000).max() < 1.95 / 20_000**0.5


def test_discrete_times_are_the_points_of_the_table():
  t = losses.uniform_discrete(8)(jax.random.key(0), jnp.arange(500, dtype=jnp.uint32))
  assert sorted({round(float(v) * 8, 5) for v in t}) == list(range(1, 9))
