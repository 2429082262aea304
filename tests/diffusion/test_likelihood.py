import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from jaxdiff.diffusion import likelihood, schedules
from jaxdiff.types import Prediction

LEVELS = np.linspace(-1, 1, 256)
HALF = 1 / 255
MEAN, STD = 0.1, 0.25


def log_mass(x, mean, std):
  """log of the mass of N(mean, std^2) in the bins of x, the outer ones without end, in float64."""
  law = scipy.stats.norm(mean, std)
  low = np.where(x < -1 + HALF, -np.inf, x - HALF)
  high = np.where(x > 1 - HALF, np.inf, x + HALF)
  right = low > mean  # there the survival function has the digits
  near, far = (
    np.where(right, law.logsf(low), law.logcdf(high)),
    np.where(right, law.logsf(high), law.logcdf(low)),
  )
  return near + np.log(-np.expm1(far - near))


@pytest.mark.parametrize("mean", [-7.0, -1.0, 0.0, 0.3, 0.997, 1.5])
@pytest.mark.parametrize("std", [1e-4, 1e-2, 0.1, 1.0, 10.0])
def test_discretized_log_prob_is_the_mass_of_the_bins(mean, std):
  """float32 knows log_ndtr to 1e-6 of itself, a bin's ends to 1e-7, and a wide law's bin is a difference of large values."""
  mean, log_variance = np.float32(mean), np.float32(2 * math.log(std))
  got = likelihood.discretized_log_prob(jnp.asarray(LEVELS, jnp.float32), mean, log_variance)
  got = np.asarray(got, np.float64)
  wanted = log_mass(LEVELS, np.float64(mean), math.exp(log_variance / 2))
  assert np.isfinite(got).all()
  assert np.exp(got).sum() == pytest.approx(1, abs=3e-6)
  slope = np.sqrt(2 * np.abs(wanted)) / std  # of the log mass in the tails
  allowed = 2e-6 * np.maximum(1, np.abs(wanted)) + 1e-7 * slope * (1 + abs(mean)) + 3e-7 * std / HALF
  assert (np.abs(got - wanted) <= allowed).all()


@pytest.mark.parametrize("log_var", [-18.0, -9.0, 0.0])
def test_discretized_log_prob_can_be_learned_from_everywhere(log_var):
  slopes = jax.vmap(jax.grad(likelihood.discretized_log_prob, (1, 2)), (0, None, None))
  for slope in slopes(jnp.asarray(LEVELS, jnp.float32), jnp.float32(0.9), jnp.float32(log_var)):
    assert jnp.isfinite(slope).all()


@pytest.mark.parametrize(("mean", "std", "mean_2", "std_2"), [(0.3, 0.5, -0.2, 0.8), (1.0, 2.0, 0.9, 0.7)])
def test_gaussian_kl_is_its_integral(mean, std, mean_2, std_2):
  p, q = scipy.stats.norm(mean, std), scipy.stats.norm(mean_2, std_2)
  wanted, _ = scipy.integrate.quad(lambda u: p.pdf(u) * (p.logpdf(u) - q.logpdf(u)), -20, 20)
  log_variances = (jnp.float32(2 * math.log(s)) for s in (std, std_2))
  got = likelihood.gaussian_kl(mean, next(log_variances), mean_2, next(log_variances))
  assert float(got) == pytest.approx(wanted, rel=1e-5)
  assert likelihood.gaussian_kl(jnp.float32(mean), jnp.float32(0.7), mean, jnp.float32(0.7)) == 0


@pytest.mark.parametrize("name", ["linear", "cosine", "scaled_linear", "edm"])
def test_the_prior_is_its_closed_form(name):
  """Down to 1e-7, which is float32's at 1."""
  schedule, level = schedules.SCHEDULES[name](), 0.6
  got = likelihood.prior(schedule, jnp.full((2, 4, 4, 1), level), jnp.float32(1))
  a2, s2 = schedule.alpha(np.float64(1)) ** 2, schedule.sigma(np.float64(1)) ** 2
  wanted = 0.5 * ((a2 * level**2 + s2) / (a2 + s2) - 1 - math.log(s2 / (a2 + s2))) / math.log(2)
  np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-7)
  assert wanted < {"linear": 2e-5, "cosine": 1e-8, "scaled_linear": 2e-3, "edm": 1e-4}[name]


