import numpy as np
import pytest

from jaxdiff.scores import features, kernel


def draw(seed, num, dim=4, mean=0.0):
  return np.random.default_rng(seed).normal(mean, 1, (num, dim))


def naive(x, y):
  """The unbiased estimate of MMD^2 as it is written, pair by pair."""
  k = lambda a, b: (sum(float(p) * float(q) for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3
  n, m = len(x), len(y)
  among_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
  among_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
  return among_x + among_y - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def exact_mmd(mean, dim):
  """MMD^2 between N(0, I) and N(mean, I), of dim numbers: the cube's powers of a.b are moments of products of normals."""

  def expected(u, v):
    """E k(a, b) for a ~ N(u, I), b ~ N(v, I)."""
    first, second, third = u * v, (u**2 + 1) * (v**2 + 1), (u**3 + 3 * u) * (v**3 + 3 * v)
    square = dim * second + dim * (dim - 1) * first**2
    cube = dim * third + 3 * dim * (dim - 1) * second * first + dim * (dim - 1) * (dim - 2) * first**3
    return cube / dim**3 + 3 * square / dim**2 + 3 * first + 1

  return expected(0, 0) + expected(mean, mean) - 2 * expected(0, mean)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8])
def test_one_subset_of_everything_is_the_estimate_as_it_is_written(dtype):
  x, y = (10 * draw(0, 9) + 100).astype(dtype), (10 * draw(1, 9) + 103).astype(dtype)
  assert kernel.kid(x, y).value == pytest.approx(naive(x, y), rel=1e-9)


def test_a_value_is_the_mean_over_its_subsets():
  """3 of 4 features against 3: every subset leaves one out, and many subsets average to what all four give."""
  x, y = draw(2, 4), draw(3, 3, mean=1)
  values = [naive(np.delete(x, i, 0), y) for i in range(4)]
  one = kernel.kid(x, y, subsets=1, subset_size=3).value
  assert min(abs(one - value) for value in values) < 1e-12
  got = kernel.kid(x, y, subsets=4000, subset_size=3).value
  assert got == pytest.approx(np.mean(values), abs=4 * np.std(values) / 4000**0.5)


def test_it_is_unbiased_and_its_standard_error_is_not_too_small_for_equal_distributions():
  found = [kernel.kid(draw(2 * i, 60), draw(2 * i + 1, 40), subsets=3, subset_size=20) for i in range(400)]
  values = np.array([estimate.value for estimate in found])
  spread = values.std(ddof=1)
  assert abs(values.mean()) < 3 * spread / 400**0.5
  assert spread < np.mean([estimate.standard_error for estimate in found]) < 3 * spread


@pytest.mark.parametrize(
  ("counts", "subsets", "size"),
  [((80, 80), 1, 1000), ((300, 60), 1, 30), ((100, 60), 20, 30), ((40, 200), 5, 40)],
)
def test_it_is_right_on_average_and_its_standard_error_is_the_deviation_between_draws(counts, subsets, size):
  found = [
    kernel.kid(draw(2 * i, counts[0]), draw(2 * i + 1, counts[1], mean=1), subsets, size) for i in range(400)
  ]
  values = np.array([estimate.value for estimate in found])
  spread = values.std(ddof=1)
  assert values.mean() == pytest.approx(exact_mmd(1, 4), abs=3 * spread / 400**0.5)
  error = np.sqrt(np.mean([estimate.standard_error**2 for estimate in found]))
  assert error == pytest.approx(
    spread, rel=0.15
  )  # the deviation of 400 values is known to 4%, of heavy tails less


def test_two_points_have_the_kernels_value_and_no_error():
  a, b = np.array([1.0, 2.0]), np.array([0.0, -1.0])
  k = lambda p, q: (p @ q / 2 + 1) ** 3
  got = kernel.kid(np.tile(a, (5, 1)), np.tile(b, (7, 1)), subsets=3, subset_size=4)
  assert got.value == pytest.approx(k(a, a) + k(b, b) - 2 * k(a, b), rel=1e-12)
  assert got.standard_error == pytest.approx(0, abs=1e-12)


def test_real_and_fake_may_change_places():
  x, y = draw(4, 30), draw(5, 30, mean=0.5)
  np.testing.assert_allclose(kernel.kid(x, y), kernel.kid(y, x), rtol=1e-10)


def test_subsets_come_from_the_seed_and_hold_no_feature_twice():
  x, y = draw(6, 50), draw(7, 50)
  run = lambda seed: kernel.kid(x, y, subsets=4, subset_size=10, seed=seed)
  assert run(0) == run(0) != run(1)
  twice = [kernel.kid(x[:3], y[:3], subsets=1, subset_size=2, seed=seed).value for seed in range(30)]
  pairs = [naive(np.delete(x[:3], i, 0), np.delete(y[:3], j, 0)) for i in range(3) for j in range(3)]
  assert all(min(abs(value - pair) for pair in pairs) < 1e-12 for value in twice)


def test_blocks_do_not_change_it(monkeypatch):
  x, y = draw(8, 31), draw(9, 23, mean=1)
  whole = kernel.kid(x, y, 3, 20)
  monkeypatch.setattr(features, "BLOCK", 50)
  np.testing.assert_allclose(kernel.kid(x, y, 3, 20), whole, rtol=1e-12)


def test_mistakes_are_told():
  x = draw(10, 5)
  with pytest.raises(ValueError, match="fake: 1 images, but at least 2"):
    kernel.kid(x, x[:1])
  with pytest.raises(ValueError, match="100 subsets of 1 features"):
    kernel.kid(x, x, subset_size=1)
  with pytest.raises(ValueError, match="0 subsets of 1000 features"):
    kernel.kid(x, x, subsets=0)
  with pytest.raises(ValueError, match="different lengths"):
    kernel.kid(x, x[:, :2])
