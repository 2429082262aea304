"""Samplers on a mixture of Gaussians, whose denoiser is exact: what is left are the samplers' own errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxdiff.diffusion import first_order, guidance, higher_order, samplers, schedules
from jaxdiff.types import NULL_LABEL, Cond
from tests.diffusion import mixture
from tests.diffusion.mixture import THREE

COSINE = schedules.cosine()
TO_NOISE = {
  "zero_terminal_snr": schedules.zero_terminal_snr(schedules.linear()),
  "rectified_flow": schedules.rectified_flow(),
}
FINEST = 256
DISTINCT = ("ddpm", "ddim", "heun", "dpmpp_2m", "dpmpp_3m", "dpmpp_sde_2m", "unipc")  # the others are ddim


def solve(sampler, schedule, z, times, key=0, data=THREE, cond=None, function=samplers.sample):
  key = jax.random.key(key) if isinstance(key, int) else key
  return function(sampler, schedule, mixture.denoiser(data, schedule), key, z, times, cond)


def last_order(errors):
  return np.log2(errors[-2] / errors[-1])


@pytest.fixture(scope="module", params=["linear", "cosine"])
def exact(request):
  """A schedule, FINEST + 1 times and where the probability flow is at each, for six images drawn at the first."""
  schedule, times = schedules.SCHEDULES[request.param](), np.linspace(0.95, 0.1, FINEST + 1)
  eps = np.random.default_rng(0).standard_normal((6, 1, 1, 2))
  z = schedule.alpha(times[0]) * mixture.draw(THREE, 6) + schedule.sigma(times[0]) * eps
  return schedule, times, mixture.flow(THREE, schedule, z, times)


@pytest.mark.parametrize(
  ("name", "known", "low", "high"),
  [
    ("ddim", 0, 0.9, 1.1),
    ("heun", 0, 1.9, 2.1),
    ("dpmpp_2m", 0, 1.9, 2.25),
    ("dpmpp_3m", 0, 2.0, 3.2),  # its first two steps are of lower order
    ("dpmpp_3m", 2, 2.8, 3.25),
    ("unipc", 0, 2.8, 3.25),
  ],
)
def test_halving_the_steps_shows_the_order_of_convergence(exact, name, known, low, high):
  """The first `known` steps start on the exact flow, which fills a multistep method's memory with exact predictions."""
  schedule, times, states = exact
  sampler = samplers.SAMPLERS[name]()
  errors = []
  with jax.enable_x64(True):
    key, denoise = jax.random.key(0), mixture.denoiser(THREE, schedule)
    step = jax.jit(lambda z, carry, t, s: sampler.step(key, z, carry, t, s, None, denoise, schedule))
    for stride in (4, 2, 1):
      at, wanted = times[::stride], states[::stride]
      z, carry = jnp.asarray(wanted[0]), sampler.init(jnp.asarray(wanted[0]))
      for i in range(len(at) - 1):
        z, carry = step(wanted[i] if i <= known else z, carry, at[i], at[i + 1])
      errors.append(np.abs(z - wanted[-1]).max())
  assert low < last_order(errors) < high


def spread(monkeypatch, sampler, denoise, schedule, variance, times):
  """The variance of z at times[-1], exactly, for one pixel of variance `variance` at times[0] and a linear denoiser.

  z_s is then linear in the first z and in every draw; a step is given its draw as its key.
  """
  for module in (first_order, higher_order):
    monkeypatch.setattr(module, "noise_like", lambda key, z: key)

  def run(z, noise):
    def body(loop, now):
      return sampler.step(now[0], *loop, now[1], now[2], None, denoise, schedule), None

    return jax.lax.scan(body, (z, sampler.init(z)), (noise, times[:-1], times[1:]))[0][0]

  with jax.enable_x64(True):
    of_z, of_noise = jax.jit(jax.jacrev(run, (0, 1)))(
      jnp.ones((1, 1, 1, 1)), jnp.ones((len(times) - 1, 1, 1, 1, 1))
    )
    return float(of_z.item() ** 2 * variance + (of_noise**2).sum())


