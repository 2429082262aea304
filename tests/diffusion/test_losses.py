import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxdiff.diffusion import losses, parameterization, schedules

FAMILIES = {"vp": schedules.cosine(), "flow": schedules.rectified_flow(), "ve": schedules.edm()}
SCHEDULE = FAMILIES["vp"]
T = jnp.asarray([0.05, 0.3, 0.5, 0.8, 0.97])
X = jax.random.uniform(jax.random.key(0), (5, 4, 4, 2), minval=-1)
EPS = jax.random.normal(jax.random.key(1), X.shape)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", parameterization.PARAMETERIZATIONS)
def test_the_same_error_of_x_costs_the_same_in_every_parameterization(name, family):
  """A network whose decoded x is wrong by 0.1; in float64, as where SNR is extreme float32 outputs hide such an error."""
  schedule, reading = FAMILIES[family], parameterization.PARAMETERIZATIONS[name]()
  with jax.enable_x64(True):
    x, eps, t = (jnp.asarray(np.asarray(values), jnp.float64) for values in (X, EPS, T))
    alpha, sigma = schedules.alpha_sigma(schedule, t)
    off = x + 0.1
    out = reading.target(off, (alpha * x + sigma * eps - alpha * off) / sigma, alpha, sigma)
    for weighting, make in losses.WEIGHTINGS.items():
      got = losses.denoising(out, schedule, reading, make(), x, t, eps)
      wanted = make()(schedule, t) * 0.1**2
      np.testing.assert_allclose(got, wanted, rtol=1e-9, err_msg=weighting)


@pytest.mark.parametrize("name", ["eps", "x", "v"])
def test_the_uniform_weighting_of_a_target_is_its_plain_squared_error(name):
  reading = parameterization.PARAMETERIZATIONS[name]()
  assert_plain_error(SCHEDULE, reading, losses.WEIGHTINGS[f"uniform_{name}"]())


def test_the_edm_weighting_is_the_plain_squared_error_of_its_target():
  assert_plain_error(FAMILIES["ve"], parameterization.edm(0.7), losses.edm(0.7))


def assert_plain_error(schedule, reading, weighting):
  out = jax.random.normal(jax.random.key(2), X.shape)
  got = losses.denoising(out, schedule, reading, weighting, X, T, EPS)
  alpha, sigma = schedules.alpha_sigma(schedule, T)
  wanted = jnp.mean((out - reading.target(X, EPS, alpha, sigma)) ** 2, axis=(1, 2, 3))
  np.testing.assert_allclose(got, wanted, rtol=1e-5)


