import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdiff.diffusion import schedules

TABLES = ("linear", "scaled_linear", "cosine_discrete")
VARIANCE_PRESERVING = (*TABLES, "cosine", "sigmoid")
MADE_OF_ANOTHER = {
  **{f"zero_terminal_{name}": (schedules.zero_terminal_snr, name) for name in VARIANCE_PRESERVING},
  **{f"shifted_{name}": (lambda s: schedules.shifted(s, 4.0), name) for name in ("linear", "cosine")},
  "shifted_flow": (lambda s: schedules.shifted(s, 3.0), "rectified_flow"),
}
ALL = (*schedules.SCHEDULES, *MADE_OF_ANOTHER)
times = st.floats(0.0, 1.0, allow_subnormal=False)


@functools.cache
def build(name):
  if name in MADE_OF_ANOTHER:
    change, base = MADE_OF_ANOTHER[name]
    return change(schedules.SCHEDULES[base]())
  return schedules.SCHEDULES[name]()


def scales(schedule, t):
  return schedule.alpha(t), schedule.sigma(t)


def both_precisions(name, t):
  """Times in float32, and the float64 ones they stand for: themselves, or the points of a table that they round."""
  single = np.asarray(t, np.float32)
  return jnp.asarray(single), np.asarray(t if name.endswith(TABLES) else single, np.float64)


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


@pytest.mark.parametrize(("start", "end", "tau"), [(-3, 3, 1.0), (0, 3, 0.3)])
def test_sigmoid_is_algorithm_1_of_the_paper(start, end, tau):
  t = np.linspace(0.01, 0.99, 99)
  s = lambda u: 1 / (1 + np.exp(-u / tau))
  wanted = (s(end) - s(t * (end - start) + start)) / (s(end) - s(start))
  np.testing.assert_allclose(schedules.sigmoid(start, end, tau).alpha(t) ** 2, wanted, rtol=1e-10)


def test_flow_and_edm_are_their_formulas():
  t = np.linspace(0, 1, 11)
  assert all(map(np.array_equal, scales(schedules.rectified_flow(), t), (1 - t, t)))
  edm = schedules.edm(sigma_min=0.01, sigma_max=50.0, rho=5.0)
  low, high = 0.01**0.2, 50**0.2
  sigma = (low + (t[1:] - 0.001) / 0.999 * (high - low)) ** 5
  np.testing.assert_array_equal(edm.alpha(t), np.ones(11))
  np.testing.assert_allclose(edm.sigma(t[1:]), sigma, rtol=1e-14)
  np.testing.assert_allclose(edm.model_time(t[1:]), np.log(sigma) / 4, rtol=1e-12)
  np.testing.assert_allclose(edm.sigma(np.array([0.0, 5e-4, 1e-3])), [0, 0.005, 0.01], rtol=1e-12)
  assert np.isfinite(edm.model_time(np.float64(0))) and np.isfinite(edm.model_time(jnp.float32(0)))
  np.testing.assert_allclose(schedules.noise_ratio(schedules.rectified_flow(), t[:-1]), t[:-1] / (1 - t[:-1]))


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


@pytest.mark.parametrize("name", [*VARIANCE_PRESERVING, *MADE_OF_ANOTHER])
@given(t=times)
def test_the_family_is_kept(name, t):
  alpha, sigma = scales(build(name), np.float64(t))
  kept = alpha + sigma if name == "shifted_flow" else alpha**2 + sigma**2
  assert kept == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_log_snr_falls_strictly_and_is_finite_inside(name):
  t = np.concatenate([np.geomspace(1e-9, 1e-3, 50), np.linspace(0.0011, 0.999, 997)])
  log_snr = build(name).log_snr(t)
  assert np.isfinite(log_snr).all()
  assert (np.diff(log_snr) < 0).all()


@pytest.mark.parametrize("name", [name for name in ALL if not name.endswith("cosine")])
@pytest.mark.parametrize("zero", [np.float64(0), jnp.float32(0)])
def test_time_zero_is_clean_data(name, zero):
  assert scales(build(name), zero) == (pytest.approx(1, abs=2.5e-7), 0)