@pytest.mark.parametrize(
  ("sampler", "order"),
  [
    (samplers.ddpm(), 1),
    (samplers.ddpm("fixed_large"), 1),
    (samplers.ddim(0.5), 1),
    (samplers.euler_ancestral(), 1),
    (samplers.dpmpp_sde_2m(), 2),
  ],
  ids=["ddpm", "fixed_large", "ddim_0.5", "euler_ancestral", "dpmpp_sde_2m"],
)
def test_the_variance_of_a_stochastic_sampler_converges_with_its_order(monkeypatch, sampler, order):
  data = mixture.gaussian([0.3], [[0.25]])
  (_, start), (_, wanted) = (mixture.moments(data, COSINE.alpha(t), COSINE.sigma(t)) for t in (0.95, 0.1))
  errors = []
  for n in (64, 128):
    times = np.linspace(0.95, 0.1, n + 1)
    got = spread(monkeypatch, sampler, mixture.denoiser(data, COSINE), COSINE, start.item(), times)
    errors.append(abs(got - wanted.item()))
  assert last_order(errors) == pytest.approx(order, abs=0.15)


FEW = np.linspace(0.95, 0.2, 4)  # three long steps


def knowing(schedule, data, times):
  """The exact denoiser with the exact learned share f of the variance of p(z_s | z_t), for the steps of one grid.

  Var[z_s | z_t] = beta-tilde + (alpha_s sigma_ts^2 / sigma_t^2)^2 Var[x | z_t].
  """
  base, std2 = mixture.denoiser(data, schedule), data.covariances.item()

  def denoise(z, t, cond):
    s = t - (times[0] - times[1])
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (schedules.alpha_sigma(schedule, u) for u in (t, s))
    large = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
    small = large * sigma_s**2 / sigma_t**2
    of_x = std2 * sigma_t**2 / (alpha_t**2 * std2 + sigma_t**2)
    right = small + (alpha_s * large / sigma_t**2) ** 2 * of_x
    share = (jnp.log(right) - jnp.log(small)) / (jnp.log(large) - jnp.log(small))
    return base(z, t, cond)._replace(log_var=share + 0 * z)

  return denoise


@pytest.mark.parametrize(
  ("sampler", "variance"),
  [
    (samplers.ddpm("fixed_small"), 0.0),
    (samplers.ddpm("fixed_large"), 1.0),
    (samplers.ddpm("learned"), 0.25),
    (samplers.ddim(0.0), 0.0),
    (samplers.ddim(0.6), 0.0),
    (samplers.ddim(1.0), 0.0),
    (samplers.dpmpp_sde_2m(), 0.0),
  ],
  ids=["fixed_small", "fixed_large", "learned", "ddim_0", "ddim_0.6", "ddim_1", "dpmpp_sde_2m"],
)
def test_the_variance_is_right_in_few_steps_for_the_data_it_is_made_for(monkeypatch, sampler, variance):
  """beta-tilde and any eta: data without spread; beta: data that is noise; the learned one: what the network knows."""
  data = mixture.gaussian([0.0], [[variance]])
  (_, start), (_, wanted) = (mixture.moments(data, COSINE.alpha(t), COSINE.sigma(t)) for t in FEW[[0, -1]])
  got = spread(monkeypatch, sampler, knowing(COSINE, data, FEW), COSINE, start.item(), FEW)
  assert got == pytest.approx(wanted.item(), rel=1e-9)


def test_a_learned_variance_needs_a_network_that_predicts_one():
  with pytest.raises(ValueError, match="predicts no variance"):
    solve(samplers.ddpm("learned"), COSINE, jnp.zeros((1, 1, 1, 2)), FEW)


@pytest.mark.parametrize("name", DISTINCT)
@pytest.mark.parametrize("schedule", TO_NOISE.values(), ids=TO_NOISE)
def test_samples_from_nothing_but_noise_have_the_datas_moments(name, schedule):
  """alpha_1 = 0: the first step leaves from an infinite noise level."""
  count = 8192
  z = jax.random.normal(jax.random.key(1), (count, 1, 1, 2))
  run = jax.jit(lambda z: solve(samplers.SAMPLERS[name](), schedule, z, samplers.time_grid(100)))
  out = np.asarray(run(z), np.float64).reshape(count, 2)
  mean, covariance = mixture.moments(THREE)
  variance = np.diag(covariance)
  # Four standard errors, and for the variance 6% that methods of first order lose in 100 steps (ddpm; 3% in 200).
  np.testing.assert_array_less(np.abs(out.mean(0) - mean), 4 * (variance / count) ** 0.5)
  bound = 4 * (2 / count) ** 0.5 * np.sqrt(np.outer(variance, variance)) + 0.06 * np.diag(variance)
  np.testing.assert_array_less(np.abs(np.cov(out.T) - covariance), bound)


