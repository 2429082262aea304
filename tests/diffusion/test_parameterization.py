import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxdiff.diffusion import parameterization

FAMILIES = {  # log-SNR -> (alpha, sigma)
  "vp": lambda log_snr: ((1 + np.exp(-log_snr)) ** -0.5, (1 + np.exp(log_snr)) ** -0.5),
  "flow": lambda log_snr: (1 / (1 + np.exp(-log_snr / 2)), 1 / (1 + np.exp(log_snr / 2))),
  "ve": lambda log_snr: (np.ones_like(log_snr), np.exp(-log_snr / 2)),
}
NAMES = parameterization.PARAMETERIZATIONS
HOME = {
  "eps": "vp",
  "x": "vp",
  "x_and_eps": "vp",
  "v": "vp",
  "velocity": "flow",
  "edm": "ve",
}  # where a parameterization comes from
log_snrs = st.floats(-20, 20)
everywhere = log_snrs | st.sampled_from([-np.inf, np.inf])  # t = 0; the end of a zero-terminal-SNR schedule


def scales(family, log_snr):
  with np.errstate(over="ignore"):
    return FAMILIES[family](np.float64(log_snr))


def is_defined(name, alpha, sigma):
  """eps says nothing of x where there is no signal, x nothing of eps where there is no noise; edm's VE has no such end."""
  return (
    np.isfinite(sigma) and not (name == "eps" and alpha == 0) and not (name.startswith("x") and sigma == 0)
  )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
@given(log_snr=everywhere, x=st.floats(-1, 1), eps=st.floats(-4, 4))
@example(log_snr=np.inf, x=0.3, eps=-1.5)
@example(log_snr=-np.inf, x=0.3, eps=-1.5)
def test_decoding_the_target_gives_back_x_and_eps(name, family, log_snr, x, eps):
  alpha, sigma = scales(family, log_snr)
  if not is_defined(name, alpha, sigma):
    return
  reading = NAMES[name]()
  prediction = reading.decode(reading.target(x, eps, alpha, sigma), alpha * x + sigma * eps, alpha, sigma)
  assert prediction.x == pytest.approx(x, abs=1e-9)
  assert prediction.eps == pytest.approx(eps, abs=1e-9)
  assert prediction.log_var is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