WEIGHTS = {  # name -> (arguments, the papers' function of SNR)
  "uniform_x": ({}, np.ones_like),
  "uniform_eps": ({}, lambda snr: snr),
  "uniform_v": ({}, lambda snr: snr + 1),
  "truncated_snr": ({}, lambda snr: np.maximum(snr, 1)),
  "min_snr": ({"gamma": 3.0}, lambda snr: np.minimum(snr, 3)),
  "p2": ({"gamma": 0.5, "k": 2.0}, lambda snr: snr / (2 + snr) ** 0.5),
  "edm": ({"sigma_data": 0.4}, lambda snr: snr + 1 / 0.4**2),
  "sigmoid": ({"bias": -1.5}, lambda snr: snr / (1 + np.exp(np.log(snr) + 1.5))),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", WEIGHTS)
def test_weightings_are_those_of_the_papers(name, family):
  arguments, of_snr = WEIGHTS[name]
  schedule, t = FAMILIES[family], np.linspace(0.05, 0.95, 19).astype(np.float32)
  got = losses.WEIGHTINGS[name](**arguments)(schedule, jnp.asarray(t))
  np.testing.assert_allclose(got, of_snr(np.exp(schedule.log_snr(t.astype(np.float64)))), rtol=1e-5)


def test_every_weighting_but_the_bounds_is_compared_with_its_paper():
  assert set(WEIGHTS) == set(losses.WEIGHTINGS) - {"vlb"}


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_vlb_sums_to_the_divergences_of_the_posterior(name):
  """KL(q(z_s | z_t, x) || q(z_s | z_t, x_hat)) of all steps but the last, in nats, both of variance beta-tilde."""
  num_steps, x, x_hat, schedule = 20, 0.4, 0.1, schedules.SCHEDULES[name]()
  t = np.arange(1, num_steps + 1) / num_steps
  late, early, z = t[1:], t[:-1], np.linspace(-1, 1, num_steps - 1)
  mean, variance = schedules.posterior(schedule, np.full_like(z, x), z, late, early)
  mean_hat, _ = schedules.posterior(schedule, np.full_like(z, x_hat), z, late, early)
  divergence = (mean - mean_hat) ** 2 / (2 * variance)
  weight = losses.vlb(num_steps)
  single = weight(schedule, jnp.asarray(t, jnp.float32))
  with jax.enable_x64(True):
    double = np.asarray(weight(schedule, jnp.asarray(t)))
  assert double[0] == single[0] == 0
  np.testing.assert_allclose(double[1:] * (x - x_hat) ** 2 / num_steps, divergence, rtol=1e-9)
  np.testing.assert_allclose(jnp.mean(single) * (x - x_hat) ** 2, divergence.sum(), rtol=1e-5)


@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
def test_weights_are_finite_and_not_negative_up_to_zero_terminal_snr(weighting):
  t = jnp.linspace(0.001, 1, 1000)
  for schedule in (*FAMILIES.values(), schedules.zero_terminal_snr(schedules.linear())):
    weight = losses.WEIGHTINGS[weighting]()(schedule, t)
    assert jnp.isfinite(weight).all() and (weight >= 0).all()


def test_draws_depend_on_key_and_index_alone():
  index = jnp.asarray([7, 3, 11], jnp.uint32)
  normal = lambda key: jax.random.normal(key, (2,))
  whole = losses.per_example(normal, jax.random.key(5), index)
  for i, position in enumerate(index):
    alone = losses.per_example(normal, jax.random.key(5), position[None])
    assert (alone[0] == whole[i]).all()
  assert not (losses.per_example(normal, jax.random.key(6), index) == whole).any()


def draws(density, num=20_000, schedule=SCHEDULE, seed=0):
  return np.asarray(density(schedule, jax.random.key(seed), jnp.arange(num, dtype=jnp.uint32)), np.float64)


def assert_law(values, law):
  """Kolmogorov-Smirnov at p = 0.001; the seeds are fixed, so a pass stays one."""
  assert scipy.stats.kstest(values, law.cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", sorted(set(losses.TIME_DENSITIES) - {"clean"}))
def test_times_depend_on_key_and_index_alone_and_are_never_zero(name):
  density, index = losses.TIME_DENSITIES[name](), jnp.asarray([70, 3, 2**32 - 1], jnp.uint32)
  t = density(SCHEDULE, jax.random.key(5), index)
  assert jnp.array_equal(density(SCHEDULE, jax.random.key(5), index[::-1]), t[::-1])
  assert jnp.array_equal(density(SCHEDULE, jax.random.key(5), index[1:2]), t[1:2])
  assert not (density(SCHEDULE, jax.random.key(6), index) == t).any()
  many = draws(density)
  assert many.min() > 0 and many.max() <= 1


def test_clean_is_time_zero_for_every_example():
  t = losses.clean()(SCHEDULE, jax.random.key(0), jnp.arange(5, dtype=jnp.uint32))
  assert t.dtype == jnp.float32 and t.tolist() == [0.0] * 5


@pytest.mark.parametrize("name", ["uniform", "low_discrepancy"])
def test_continuous_times_are_uniform_over_indices_and_over_keys(name):
  density = losses.TIME_DENSITIES[name]()
  assert_law(draws(density), scipy.stats.uniform())
  keys = jax.random.split(jax.random.key(3), 5000)
  one_index = jax.vmap(lambda key: density(SCHEDULE, key, jnp.asarray([12], jnp.uint32))[0])(keys)
  assert_law(np.asarray(one_index, np.float64), scipy.stats.uniform())


def test_discrete_times_are_the_points_of_the_table_equally_often():
  t = draws(losses.uniform_discrete(8))
  points, counts = np.unique(t, return_counts=True)
  np.testing.assert_array_equal(points, np.arange(1, 9) / 8)
  assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.7, 0.6)])
def test_logit_normal_is_its_law(mean, std):
  t = draws(losses.logit_normal(mean, std))
  assert_law(np.log(t) - np.log1p(-t), scipy.stats.norm(mean, std))


@pytest.mark.parametrize("name", ["edm", "cosine", "rectified_flow", "linear"])
def test_edm_log_normal_is_the_law_of_the_noise_level_under_any_schedule(name):
  schedule = schedules.SCHEDULES[name]()
  t = draws(losses.edm_log_normal(-1.0, 0.9), schedule=schedule)
  assert_law(np.log(schedules.noise_ratio(schedule, t)), scipy.stats.norm(-1.0, 0.9))


@pytest.mark.parametrize("num", [5, 8, 32, 128, 1000])
def test_any_run_of_low_discrepancy_times_is_evenly_spread(num):
  """Around the circle of t, gaps of points a golden ratio apart lie between 1 / sqrt 5 and 1 + 2 / sqrt 5 of 1 / num.

  Both are limits for many points, here widened by 2%.  The gaps of independent draws go from about 1 / num^2 to log(num) / num.  2^-23: two roundings of t.
  """
  for seed, start in ((0, 0), (1, 12_345), (2, 2**32 - num // 2)):
    index = jnp.asarray((start + np.arange(num)) % 2**32, jnp.uint32)
    t = np.sort(np.asarray(losses.low_discrepancy()(SCHEDULE, jax.random.key(seed), index), np.float64))
    gaps = np.diff(t, append=t[0] + 1)
    assert gaps.max() <= 1.02 * (1 + 2 / 5**0.5) / num + 2**-23
    assert gaps.min() >= 0.98 / 5**0.5 / num - 2**-23


def test_low_discrepancy_makes_the_mean_over_a_batch_vary_less():
  """The mean of t^2 over 32 examples, over 500 keys.  Evenly spaced draws would bring its deviation to 0.17."""
  keys, index = jax.random.split(jax.random.key(0), 500), jnp.arange(100, 132, dtype=jnp.uint32)
  spread = lambda density: jnp.std(jax.vmap(lambda key: jnp.mean(density(SCHEDULE, key, index) ** 2))(keys))
  assert spread(losses.low_discrepancy()) < 0.3 * spread(losses.uniform())