ONE_STEP = st.tuples(st.floats(0.01, 1.0), st.floats(0.0, 0.99), st.integers(0, 2**31 - 1))


def one_step(sampler, schedule, data=THREE):
  """(t, share, seed) -> z_t, what the denoiser says of it, and z_s for s = share t; one compilation."""
  denoise = mixture.denoiser(data, schedule)

  @jax.jit
  def run(t, s, seed):
    key = jax.random.key(seed)
    z = jax.random.normal(jax.random.fold_in(key, 0), (4, 1, 1, 2)) * (schedule.sigma(t) + schedule.alpha(t))
    prediction = denoise(z, jnp.full((4,), t), None)
    return z, prediction, sampler.step(key, z, sampler.init(z), t, s, None, denoise, schedule)[0]

  return lambda t, share, seed: run(jnp.float32(t), jnp.float32(t * share), seed)


DDPM, DDIM_ONE = (one_step(s, COSINE) for s in (samplers.ddpm(), samplers.ddim(1.0)))
POINT = mixture.gaussian([0.3, -0.4], np.zeros((2, 2)))
DDPM_POINT, SDE_POINT = (one_step(s, COSINE, POINT) for s in (samplers.ddpm(), samplers.dpmpp_sde_2m()))
FLOW = one_step(samplers.euler(), schedules.rectified_flow())
EDM = schedules.edm(sigma_max=10.0)
EXPLODING = one_step(samplers.euler(), EDM)


@settings(max_examples=50)
@given(ONE_STEP)
@example((1.0, 0.0, 0))
def test_ddim_with_eta_one_is_ddpm(step):
  np.testing.assert_allclose(DDIM_ONE(*step)[2], DDPM(*step)[2], atol=1e-5)


@settings(max_examples=50)
@given(ONE_STEP)
@example((1.0, 0.0, 0))
def test_the_sde_of_a_known_image_is_ddpm(step):
  np.testing.assert_allclose(SDE_POINT(*step)[2], DDPM_POINT(*step)[2], atol=1e-5)


@settings(max_examples=50)
@given(ONE_STEP)
def test_eulers_step_is_along_the_slope_of_the_flow(step):
  """Rectified flow: dz/dt = eps - x.  Variance exploding: dz/dsigma = (z - x) / sigma (Karras et al. 2022, eq. 4)."""
  t, share, _ = step
  z, prediction, z_s = FLOW(*step)
  np.testing.assert_allclose(z_s, z + t * (share - 1) * (prediction.eps - prediction.x), atol=1e-5)
  z, prediction, z_s = EXPLODING(*step)
  now, then = EDM.sigma(np.float64(t)), EDM.sigma(np.float64(t * share))
  np.testing.assert_allclose(z_s, z + (then / now - 1) * (z - prediction.x), atol=1e-5 * (1 + now))


@pytest.mark.parametrize("sampler", [samplers.ddim, samplers.SAMPLERS["euler_ancestral"]])
@pytest.mark.parametrize("eta", [2, -0.1, np.float32(1.5)])
def test_an_eta_outside_its_range_is_refused(sampler, eta):
  with pytest.raises(ValueError, match=r"is not in \[0, 1\]"):
    sampler(eta)


@pytest.mark.parametrize(("name", "eta"), [("euler", 0.0), ("dpmpp_1", 0.0), ("euler_ancestral", 1.0)])
def test_other_names_of_ddim(name, eta):
  z, times = jax.random.normal(jax.random.key(1), (4, 1, 1, 2)), samplers.time_grid(6)
  pair = samplers.SAMPLERS[name](), samplers.ddim(eta)
  got, wanted = (solve(s, COSINE, z, times, function=samplers.path) for s in pair)
  assert (got == wanted).all()


@pytest.mark.parametrize("name", DISTINCT)
def test_float32_is_accurate_from_log_snr_minus_20_to_20(monkeypatch, name):
  """To 2e-4 of float64, images being of size 1, with steps too short for a difference of neighbours to have digits."""
  for module in (first_order, higher_order):
    monkeypatch.setattr(module, "noise_like", lambda key, z: jnp.full_like(z, 0.3))
  ends = [1, 0.9999, 0.999], [1e-3, 1e-4, 1e-6, 0]
  times = np.concatenate([ends[0], np.linspace(0.998, 2e-3, 500), ends[1]]).astype(np.float32)
  z = np.random.default_rng(0).standard_normal((8, 1, 1, 2)).astype(np.float32)
  run = jax.jit(lambda z, times: solve(samplers.SAMPLERS[name](), COSINE, z, times, function=samplers.path))
  single = run(z, times)
  with jax.enable_x64(True):
    double = run(z.astype(np.float64), times.astype(np.float64))
  assert single.dtype == np.float32 and double.dtype == np.float64
  np.testing.assert_allclose(single, double, atol=2e-4)