@pytest.mark.parametrize("name", ALL)
def test_float32_agrees_with_float64(name):
  """To 3e-6 of alpha and of sigma, however small they are; for tables at their points.

  Zero terminal SNR subtracts alpha_1, so its alpha cannot be surer than float32's alpha_1.  edm's first sigmas are below
  float32's normal numbers.
  """
  schedule = build(name)
  t, exact = both_precisions(name, [0.0, 1e-6, 1e-4, *np.linspace(0.001, 1, 1000)])
  lost = 1e-37
  if name.startswith("zero_terminal"):
    lost += 2e-6 * float(build(name.removeprefix("zero_terminal_")).alpha(np.float64(1)))
  for got, wanted in zip(scales(schedule, t), scales(schedule, exact), strict=True):
    np.testing.assert_allclose(got, wanted, rtol=3e-6, atol=lost)


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_float32_between_the_points_of_a_table(name):
  """Where t T - 1 is not whole it is rounded by 3e-5 of a step, which the slope of log-SNR multiplies: by 3.5 at worst."""
  schedule = build(name)
  t = np.random.default_rng(0).uniform(0, 1, 2000).astype(np.float32)
  for got, exact in zip(
    scales(schedule, jnp.asarray(t)), scales(schedule, t.astype(np.float64)), strict=True
  ):
    np.testing.assert_allclose(got, exact, rtol=1.5e-4 if name == "cosine_discrete" else 1e-5)


@pytest.mark.parametrize("log_snr", [-20.0, 20.0])
@pytest.mark.parametrize(
  "name", ["cosine", "sigmoid", "rectified_flow", "edm", "shifted_cosine", "shifted_flow"]
)
def test_signal_and_noise_are_exact_in_float32_at_extreme_noise_levels(name, log_snr):
  """e^20 is the ratio of the variances, so one of alpha and sigma is 4.5e-5 of the other: neither may lose its digits."""
  schedule = build(name)
  low, high = schedule.log_snr(np.float64(1 - 1e-6)), schedule.log_snr(np.float64(1e-9))
  t = np.float32(schedules.time_of_log_snr(schedule, np.float64(np.clip(log_snr, low, high))))
  for got, exact in zip(scales(schedule, jnp.asarray(t)), scales(schedule, np.float64(t)), strict=True):
    assert float(got) == pytest.approx(float(exact), rel=3e-6)


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_zero_terminal_snr_leaves_nothing_of_x_and_keeps_the_start(name):
  """Lin et al. 2023, algorithm 1: sqrt(alpha_bar) moved to 0 at the end, then stretched."""
  base, schedule = build(name), schedules.zero_terminal_snr(build(name))
  ones = jnp.ones((4, 1, 1, 1))
  for one in (np.float64(1), jnp.float32(1), ones):
    assert np.all(schedule.alpha(one) == 0)
    np.testing.assert_allclose(schedule.sigma(one), 1, atol=1e-7)
  assert np.all(jax.jit(schedule.alpha)(ones) == 0)
  t = np.linspace(0, 1, 1001)
  first, last = base.alpha(t[0]), base.alpha(t[-1])
  wanted = (base.alpha(t) - last) * first / (first - last)
  np.testing.assert_allclose(schedule.alpha(t), wanted, atol=1e-15)
  assert schedule.alpha(t[0]) == pytest.approx(first, rel=1e-15)
  assert np.array_equal(schedule.model_time(t), base.model_time(t))


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_zero_terminal_snr_keeps_the_digits_of_small_noise(name):
  """sigma to 3e-6 in float32 where it is far below 1, and never sqrt(1 - alpha^2)."""
  schedule = schedules.zero_terminal_snr(build(name))
  t = np.geomspace(1e-6, 1e-2, 41).astype(np.float32)
  np.testing.assert_allclose(schedule.sigma(jnp.asarray(t)), schedule.sigma(t.astype(np.float64)), rtol=3e-6)


