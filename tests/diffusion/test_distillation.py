"""The target of progressive distillation: against the paper's own lines, in closed form, and at both ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.diffusion import distillation, first_order, parameterization, schedules
from jaxdiff.types import Cond, Prediction

SHAPE = (4, 2, 2, 1)
COND = Cond(jnp.zeros(SHAPE[0], jnp.int32))
SCHEDULES = {
  "cosine": schedules.cosine(),
  "linear": schedules.linear(),
  "flow": schedules.rectified_flow(),
  "zero terminal SNR": schedules.zero_terminal_snr(schedules.linear()),
}


def teacher_of(schedule):
  """A teacher that is no exact denoiser: its v is any function of z and t."""
  reading = parameterization.v()

  def teach(z, t, cond):
    alpha, sigma = schedules.alpha_sigma(schedule, t, z.ndim)
    return reading.decode(jnp.sin(3 * z) + t[:, None, None, None], z, alpha, sigma)

  return teach


def oracle(schedule, z, i, num_steps):
  """Algorithm 2 of Salimans & Ho 2022, line by line, in float64, for one value."""
  alpha, sigma = (
    (lambda t: float(schedule.alpha(np.float64(t)))),
    (lambda t: float(schedule.sigma(np.float64(t)))),
  )

  def x_hat(z, t):
    v = np.sin(3 * z) + t
    return (alpha(t) * z - sigma(t) * v) / (alpha(t) ** 2 + sigma(t) ** 2)

  t, t1, t2 = (i + 1) / num_steps, (i + 0.5) / num_steps, i / num_steps
  first = x_hat(z, t)
  z1 = alpha(t1) * first + sigma(t1) / sigma(t) * (z - alpha(t) * first)
  second = x_hat(z1, t1)
  if i == 0:
    return second
  z2 = alpha(t2) * second + sigma(t2) / sigma(t1) * (z1 - alpha(t1) * second)
  return (z2 - sigma(t2) / sigma(t) * z) / (alpha(t2) - sigma(t2) / sigma(t) * alpha(t))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 2, 8, 128])
def test_the_target_is_the_papers(name, num_steps):
  schedule = SCHEDULES[name]
  i = np.linspace(0, num_steps - 1, SHAPE[0]).round().astype(np.int32)
  z = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
  found = distillation.target(schedule, teacher_of(schedule), jnp.asarray(z), jnp.asarray(i), num_steps, COND)
  expected = [
    [oracle(schedule, float(value), n, num_steps) for value in image.ravel()]
    for image, n in zip(z, i, strict=True)
  ]
  np.testing.assert_allclose(np.asarray(found).reshape(4, -1), expected, rtol=2e-3, atol=2e-4)


def gaussian(schedule, mean=0.3, std=0.5):
  """The exact denoiser of x ~ N(mean, std^2)."""

  def denoise(z, t, cond):
    alpha, sigma = schedules.alpha_sigma(schedule, t, z.ndim)
    x = mean + alpha * std**2 * (z - alpha * mean) / (alpha**2 * std**2 + sigma**2)
    return Prediction(x=x, eps=(z - alpha * x) / sigma)

  return denoise


@pytest.mark.parametrize("num_steps", [2, 8])
def test_one_step_to_the_target_is_two_steps_of_the_teacher(num_steps):
  schedule, solver = schedules.cosine(), first_order.ddim()
  teacher = gaussian(schedule)
  z = jax.random.normal(jax.random.key(0), SHAPE)
  for i in range(num_steps):
    t, mid, s = ((i + part) / num_steps for part in (1.0, 0.5, 0.0))
    steps = jnp.full(SHAPE[0], i)
    target = distillation.target(schedule, teacher, z, steps, num_steps, COND)

    def student(z, t, cond, target=target):
      alpha, sigma = schedules.alpha_sigma(schedule, t, z.ndim)
      return Prediction(x=target, eps=(z - alpha * target) / sigma)

    keys = jax.random.split(jax.random.key(1), SHAPE[0])
    two, _ = solver.step(keys, z, (), jnp.float32(t), jnp.float32(mid), COND, teacher, schedule)
    two, _ = solver.step(keys, two, (), jnp.float32(mid), jnp.float32(s), COND, teacher, schedule)
    one, _ = solver.step(keys, z, (), jnp.float32(t), jnp.float32(s), COND, student, schedule)
    np.testing.assert_allclose(one, two, atol=2e-4)


def test_a_teacher_of_one_image_is_its_own_student():
  """Where x does not depend on z, two steps and one lead to the same place: the target is x."""
  schedule, x = schedules.cosine(), jnp.linspace(-1, 1, 16).reshape(SHAPE)

  def teacher(z, t, cond):
    alpha, sigma = schedules.alpha_sigma(schedule, t, z.ndim)
    return Prediction(x=x, eps=(z - alpha * x) / sigma)

  z = jax.random.normal(jax.random.key(0), SHAPE)
  target = distillation.target(schedule, teacher, z, jnp.arange(4), 4, COND)
  np.testing.assert_allclose(target, x, atol=1e-4)


def test_the_last_step_learns_the_teachers_second_image():
  schedule, seen = schedules.cosine(), []
  teacher = teacher_of(schedule)

  def watched(z, t, cond):
    seen.append(teacher(z, t, cond).x)
    return Prediction(x=seen[-1], eps=z)

  z = jax.random.normal(jax.random.key(0), SHAPE)
  target = distillation.target(schedule, watched, z, jnp.zeros(4, jnp.int32), 8, COND)
  assert np.array_equal(target, seen[1])


def test_nothing_is_clipped():
  schedule = schedules.cosine()

  def teacher(z, t, cond):
    return Prediction(x=jnp.full_like(z, 7.0), eps=z)

  target = distillation.target(schedule, teacher, jnp.zeros(SHAPE), jnp.arange(4), 4, COND)
  np.testing.assert_allclose(target, 7.0, rtol=1e-4)


@pytest.mark.parametrize("num_steps", [1, 3, 128])
def test_steps_are_drawn_evenly_and_by_index(num_steps):
  index = jnp.arange(20_000, dtype=jnp.uint32)
  drawn = np.asarray(distillation.draw_step(jax.random.key(0), index, jnp.int32(num_steps)))
  assert drawn.min() == 0 and drawn.max() == num_steps - 1
  counts = np.bincount(drawn, minlength=num_steps)
  expected = len(drawn) / num_steps
  assert np.abs(counts - expected).max() <= 5 * expected**0.5
  part = distillation.draw_step(jax.random.key(0), index[500:600], jnp.int32(num_steps))
  assert np.array_equal(part, drawn[500:600])