@pytest.mark.parametrize("name", ["ddpm", "unipc"])
def test_bfloat16_images_are_computed_in_float32(name):
  z = jax.random.normal(jax.random.key(1), (4, 1, 1, 2), jnp.bfloat16)
  run = jax.jit(
    lambda z: solve(samplers.SAMPLERS[name](), COSINE, z, samplers.time_grid(6), function=samplers.path)
  )
  half, single = run(z), run(z.astype(jnp.float32))
  assert half.dtype == jnp.bfloat16 and single.dtype == jnp.float32
  assert (half == single.astype(jnp.bfloat16)).all() and jnp.isfinite(half).all()


@pytest.mark.parametrize("name", DISTINCT)
@pytest.mark.parametrize("schedule", [schedules.linear(), COSINE], ids=["linear", "cosine"])
def test_the_last_step_returns_the_prediction_without_noise(name, schedule):
  """x; or z_0's prediction, x and sigma_0 eps, where sigma_0 is not 0 (cosine: 4.5e-5)."""
  z, t = jax.random.normal(jax.random.key(1), (64, 1, 1, 2)), jnp.float32(0.3)
  sampler, denoise = samplers.SAMPLERS[name](), mixture.denoiser(THREE, schedule)
  step = jax.jit(lambda key: sampler.step(key, z, sampler.init(z), t, 0.0 * t, None, denoise, schedule)[0])
  out = step(jax.random.key(0))
  assert (out == step(jax.random.key(1))).all()
  prediction, sigma_0 = denoise(z, jnp.full((64,), t), None), float(schedule.sigma(np.float64(0)))
  np.testing.assert_array_less(jnp.abs(out - prediction.x), 2e-6 + 1.01 * sigma_0 * jnp.abs(prediction.eps))


@pytest.mark.parametrize("name", DISTINCT)
def test_an_image_does_not_depend_on_the_batch_it_is_drawn_in(name):
  keys = jax.random.split(jax.random.key(3), 6)
  z = jax.random.normal(jax.random.key(4), (6, 1, 1, 2))
  run = jax.jit(lambda key, z: solve(samplers.SAMPLERS[name](), COSINE, z, samplers.time_grid(4), key=key))
  np.testing.assert_allclose(run(keys[3:], z[3:]), run(keys, z)[3:], atol=1e-6)


def test_the_path_runs_from_the_noise_to_the_result():
  z, times = jax.random.normal(jax.random.key(0), (2, 1, 1, 2)), samplers.time_grid(7)
  out, path = (solve(samplers.ddim(), COSINE, z, times, function=f) for f in (samplers.sample, samplers.path))
  assert path.shape == (8, 2, 1, 1, 2)
  assert (path[0] == z).all() and (path[-1] == out).all()


def test_one_trace_a_number_of_steps_serves_every_scale_label_seed_eta_and_time():
  traces = []

  @jax.jit
  def run(scale, label, seed, eta, times):
    traces.append(len(times) - 1)
    denoise = guidance.classifier_free(mixture.denoiser(THREE, COSINE), scale)
    z = jnp.ones((3, 1, 1, 2))
    return samplers.sample(samplers.ddim(eta), COSINE, denoise, jax.random.key(seed), z, times, Cond(label))

  plain = (1.5, jnp.array([0, 1, 2]), 0, 0.5, np.linspace(1, 0, 5))
  others = {0: 4.0, 1: jnp.array([2, NULL_LABEL, 1]), 2: 7, 3: 0.0, 4: np.linspace(1, 0, 5) ** 2}
  base = run(*plain)
  for i, other in others.items():
    assert (run(*plain[:i], other, *plain[i + 1 :]) != base).any(), i
  run(*plain[:4], np.linspace(1, 0, 8)), run(3.0, *plain[1:4], np.linspace(1, 0, 8))
  assert traces == [4, 7]