@pytest.mark.parametrize("shift", [0.25, 4.0])
@pytest.mark.parametrize("name", [*VARIANCE_PRESERVING, "rectified_flow"])
def test_a_shift_lowers_log_snr_everywhere_alike(name, shift):
  base, t = build(name), np.linspace(0.001, 0.999, 500)
  schedule = schedules.shifted(base, shift)
  np.testing.assert_allclose(schedule.log_snr(t), base.log_snr(t) - 2 * np.log(shift), atol=1e-12)
  undone = schedules.shifted(schedule, 1 / shift)
  np.testing.assert_allclose(undone.alpha(t), base.alpha(t), rtol=1e-13)
  np.testing.assert_allclose(undone.sigma(t), base.sigma(t), rtol=1e-13)
  if name != "rectified_flow":
    assert np.array_equal(schedule.model_time(t), base.model_time(t))


def test_a_shifted_flow_is_the_closed_form_of_the_paper():
  schedule, t = schedules.shifted(schedules.rectified_flow(), 3.0), np.linspace(0, 1, 101)
  np.testing.assert_allclose(schedule.sigma(t), 3 * t / (1 + 2 * t), rtol=1e-14)
  np.testing.assert_allclose(schedule.model_time(t), 1000 * 3 * t / (1 + 2 * t), rtol=1e-14)


def test_what_only_some_families_can_be_made_into_is_refused():
  with pytest.raises(ValueError, match="variance-preserving"):
    schedules.zero_terminal_snr(schedules.rectified_flow())
  with pytest.raises(ValueError, match="variance-preserving"):
    schedules.zero_terminal_snr(schedules.edm())
  with pytest.raises(ValueError, match="flows"):
    schedules.shifted(schedules.edm(), 2.0)


@pytest.mark.parametrize("name", ALL)
def test_time_of_log_snr_is_the_inverse(name):
  schedule = build(name)
  t = np.concatenate([np.geomspace(1e-5, 1e-3, 20), np.linspace(0.0011, 0.999, 300)])
  log_snr = schedule.log_snr(t)
  found = schedules.time_of_log_snr(schedule, log_snr)
  assert found.dtype == np.float64
  np.testing.assert_allclose(found, t, atol=1e-12)
  # A table takes a t within 2.4e-7 of one of its points for that point; a float32 next to 1 is 6e-8 from its neighbour.
  tolerance = 4e-7 if any(table in name for table in TABLES) else 1.5e-7
  single = np.asarray(log_snr, np.float32)
  exact = schedules.time_of_log_snr(schedule, single.astype(np.float64))
  for solve in (schedules.time_of_log_snr, jax.jit(schedules.time_of_log_snr, static_argnums=0)):
    found = solve(schedule, jnp.asarray(single))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, atol=tolerance)


def test_time_of_a_log_snr_beyond_the_schedule_is_its_nearer_end():
  for log_snr in (np.array([-30.0, 30.0]), jnp.asarray([-30.0, 30.0])):
    np.testing.assert_allclose(schedules.time_of_log_snr(schedules.cosine(), log_snr), [1, 0], atol=1e-8)


def gaussian_log_density(value, mean, variance):
  return -0.5 * ((value - mean) ** 2 / variance + np.log(2 * np.pi * variance))


