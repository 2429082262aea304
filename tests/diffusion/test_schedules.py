import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdiff.diffusion import schedules

TABLES = ("linear", "scaled_linear", "cosine_discrete")
VARIANCE_PRESERVING = (*TABLES, "cosine", "sigmoid")
times = st.floats(0.0, 1.0, allow_subnormal=False)


def alpha_bar(schedule, i, num_steps=1000):
  return schedule.alpha(np.float64((i + 1) / num_steps)) ** 2


def test_published_values_of_the_tables():
  linear = schedules.linear()
  assert alpha_bar(linear, 0) == pytest.approx(0.9999, rel=1e-12)
  assert alpha_bar(linear, 999) == pytest.approx(4.03583e-5, rel=1e-5)
  cosine = schedules.cosine_discrete()
  assert 1 - alpha_bar(cosine, 0) == pytest.approx(4.128422e-5, rel=1e-6)
  assert alpha_bar(cosine, 499) == pytest.approx(0.4938436, rel=1e-6)
  assert alpha_bar(schedules.scaled_linear(), 999) == pytest.approx(0.00466010, rel=1e-5)


def test_published_values_of_the_continuous_cosine():
  schedule = schedules.cosine()
  assert schedule.log_snr(np.float64(0.25)) == pytest.approx(1.7626188, abs=1e-6)
  assert schedule.log_snr(np.float64(0.5)) == pytest.approx(0.0, abs=1e-12)
  assert schedule.log_snr(np.float64(0.0)) == pytest.approx(20, abs=1e-9)
  assert schedule.log_snr(np.float64(1.0)) == pytest.approx(-20, abs=1e-9)


@pytest.mark.parametrize("num_steps", [1000, 400])
def test_linear_table_is_the_product_of_its_betas_at_every_step(num_steps):
  betas = np.linspace(1e-4, 0.02, num_steps) * 1000 / num_steps
  wanted = np.cumprod(1 - betas)
  schedule = schedules.linear(num_steps)
  t = (np.arange(num_steps) + 1) / num_steps
  np.testing.assert_allclose(schedule.alpha(t) ** 2, wanted, rtol=1e-10)
  np.testing.assert_allclose(schedule.alpha(jnp.asarray(t, jnp.float32)) ** 2, wanted, rtol=3e-6)
  assert (schedule.model_time(t) == np.arange(num_steps)).all()
  assert (schedule.model_time(jnp.asarray(t, jnp.float32)) == np.arange(num_steps)).all()


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
@given(t=times)
def test_variance_is_preserved(name, t):
  schedule = schedules.SCHEDULES[name]()
  assert schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2 == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_log_snr_falls_strictly_and_is_finite_inside(name):
  t = np.concatenate([np.geomspace(1e-9, 1e-3, 50), np.linspace(0.0011, 0.999, 997)])
  log_snr = schedules.SCHEDULES[name]().log_snr(t)
  assert np.isfinite(log_snr).all()
  assert (np.diff(log_snr) < 0).all()


@pytest.mark.parametrize("name", [*TABLES, "sigmoid", "rectified_flow"])
def test_time_zero_is_clean_data(name):
  schedule = schedules.SCHEDULES[name]()
  for zero in (np.float64(0), jnp.float32(0)):
    assert schedule.alpha(zero) == 1
    assert schedule.sigma(zero) == 0


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_float32_agrees_with_float64_at_all_times(name):
  schedule = schedules.SCHEDULES[name]()
  exact = np.concatenate([[0.0, 1e-6, 1e-4], np.linspace(0.001, 1, 1000)])
  t = exact.astype(np.float32)
  for function in (schedule.alpha, schedule.sigma):
    # sigmoid reaches its floor of 1e-9 at t = 1 by a difference of nearly equal numbers.
    tolerance = {"rtol": 3e-5, "atol": 4e-4 if name == "sigmoid" else 1e-9}
    np.testing.assert_allclose(function(jnp.asarray(t)), function(exact), **tolerance)


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
@given(
  t=st.floats(0.01, 1), share=st.just(0.0) | st.floats(1e-4, 0.99), x=st.floats(-1, 1), z=st.floats(-3, 3)
)
def test_posterior_is_bayes_rule(name, t, share, x, z):
  """q(z_s | z_t, x) ~ q(z_t | z_s) q(z_s | x): precisions add up, and so do precision-weighted means."""
  schedule, s = schedules.SCHEDULES[name](), t * share
  alpha_t, alpha_s, sigma_t, sigma_s = (
    schedule.alpha(t),
    schedule.alpha(s),
    schedule.sigma(t),
    schedule.sigma(s),
  )
  mean, variance = schedules.posterior(schedule, np.float64(x), np.float64(z), np.float64(t), np.float64(s))
  if sigma_s == 0:
    assert (mean, variance) == (pytest.approx(x), 0)
    return
  ratio = alpha_t / alpha_s
  likelihood = ratio**2 / (sigma_t**2 - ratio**2 * sigma_s**2)  # as a precision of z_s
  prior = 1 / sigma_s**2
  assert variance == pytest.approx(1 / (likelihood + prior), rel=1e-6)
  assert mean == pytest.approx(
    (likelihood * z / ratio + prior * alpha_s * x) / (likelihood + prior), rel=1e-5, abs=1e-7
  )


def test_posterior_at_stride_one_is_ddpm_equation_7():
  schedule, i = schedules.linear(), 499
  betas = np.linspace(1e-4, 0.02, 1000)
  bars = np.cumprod(1 - betas)
  x, z = np.float64(0.4), np.float64(-1.1)
  mean, variance = schedules.posterior(schedule, x, z, np.float64((i + 1) / 1000), np.float64(i / 1000))
  wanted = np.sqrt(bars[i - 1]) * betas[i] * x + np.sqrt(1 - betas[i]) * (1 - bars[i - 1]) * z
  assert mean == pytest.approx(wanted / (1 - bars[i]), rel=1e-9)
  assert variance == pytest.approx((1 - bars[i - 1]) / (1 - bars[i]) * betas[i], rel=1e-9)


def test_add_noise_has_the_promised_moments():
  schedule = schedules.cosine()
  eps = jnp.asarray(np.random.default_rng(0).standard_normal((4, 50, 50, 1)), jnp.float32)
  t = jnp.asarray([0.1, 0.4, 0.7, 0.9])
  z = schedules.add_noise(schedule, jnp.full_like(eps, 0.5), eps, t)
  np.testing.assert_allclose(z.mean((1, 2, 3)), 0.5 * schedule.alpha(t), atol=0.06)
  np.testing.assert_allclose(z.std((1, 2, 3)), schedule.sigma(t), rtol=0.05)
