"""The toy's denoiser is exact, and every explaining picture is a picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import explain, toy
from jaxdiff.diffusion import samplers, schedules
from jaxdiff.types import NULL_LABEL, Cond

COSINE = schedules.cosine()
TIMES = np.array([0.1, 0.5, 0.9])
PLANE = toy.three_classes()


@pytest.mark.parametrize("label", [NULL_LABEL, 1])
def test_the_toys_denoiser_is_the_conditional_mean(label):
  """E[x | z] by importance: draws of x (of the label), weighted by q(z | x)."""
  x, labels = toy.draw(PLANE, 400_000)
  x = x[(labels == label) | (label == NULL_LABEL)].reshape(-1, 2)
  z, t = np.array([0.3, -0.4], np.float32), 0.5
  alpha, sigma = COSINE.alpha(t), COSINE.sigma(t)
  weight = np.exp(-np.sum((z - alpha * x) ** 2, axis=-1) / (2 * sigma**2))
  mean = weight @ x / weight.sum()
  said = toy.denoiser(PLANE, COSINE)(
    jnp.asarray(z).reshape(1, 1, 1, 2), jnp.array([t]), Cond(jnp.array([label]))
  )
  np.testing.assert_allclose(said.x.ravel(), mean, atol=5e-3)
  np.testing.assert_allclose(alpha * said.x + sigma * said.eps, z.reshape(1, 1, 1, 2), atol=1e-6)


def test_a_mixture_of_doubles_is_drawn_and_denoised_as_doubles():
  mixture = PLANE._replace(means=PLANE.means.astype(np.float64))
  x, label = toy.draw(mixture, 4)
  with jax.enable_x64(True):
    said = toy.denoiser(mixture, COSINE)(jnp.asarray(x), jnp.full(4, 0.5), Cond(jnp.asarray(label)))
  assert {x.dtype, said.x.dtype, said.eps.dtype} == {np.dtype(np.float64)}


def test_the_digits_are_drawn_by_their_own_denoiser():
  """From noise, under a label, each ends at a digit of that label."""
  digits, label = toy.digits(std=0.02), np.arange(10)
  times = samplers.time_grid(20, "uniform", COSINE)
  noise = jax.random.normal(jax.random.key(0), (10, 8, 8, 1))
  drawn = samplers.sample(
    samplers.ddim(),
    COSINE,
    toy.denoiser(digits, COSINE),
    jax.random.key(1),
    noise,
    times,
    Cond(jnp.asarray(label)),
  )
  off = np.abs(np.asarray(drawn)[:, None] - digits.means).max(axis=(2, 3, 4))
  assert (digits.labels[off.argmin(axis=1)] == label).all() and off.min(axis=1).max() < 0.2


def test_guidance_leads_away_from_other_classes():
  """At a higher scale points of class 0 end farther out, on its side."""
  denoise = toy.denoiser(PLANE, COSINE)
  far = []
  for scale in (1.0, 4.0):
    guided = explain.guidance.classifier_free(denoise, scale)
    ends = explain.follow(samplers.ddim(), COSINE, guided, np.zeros(64, int), 20)[-1]
    far.append(ends[:, 0].mean())
  assert far[1] > far[0] + 0.1 and abs(far[0] - 0.8) < 0.1


def test_pictures():
  digits = toy.digits()
  named = {"ddim": samplers.ddim(), "dpmpp_2m": samplers.dpmpp_2m()}
  denoise = toy.denoiser(digits, COSINE)
  made = [
    explain.noising(COSINE, digits.means[:2], TIMES),
    explain.targets(COSINE, digits.means[0], TIMES),
    explain.guesses(denoise, COSINE, digits.means[0], 0, TIMES),
    explain.signal_and_noise({"cosine": COSINE, "linear": schedules.linear()}),
    explain.solvers(named, PLANE, COSINE, steps=4, count=3),
    explain.guided((1, 3), 0, PLANE, COSINE, steps=4, count=3),
    explain.solver_errors({"ddim": samplers.ddim()}, PLANE, COSINE, (2, 4), reference_steps=20, count=5),
    explain.hints_of(size=32, spec="shapes", rows=(0, 1)),
    explain.averages({"0.9": (0.9, 0), "0.9 from 10": (0.9, 10)}, updates=20),
  ]
  for picture in made:
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[-1] == 3
    assert picture.std() > 5  # something is on it