@pytest.mark.parametrize("name", ALL)
@given(
  t=st.floats(0.2, 0.99),
  share=st.just(0.0) | st.floats(0.3, 0.9),
  x=st.floats(-1, 1),
  noise=st.floats(-3, 3),
)
def test_posterior_is_bayes_rule(name, t, share, x, noise):
  """log q(z_s | z_t, x) = log q(z_t | z_s) + log q(z_s | x) - log q(z_t | x), at any z_s.

  Times at which edm's sigma is not lost beside x: 2e-7 at s = 0.06.
  """
  schedule, (x, t, s) = build(name), np.array([x, t, t * share])
  (alpha_t, sigma_t), (alpha_s, sigma_s) = scales(schedule, t), scales(schedule, s)
  z = alpha_t * x + sigma_t * np.float64(noise)
  mean, variance = schedules.posterior(schedule, x, z, t, s)
  assert variance == schedules.posterior_variance(schedule, t, s, 0)
  if sigma_s == 0:
    assert (mean, variance) == (pytest.approx(x, abs=1e-12), 0)
    return
  forward = schedules.forward_variance(schedule, t, s, 0)
  z_s = mean + np.array([-2.0, 0.0, 1.0]) * variance**0.5
  wanted = (
    gaussian_log_density(z, alpha_t / alpha_s * z_s, forward)
    + gaussian_log_density(z_s, alpha_s * x, sigma_s**2)
    - gaussian_log_density(z, alpha_t * x, sigma_t**2)
  )
  np.testing.assert_allclose(gaussian_log_density(z_s, mean, variance), wanted, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
@given(t=st.floats(0.01, 0.99) | st.just(1.0), share=st.floats(0.0, 0.99))
def test_steps_forward_and_back_keep_the_marginals(name, t, share):
  """q(z_s | x) through q(z_t | z_s) is q(z_t | x); q(z_t | x) through q(z_s | z_t, x) is q(z_s | x)."""
  schedule, (t, s) = build(name), np.array([t, t * share])
  (alpha_t, sigma_t), (alpha_s, sigma_s) = scales(schedule, t), scales(schedule, s)
  forward = schedules.forward_variance(schedule, t, s, 0)
  assert (alpha_t / alpha_s * sigma_s) ** 2 + forward == pytest.approx(sigma_t**2, rel=1e-12)
  of_x, variance = schedules.posterior(schedule, np.float64(1), np.float64(0), t, s)
  of_z, _ = schedules.posterior(schedule, np.float64(0), np.float64(1), t, s)
  assert of_z * alpha_t + of_x == pytest.approx(alpha_s, rel=1e-9)
  assert (of_z * sigma_t) ** 2 + variance == pytest.approx(sigma_s**2, rel=1e-9, abs=1e-30)


def test_posterior_at_stride_one_is_ddpm_equation_7():
  schedule, i = schedules.linear(), 499
  betas = np.linspace(1e-4, 0.02, 1000)
  bars = np.cumprod(1 - betas)
  x, z, t, s = np.float64(0.4), np.float64(-1.1), np.float64((i + 1) / 1000), np.float64(i / 1000)
  mean, variance = schedules.posterior(schedule, x, z, t, s)
  wanted = np.sqrt(bars[i - 1]) * betas[i] * x + np.sqrt(1 - betas[i]) * (1 - bars[i - 1]) * z
  assert mean == pytest.approx(wanted / (1 - bars[i]), rel=1e-9)
  assert variance == pytest.approx((1 - bars[i - 1]) / (1 - bars[i]) * betas[i], rel=1e-9)
  assert schedules.forward_variance(schedule, t, s, 0) == pytest.approx(betas[i], rel=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_variances_of_a_thousand_float32_steps(name):
  """sigma_ts^2 is a difference of numbers near sigma_t^2, each known to a few 1e-7: sure to 2e-6 sigma_t^2, never negative.

  A zero-terminal alpha is what is left of a difference itself: near the end it has ten times fewer digits.  EDM's
  seventh power multiplies the rounding of its base by seven.
  """
  schedule = build(name)
  (t_single, t), (s_single, s) = (
    both_precisions(name, i / 1000) for i in (np.arange(2, 1001), np.arange(1, 1000))
  )
  lost = 2e-5 if name.startswith("zero_terminal") else 4e-6 if name == "edm" else 2e-6
  sigma_t, sigma_s = schedule.sigma(t), schedule.sigma(s)
  forward = np.asarray(schedules.forward_variance(schedule, t_single, s_single, 1))
  assert (forward >= 0).all()
  assert (np.abs(forward - schedules.forward_variance(schedule, t, s, 1)) <= lost * sigma_t**2 + 1e-37).all()
  back = np.asarray(schedules.posterior_variance(schedule, t_single, s_single, 1))
  assert (np.abs(back - schedules.posterior_variance(schedule, t, s, 1)) <= lost * sigma_s**2 + 1e-37).all()


def test_add_noise_has_the_promised_moments():
  schedule = schedules.cosine()
  eps = jnp.asarray(np.random.default_rng(0).standard_normal((4, 50, 50, 1)), jnp.float32)
  t = jnp.asarray([0.1, 0.4, 0.7, 0.9])
  z = schedules.add_noise(schedule, jnp.full_like(eps, 0.5), eps, t)
  np.testing.assert_allclose(z.mean((1, 2, 3)), 0.5 * schedule.alpha(t), atol=0.06)
  np.testing.assert_allclose(z.std((1, 2, 3)), schedule.sigma(t), rtol=0.05)
