import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdiff.diffusion import parameterization

ANGLES = st.floats(0.01, 1.56)  # alpha = cos, sigma = sin: log-SNR from 9.2 to -9.1
NAMES = parameterization.PARAMETERIZATIONS


def scales(name, angle):
  if name == "velocity":
    share = angle / 1.57
    return np.float64(1 - share), np.float64(share)
  return np.cos(np.float64(angle)), np.sin(np.float64(angle))


@pytest.mark.parametrize("name", NAMES)
@given(angle=ANGLES, x=st.floats(-1, 1), eps=st.floats(-4, 4))
def test_decoding_the_target_gives_back_x_and_eps(name, angle, x, eps):
  alpha, sigma = scales(name, angle)
  reading = NAMES[name]()
  prediction = reading.decode(reading.target(x, eps, alpha, sigma), alpha * x + sigma * eps, alpha, sigma)
  assert prediction.x == pytest.approx(x, abs=1e-9)
  assert prediction.eps == pytest.approx(eps, abs=1e-9)
  assert prediction.log_var is None


@pytest.mark.parametrize("name", NAMES)
@given(angle=ANGLES, x=st.floats(-1, 1), eps=st.floats(-4, 4), out=st.floats(-4, 4))
def test_a_decoded_output_explains_z(name, angle, x, eps, out):
  alpha, sigma = scales(name, angle)
  z = alpha * x + sigma * eps
  prediction = NAMES[name]().decode(out, z, alpha, sigma)
  assert alpha * prediction.x + sigma * prediction.eps == pytest.approx(z, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
@given(angle=ANGLES, error=st.floats(0.1, 2))
def test_error_scale_relates_the_error_of_the_output_to_that_of_x(name, angle, error):
  alpha, sigma = scales(name, angle)
  x, eps = 0.3, -0.7
  reading = NAMES[name]()
  out = reading.target(x, eps, alpha, sigma) + error
  x_error = reading.decode(out, alpha * x + sigma * eps, alpha, sigma).x - x
  assert error**2 == pytest.approx(reading.error_scale(alpha, sigma) * x_error**2, rel=1e-7)


def test_v_is_exact_at_both_ends():
  reading = parameterization.v()
  clean = reading.decode(np.float64(0.7), np.float64(0.2), np.float64(1), np.float64(0))
  assert (clean.x, clean.eps) == (0.2, 0.7)
  noise = reading.decode(np.float64(0.7), np.float64(0.2), np.float64(0), np.float64(1))
  assert (noise.x, noise.eps) == (-0.7, 0.2)