def images(num, side):
  """Draws of N(MEAN, STD^2) as bytes brought to [-1, 1]."""
  draw = np.random.default_rng(0).normal(MEAN, STD, (num, side, side, 1))
  return LEVELS[np.clip(np.round((draw + 1) / (2 * HALF)), 0, 255).astype(int)]


def exact_denoiser(schedule, num_steps):
  """E[x | z_t] for x ~ N(MEAN, STD^2) and, for the grid of num_steps, the variance of p(z_s | z_t) as `learned` reads it.

  p(z_s | z_t) has the posterior's variance and that of its mean's x, c^2 Var(x | z_t) with c = alpha_s sigma_ts^2 / sigma_t^2.
  """

  def denoise(z, t, cond):
    del cond
    t = schedules.match(t, z.ndim)
    s = jnp.where(t < 1.5 / num_steps, 0.0, t - 1 / num_steps)
    (alpha, sigma), (alpha_s, _) = schedules.alpha_sigma(schedule, t), schedules.alpha_sigma(schedule, s)
    gain = STD**2 / ((alpha * STD) ** 2 + sigma**2)
    x = MEAN + alpha * gain * (z - alpha * MEAN)
    forward = schedules.forward_variance(schedule, t, s)
    of_mean = (alpha_s * forward / sigma**2) ** 2 * gain * sigma**2
    variance = schedules.posterior_variance(schedule, t, s) + of_mean
    # Where s = 0, beta-tilde is that of a step to t; from t = 1 on, where there is none, that of the step's half.
    late = jnp.where(s <= 0, jnp.minimum(2 * t, 1), t)
    low = jnp.log(schedules.posterior_variance(schedule, late, jnp.where(s <= 0, late / 2, s)))
    fraction = (jnp.log(variance) - low) / (jnp.log(forward) - low)
    return Prediction(x=x, eps=(z - alpha * x) / sigma, log_var=jnp.broadcast_to(fraction, z.shape))

  return denoise


def bound(name, num_steps, x, variance, denoise=None):
  schedule = schedules.SCHEDULES[name]()
  denoise = denoise or exact_denoiser(schedule, num_steps)
  times = np.linspace(1, 0, num_steps + 1)
  run = jax.jit(lambda x: likelihood.bound(schedule, denoise, jax.random.key(1), x, times, None, variance))
  return run(jnp.asarray(x, jnp.float32))


