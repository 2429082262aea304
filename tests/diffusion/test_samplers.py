import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.diffusion import samplers, schedules
from jaxdiff.types import Cond
from tests.diffusion import gaussian

SCHEDULE = schedules.cosine()
COND = Cond(jnp.zeros((1,), jnp.int32))


def solve(sampler, num_steps, z, key=0, schedule=SCHEDULE, times=None, function=samplers.sample):
  cond = Cond(jnp.zeros((len(z),), jnp.int32))
  times = samplers.time_grid(num_steps) if times is None else times
  key = jax.random.key(key) if isinstance(key, int) else key
  return function(sampler, schedule, gaussian.denoiser(schedule), key, z, times, cond)


@pytest.mark.parametrize("schedule", [schedules.cosine(), schedules.linear(), schedules.rectified_flow()])
def test_ddim_converges_to_the_probability_flow_with_order_one(schedule):
  z = jnp.linspace(-1.5, 1.5, 8).reshape(8, 1, 1, 1)
  wanted = gaussian.flow(schedule, z, np.float64(0.9), np.float64(0.1))
  errors = []
  for n in (8, 16, 32, 64):
    got = solve(samplers.ddim(), n, z, schedule=schedule, times=np.linspace(0.9, 0.1, n + 1))
    errors.append(float(jnp.abs(got - wanted).max()))
  orders = np.log2(np.divide(errors[:-1], errors[1:]))
  assert orders == pytest.approx([1, 1, 1], abs=0.2)


@pytest.mark.parametrize(
  "sampler", [samplers.ddpm(), samplers.ddim(), samplers.ddim(eta=0.5), samplers.ddim(eta=1.0)]
)
def test_samples_have_the_datas_mean_and_variance(sampler):
  z = jax.random.normal(jax.random.key(1), (20_000, 1, 1, 1))
  out = jax.jit(lambda z: solve(sampler, 200, z, key=2))(z)
  # Four standard errors of 20,000 draws, plus the method's own bias at 200 steps.
  assert float(out.mean()) == pytest.approx(gaussian.MEAN, abs=4 * gaussian.STD / 20_000**0.5 + 2e-3)
  assert float(out.std()) == pytest.approx(gaussian.STD, rel=4 / 40_000**0.5 + 0.02)


def test_ddim_with_eta_one_is_ddpm():
  z = jax.random.normal(jax.random.key(1), (4, 3, 3, 2))
  ddpm = solve(samplers.ddpm(), 10, z, function=samplers.path)
  ddim = solve(samplers.ddim(eta=1.0), 10, z, function=samplers.path)
  np.testing.assert_allclose(ddim, ddpm, atol=2e-5)


def test_eta_takes_its_variance_from_the_deterministic_part():
  """Whatever eta, z_s given the right x has the marginal q(z_s | x): variance sigma_s^2."""
  x, t, s = 0.2, jnp.float32(0.7), jnp.float32(0.4)
  eps, key = jax.random.normal(jax.random.key(0), (50_000, 1, 1, 1)), jax.random.key(1)
  z = schedules.add_noise(SCHEDULE, jnp.full_like(eps, x), eps, t)

  def exact(z, t, cond):
    from jaxdiff.types import Prediction

    return Prediction(x=jnp.full_like(z, x), eps=eps)

  for eta in (0.0, 0.6, 1.0):
    z_s, _ = samplers.ddim(eta).step(key, z, (), t, s, COND, exact, SCHEDULE)
    assert float(z_s.std()) == pytest.approx(float(SCHEDULE.sigma(s)), rel=0.015)
    assert float(z_s.mean()) == pytest.approx(x * float(SCHEDULE.alpha(s)), abs=0.02)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_the_last_step_returns_the_prediction_without_noise(name):
  schedule = schedules.linear()
  z = jax.random.normal(jax.random.key(1), (4, 2, 2, 1))
  out = solve(samplers.SAMPLERS[name](), 1, z, schedule=schedule, times=np.array([0.3, 0.0]))
  wanted = gaussian.denoiser(schedule)(z, jnp.full((4,), 0.3), None).x
  np.testing.assert_allclose(out, wanted, atol=1e-6)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_an_image_does_not_depend_on_the_batch_it_is_drawn_in(name):
  keys = jax.random.split(jax.random.key(3), 6)
  z = jax.random.normal(jax.random.key(4), (6, 3, 3, 1))
  whole = solve(samplers.SAMPLERS[name](), 4, z, key=keys)
  part = solve(samplers.SAMPLERS[name](), 4, z[3:], key=keys[3:])
  np.testing.assert_allclose(part, whole[3:], atol=1e-6)


def test_the_path_runs_from_the_noise_to_the_result():
  z = jax.random.normal(jax.random.key(0), (2, 3, 3, 1))
  out, path = solve(samplers.ddim(), 7, z), solve(samplers.ddim(), 7, z, function=samplers.path)
  assert path.shape == (8, 2, 3, 3, 1)
  assert (path[0] == z).all() and (path[-1] == out).all()


def test_the_time_grid_runs_from_one_to_zero_in_float64():
  grid = samplers.time_grid(50)
  assert grid.shape == (51,) and grid.dtype == np.float64
  assert grid[0] == 1 and grid[-1] == 0 and (np.diff(grid) < 0).all()


def test_one_trace_serves_every_eta_key_and_time():
  traces = []

  @jax.jit
  def run(eta, key, z, times):
    traces.append(1)
    return samplers.sample(samplers.ddim(eta), SCHEDULE, gaussian.denoiser(SCHEDULE), key, z, times, COND)

  z = jnp.ones((1, 2, 2, 1))
  for eta, seed, end in ((0.0, 0, 0.0), (0.7, 1, 0.1)):
    assert jnp.isfinite(run(eta, jax.random.key(seed), z, np.linspace(1, end, 5).astype(np.float32))).all()
  assert len(traces) == 1