@given(log_snr=everywhere, z=st.floats(-4, 4), out=st.floats(-4, 4))
@example(log_snr=np.inf, z=0.7, out=-1.5)
@example(log_snr=-np.inf, z=0.7, out=-1.5)
def test_a_decoded_output_explains_z(name, family, log_snr, z, out):
  alpha, sigma = scales(family, log_snr)
  if not is_defined(name, alpha, sigma):
    return
  prediction = NAMES[name]().decode(out, z, alpha, sigma)
  assert alpha * prediction.x + sigma * prediction.eps == pytest.approx(z, abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
@given(log_snr=log_snrs | st.just(-np.inf), error=st.floats(0.1, 2))
@example(log_snr=-np.inf, error=1.0)
def test_error_scale_relates_the_error_of_the_output_to_that_of_x(name, family, log_snr, error):
  alpha, sigma = scales(family, log_snr)
  if not is_defined(name, alpha, sigma):
    return
  x, eps = 0.3, -0.7
  reading = NAMES[name]()
  out = reading.target(x, eps, alpha, sigma) + error
  x_error = reading.decode(out, alpha * x + sigma * eps, alpha, sigma).x - x
  assert error**2 == pytest.approx(reading.error_scale(alpha, sigma) * x_error**2, rel=1e-7)


@given(log_snr=log_snrs)
def test_error_scales_are_those_of_the_papers(log_snr):
  snr = np.exp(log_snr)
  scale = lambda name, family, **given: NAMES[name](**given).error_scale(*scales(family, log_snr))
  assert scale("eps", "vp") == pytest.approx(snr, rel=1e-9)
  assert scale("x", "vp") == 1
  assert scale("v", "vp") == pytest.approx(snr + 1, rel=1e-9)
  assert scale("velocity", "flow") == pytest.approx(1 / scales("flow", log_snr)[1] ** 2, rel=1e-9)
  assert scale("edm", "ve", sigma_data=0.4) == pytest.approx(snr + 1 / 0.4**2, rel=1e-9)


@pytest.mark.parametrize("name", ["x", "v", "velocity", "edm"])
@pytest.mark.parametrize("log_snr", [-20.0, -3.0, 0.0, 3.0, 20.0])
def test_float32_is_enough_at_all_noise_levels(name, log_snr):
  """What divides by neither alpha nor sigma gives x and eps to 1e-6 of their size; x gives eps to that over sigma."""
  draw = np.random.default_rng(0)
  x, eps = draw.uniform(-1, 1, 1000).astype(np.float32), draw.standard_normal(1000).astype(np.float32)
  alpha, sigma = map(np.float32, scales("flow" if name == "velocity" else "vp", log_snr))
  reading = NAMES[name]()
  scale = tuple(map(jnp.asarray, (alpha, sigma)))
  prediction = reading.decode(reading.target(x, eps, *scale), scale[0] * x + scale[1] * eps, *scale)
  np.testing.assert_allclose(prediction.x, x, atol=2e-6)
  np.testing.assert_allclose(prediction.eps, eps, atol=2e-6 / sigma if name == "x" else 2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_only_edm_changes_what_the_network_sees(name):
  z, (alpha, sigma) = np.array([-3.0, 0.5]), scales(HOME[name], 1.3)
  seen = NAMES[name]().encode(z, alpha, sigma)
  factor = (sigma**2 + 0.5**2) ** -0.5 if name == "edm" else 1
  np.testing.assert_allclose(seen, factor * z, rtol=1e-15)


def test_v_is_exact_at_both_ends():
  reading = parameterization.v()
  clean = reading.decode(np.float64(0.7), np.float64(0.2), np.float64(1), np.float64(0))
  assert (clean.x, clean.eps) == (0.2, 0.7)
  noise = reading.decode(np.float64(0.7), np.float64(0.2), np.float64(0), np.float64(1))
  assert (noise.x, noise.eps) == (-0.7, 0.2)


@pytest.mark.parametrize("family", FAMILIES)
@given(log_snr=everywhere, sigma_data=st.floats(0.1, 3))
def test_edm_shows_and_asks_for_unit_variance_at_every_noise_level(family, log_snr, sigma_data):
  """Both are linear in independent x and eps: the variance is that of x's share plus that of eps's."""
  alpha, sigma = scales(family, log_snr)
  if not np.isfinite(sigma):
    return
  reading = parameterization.edm(sigma_data)
  seen = [reading.encode(z, alpha, sigma) for z in (alpha * sigma_data, sigma)]
  asked = [reading.target(x, eps, alpha, sigma) for x, eps in ((sigma_data, 0.0), (0.0, 1.0))]
  assert np.square(seen).sum() == pytest.approx(1, rel=1e-12)
  assert np.square(asked).sum() == pytest.approx(1, rel=1e-12)


@given(log_snr=log_snrs, sigma_data=st.floats(0.1, 3), z=st.floats(-4, 4), out=st.floats(-3, 3))
def test_edm_is_the_papers_preconditioning_where_alpha_is_one(log_snr, sigma_data, z, out):
  """Karras et al. 2022, table 1."""
  alpha, sigma = scales("ve", log_snr)
  c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
  c_out = sigma * sigma_data / np.sqrt(sigma**2 + sigma_data**2)
  c_in = 1 / np.sqrt(sigma**2 + sigma_data**2)
  reading = parameterization.edm(sigma_data)
  assert reading.encode(z, alpha, sigma) == pytest.approx(c_in * z, rel=1e-12)
  assert reading.decode(out, z, alpha, sigma).x == pytest.approx(
    c_skip * z + c_out * out, rel=1e-12, abs=1e-12
  )
  x, eps = 0.4, (z - 0.4) / sigma
  assert reading.target(x, eps, alpha, sigma) == pytest.approx((x - c_skip * z) / c_out, rel=1e-9, abs=1e-9)


@given(log_snr=everywhere, z=st.floats(-4, 4), out=st.floats(-3, 3))
def test_edm_is_minus_v_for_variance_preserving_schedules_and_unit_data(log_snr, z, out):
  scale = scales("vp", log_snr)
  edm, v = parameterization.edm(sigma_data=1.0), parameterization.v()
  assert edm.target(0.3, z, *scale) == pytest.approx(-v.target(0.3, z, *scale), abs=1e-12)
  assert edm.encode(z, *scale) == pytest.approx(z, rel=1e-12)
  ours, theirs = edm.decode(out, z, *scale), v.decode(-out, z, *scale)
  assert (ours.x, ours.eps) == (pytest.approx(theirs.x, abs=1e-12), pytest.approx(theirs.eps, abs=1e-12))


@pytest.mark.parametrize("family", FAMILIES)
@given(log_snr=everywhere, x=st.floats(-1, 1), eps=st.floats(-4, 4), wrong=st.floats(-2, 2))
def test_x_and_eps_hears_each_where_it_is_known(family, log_snr, x, eps, wrong):
  """Both right gives x; without noise eps does not count, without signal x~ alone does."""
  alpha, sigma = scales(family, log_snr)
  if not np.isfinite(sigma):
    return
  combine = lambda x, eps: parameterization.x_and_eps().combine(np.array([x, eps]), z, alpha, sigma)
  z = alpha * x + sigma * eps
  assert combine(x, eps) == pytest.approx(x, abs=1e-9)
  if sigma == 0:
    assert combine(wrong, wrong) == pytest.approx(x, abs=1e-9)
  if alpha == 0:
    assert combine(x, wrong) == pytest.approx(x, abs=1e-9)