@pytest.mark.parametrize(
  ("name", "num_steps"), [*(("linear", n) for n in (1, 2, 10, 100)), ("cosine", 1), ("cosine", 10)]
)
def test_the_bound_is_tight_for_the_exact_model(name, num_steps):
  """KL(q(z | x) || p(z | x)) = 0, so for every image the mean over z is -log2 of the probability of its bytes.

  Within 3 standard errors over the images and the prior's term, which p(z_1) = N(0, 1) adds and is known.  The bound's x is
  a bin's middle: that costs r^2 / 4 for r = SNR times the bin's variance, under 1e-5 here.
  """
  x = images(32, 48)
  got = bound(name, num_steps, x, "learned")
  assert got.steps.shape == (num_steps - 1, 32) and got.prior.shape == got.decoder.shape == (32,)
  exact = -log_mass(x, MEAN, STD).mean((1, 2, 3)) / math.log(2)
  excess = np.asarray(got.total, np.float64) - exact
  error = excess.std(ddof=1) / 32**0.5
  assert error < 7e-3
  assert abs(excess.mean()) < 3 * error + 5e-5


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_a_fixed_variance_costs_bits_that_more_steps_bring_back(variance):
  """Against the exact variance on the same draws: a step's cost is of second order, so four times the steps leave a quarter.

  Over the steps from 1 to 0.1.  Nearer to 0 every octave of noise has as few steps as the one before, for any N.
  """
  x, excess = images(8, 16), []
  for num_steps in (10, 40):
    fixed, exact = (bound("linear", num_steps, x, rule) for rule in (variance, "learned"))
    assert (fixed.total > exact.total + 0.01).all()
    late = slice(0, num_steps * 9 // 10)
    excess.append(float((fixed.steps[late].sum(0) - exact.steps[late].sum(0)).mean()))
  assert 0 < excess[1] < excess[0] / 3


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_fixed_variance_is_not_what_the_network_says(name, variance):
  x = images(2, 8)
  denoise = exact_denoiser(schedules.SCHEDULES[name](), 8)
  silent = lambda z, t, cond: denoise(z, t, cond)._replace(log_var=None)
  got, wanted = (bound(name, 8, x, variance, network) for network in (denoise, silent))
  for mine, other in zip(got, wanted, strict=True):
    np.testing.assert_array_equal(mine, other)


def test_learned_variance_needs_a_network_that_predicts_it():
  silent = lambda z, t, cond: Prediction(x=z, eps=z)
  with pytest.raises(ValueError, match="predicts no variance"):
    bound("linear", 4, images(1, 4), "learned", silent)


def test_a_step_is_the_divergence_of_its_gaussians_in_bits():
  """For fixed_small, of equal variances: the squared difference of the means over twice the variance."""
  schedule, t, s = schedules.linear(), np.float64(0.5), np.float64(0.4)
  x, z, x_hat = np.full((1, 2, 2, 1), 0.3), np.full((1, 2, 2, 1), -0.8), np.full((1, 2, 2, 1), 0.1)
  mean, variance = schedules.posterior(schedule, x, z, t, s)
  mean_hat, _ = schedules.posterior(schedule, x_hat, z, t, s)
  wanted = np.mean((mean - mean_hat) ** 2 / (2 * variance)) / math.log(2)
  prediction = Prediction(x=jnp.asarray(x_hat, jnp.float32), eps=jnp.zeros_like(x_hat))
  given = (jnp.asarray(value, jnp.float32) for value in (x, z, t, s))
  got = likelihood.step(schedule, prediction, *given, likelihood.VARIANCES["fixed_small"])
  np.testing.assert_allclose(got, [wanted], rtol=1e-4)


def test_an_images_terms_come_from_its_own_key():
  schedule, keys = schedules.linear(), jax.random.split(jax.random.key(4), 3)
  x, times, denoise = (
    jnp.asarray(images(3, 6), jnp.float32),
    np.linspace(1, 0, 5),
    exact_denoiser(schedules.linear(), 4),
  )
  run = jax.jit(lambda keys, x: likelihood.bound(schedule, denoise, keys, x, times, None, "learned").total)
  whole, alone = run(keys, x), run(keys[1:2], x[1:2])
  np.testing.assert_allclose(alone[0], whole[1], rtol=1e-5)


def test_random_steps_average_to_the_bound_without_its_prior():
  """T times the term at a t uniform over the table: over all T of them the mean is the sum of steps and decoder."""
  num_steps, schedule = 8, schedules.linear()
  denoise = exact_denoiser(schedule, num_steps)
  x = jnp.asarray(images(1, 16), jnp.float32)
  t = jnp.arange(num_steps, 0, -1) / num_steps
  at = jnp.broadcast_to(x, (num_steps, *x.shape[1:]))
  eps = jnp.stack(
    [jax.random.normal(jax.random.fold_in(jax.random.key(1), i), x.shape)[0] for i in range(num_steps)]
  )
  z = schedules.add_noise(schedule, at, eps, t)
  term = jax.jit(lambda z: likelihood.random_step(schedule, denoise(z, t, None), at, z, t, num_steps))
  terms = term(z)
  got = bound("linear", num_steps, x, "learned")
  np.testing.assert_allclose(terms / num_steps, [*got.steps[:, 0], got.decoder[0]], rtol=1e-3, atol=1e-6)
