import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.diffusion import guidance, samplers, schedules
from jaxdiff.types import NULL_LABEL, Cond, Prediction

SCHEDULE = schedules.cosine()
Z = jax.random.normal(jax.random.key(0), (3, 4, 4, 1))
T = jnp.full((3,), 0.6)
COND = Cond(jnp.asarray([0, 1, 2]), hint=jnp.arange(3.0).reshape(3, 1, 1, 1))


def toy(z, t, cond):
  """Depends on every argument, on the label of each row by itself, and on being unconditional."""
  alpha, sigma = schedules.alpha_sigma(SCHEDULE, t, z.ndim)
  pull = jnp.where(cond.label == NULL_LABEL, 0.1, jnp.sin(1.0 + cond.label))[:, None, None, None]
  x = jnp.tanh(z * pull + 0.01 * cond.hint)
  return Prediction(x=x, eps=(z - alpha * x) / sigma)


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_scale_one_is_conditional_and_zero_unconditional_bit_for_bit(scale):
  wanted = COND if scale else COND.replace(label=jnp.full((3,), NULL_LABEL))
  for t in (1.0, 0.5, 1e-3):
    guided = guidance.classifier_free(toy, scale)(Z, jnp.full((3,), t), COND)
    for got, want in zip(guided[:2], toy(Z, jnp.full((3,), t), wanted)[:2], strict=True):
      assert (got == want).all()


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_the_same_holds_for_whole_trajectories_to_the_last_step(scale):
  key, times = jax.random.key(1), samplers.time_grid(5)
  plain = COND if scale else COND.replace(label=jnp.full((3,), NULL_LABEL))
  guided = samplers.path(samplers.ddim(), SCHEDULE, guidance.classifier_free(toy, scale), key, Z, times, COND)
  wanted = samplers.path(samplers.ddim(), SCHEDULE, toy, key, Z, times, plain)
  assert (guided == wanted).all()


def test_guidance_extrapolates_and_keeps_x_and_eps_consistent():
  guided = guidance.classifier_free(toy, 3.0)(Z, T, COND)
  conditional = toy(Z, T, COND)
  unconditional = toy(Z, T, COND.replace(label=jnp.full((3,), NULL_LABEL)))
  wanted = unconditional.x + 3 * (conditional.x - unconditional.x)
  np.testing.assert_allclose(guided.x, wanted, atol=1e-6)
  alpha, sigma = schedules.alpha_sigma(SCHEDULE, T)
  np.testing.assert_allclose(alpha * guided.x + sigma * guided.eps, Z, atol=1e-5)


def test_guidance_acts_on_the_last_step():
  weak, strong = (
    samplers.sample(
      samplers.ddim(),
      SCHEDULE,
      guidance.classifier_free(toy, s),
      jax.random.key(0),
      Z,
      np.array([0.05, 0.0]),
      COND,
    )
    for s in (1.0, 4.0)
  )
  assert float(jnp.abs(weak - strong).max()) > 0.01


def test_one_call_of_twice_the_batch_and_no_recompilation_for_another_scale():
  shapes = []

  def counting(z, t, cond):
    shapes.append(z.shape)
    return toy(z, t, cond)

  guided = jax.jit(lambda scale: guidance.classifier_free(counting, scale)(Z, T, COND))
  guided(1.5), guided(3.0)
  assert shapes == [(6, 4, 4, 1)]


def test_another_null_label_can_be_named():
  seen = []
  guidance.classifier_free(lambda z, t, cond: seen.append(cond.label) or toy(z, t, cond), 2.0, null_label=10)(
    Z, T, COND
  )
  assert seen[0].tolist() == [0, 10, 1, 10, 2, 10]


def test_clipping_moves_eps_along_and_leaves_the_rest_alone():
  def bold(z, t, cond):
    del cond
    alpha, sigma = schedules.alpha_sigma(SCHEDULE, t, z.ndim)
    x = 2 * z
    return Prediction(x=x, eps=(z - alpha * x) / sigma)

  clipped = guidance.clip_x(bold, SCHEDULE)(Z, T, COND)
  free = bold(Z, T, COND)
  inside = jnp.abs(free.x) <= 1
  assert 0 < int(inside.sum()) < inside.size
  assert float(jnp.abs(clipped.x).max()) == 1
  assert (jnp.where(inside, clipped.eps, 0) == jnp.where(inside, free.eps, 0)).all()
  alpha, sigma = schedules.alpha_sigma(SCHEDULE, T)
  np.testing.assert_allclose(alpha * clipped.x + sigma * clipped.eps, Z, atol=1e-5)
