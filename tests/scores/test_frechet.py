import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdiff.scores import features, frechet


def of(*batches):
  """The moments of batches in turn."""
  moments = frechet.empty(batches[0].shape[1])
  for batch in batches:
    moments = frechet.update(moments, batch)
  return moments


def between(a, b):
  a, b = of(a), of(b)
  return frechet.distance(a.mean, frechet.covariance(a), b.mean, frechet.covariance(b))


def draw(seed, num, dim):
  """Correlated features of different scales."""
  rng = np.random.default_rng(seed)
  return rng.normal(size=(num, dim)) @ rng.normal(size=(dim, dim)) + rng.normal(size=dim)


def some_covariance(seed, dim):
  half = np.random.default_rng(seed).normal(size=(dim, 2 * dim))
  return half @ half.T / dim


def assert_same(got, wanted):
  assert got.num == wanted.num
  np.testing.assert_allclose(got.mean, wanted.mean, rtol=1e-12, atol=1e-12)
  np.testing.assert_allclose(got.scatter, wanted.scatter, rtol=1e-11, atol=1e-11)


@given(cuts=st.lists(st.integers(0, 40), max_size=6), seed=st.integers(0, 5))
@settings(max_examples=60)
def test_any_split_gives_the_moments_of_the_whole(cuts, seed):
  x = draw(seed, 40, 3)
  split = of(*np.split(x, sorted(cuts)))
  assert_same(split, of(x))
  np.testing.assert_allclose(split.mean, x.mean(axis=0), rtol=1e-12)
  np.testing.assert_allclose(frechet.covariance(split), np.cov(x.T), rtol=1e-11, atol=1e-12)


@given(order=st.permutations(range(5)), at=st.integers(0, 5))
@settings(max_examples=30)
def test_parts_may_come_in_any_order_and_be_merged(order, at):
  parts = np.split(draw(0, 50, 4), [3, 4, 20, 33])
  left = [parts[i] for i in order[:at]] or [parts[0][:0]]
  right = [parts[i] for i in order[at:]] or [parts[0][:0]]
  assert_same(frechet.merge(of(*left), of(*right)), of(*parts))


@pytest.mark.parametrize("block", [24, 2**23])
def test_a_large_mean_costs_the_covariance_no_digits(block, monkeypatch):
  """Mean 1e6, standard deviation 1: x - 1e6 is exact, so numpy.cov of that is the truth.

  E x^2 - mean^2 would be wrong by 1e-4, the one-pass sum of x - mean with a rounded mean by 1e-8.
  """
  monkeypatch.setattr(features, "BLOCK", block)
  x = 1e6 + draw(1, 5000, 3) / 3
  moments = of(*np.split(x, 10))
  np.testing.assert_allclose(frechet.covariance(moments), np.cov((x - 1e6).T), rtol=1e-9)
  np.testing.assert_allclose(moments.mean - 1e6, (x - 1e6).mean(axis=0), atol=1e-8)


def test_moments_are_computed_in_float64():
  x = draw(2, 100, 3).astype(np.float32)
  np.testing.assert_allclose(frechet.covariance(of(x)), np.cov(x.T.astype(np.float64)), rtol=1e-12)
  bytes_ = np.array([[0, 255], [255, 0], [7, 9]], np.uint8)
  np.testing.assert_allclose(frechet.covariance(of(bytes_)), np.cov(bytes_.T.astype(np.float64)), rtol=1e-12)


def test_update_leaves_what_it_was_given():
  first = of(draw(3, 5, 2))
  kept = frechet.Moments(first.num, first.mean.copy(), first.scatter.copy())
  frechet.update(first, draw(4, 5, 2))
  frechet.merge(first, first)
  assert_same(first, kept)


@pytest.mark.parametrize(("mean", "std"), [(0, 1), (3, 0.5), (-2, 0), (1e-3, 100)])
def test_of_one_number_it_is_the_squares_of_the_differences(mean, std):
  got = frechet.distance([1.0], [[4.0]], [mean], [[std**2]])
  assert got == pytest.approx((1 - mean) ** 2 + (2 - std) ** 2, rel=1e-12)


def test_of_diagonal_covariances_it_is_the_sum_over_the_numbers():
  a, b = np.array([1.0, 4.0, 0.0, 9.0]), np.array([2.0, 0.0, 3.0, 1e-8])
  got = frechet.distance(np.zeros(4), np.diag(a), np.ones(4), np.diag(b))
  assert got == pytest.approx(4 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-12)


def test_of_commuting_covariances_it_is_the_difference_of_their_roots():
  rng = np.random.default_rng(5)
  basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
  a, b = rng.uniform(0, 3, 6), rng.uniform(0, 3, 6)
  got = frechet.distance(np.zeros(6), basis * a @ basis.T, np.zeros(6), basis * b @ basis.T)
  assert got == pytest.approx(((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-11)


@pytest.mark.parametrize("dim", [1, 2, 7, 30])
def test_it_is_the_formula_with_a_matrix_root(dim):
  a, b = some_covariance(dim, dim), some_covariance(dim + 1, dim)
  mean_a, mean_b = draw(dim, 2, dim)
  root = scipy.linalg.sqrtm(a @ b)
  wanted = ((mean_a - mean_b) ** 2).sum() + np.trace(a + b - 2 * root.real)
  assert np.abs(root.imag).max() < 1e-6
  assert frechet.distance(mean_a, a, mean_b, b) == pytest.approx(wanted, rel=1e-9)
  assert frechet.distance(mean_b, b, mean_a, a) == pytest.approx(wanted, rel=1e-9)


def test_a_turn_of_the_features_does_not_change_it():
  a, b = draw(6, 60, 8), draw(7, 50, 8)
  turn = np.linalg.qr(draw(8, 8, 8))[0]
  assert between(a @ turn, b @ turn) == pytest.approx(between(a, b), rel=1e-10)


@pytest.mark.parametrize(("num", "dim"), [(200, 20), (20, 200), (2, 50)])
def test_equal_sets_are_at_distance_zero(num, dim):
  x = draw(9, num, dim)
  assert abs(between(x, x)) < 1e-12 * np.trace(np.cov(x.T))
  assert between(x, x + 2) == pytest.approx(4 * dim, rel=1e-9)


def test_fewer_images_than_features_lose_no_digits():
  """Two sets in subspaces of 300 numbers: the same as in a basis of both subspaces, where the covariances are small.

  The noise of eigenvalues that are 0 would show as 1e-6 and more.
  """
  a, b = draw(10, 8, 12), draw(11, 9, 12)
  wide = np.linalg.qr(draw(12, 300, 12))[0].T
  wanted = between(a, b)
  assert between(a @ wide, b @ wide) == pytest.approx(wanted, rel=1e-11)


def test_a_set_without_any_spread_is_a_point():
  point, x = np.full((5, 3), 2.0), draw(13, 30, 3)
  assert between(point, x) == pytest.approx(((x.mean(0) - 2) ** 2).sum() + np.trace(np.cov(x.T)), rel=1e-12)
  assert between(point, point) == 0


def test_rounding_below_zero_is_taken_but_a_matrix_that_is_no_covariance_is_not():
  one, zero = np.eye(3), np.zeros(3)
  rounded = np.diag([1.0, 1.0, -1e-9])
  assert frechet.distance(zero, rounded, zero, one) == pytest.approx(1, abs=1e-8)
  with pytest.raises(ValueError, match="cov_a has the eigenvalue -0.5"):
    frechet.distance(zero, np.diag([1.0, 1.0, -0.5]), zero, one)
  with pytest.raises(ValueError, match="cov_b is not symmetric"):
    frechet.distance(zero, one, zero, np.triu(np.ones((3, 3))))


@pytest.mark.parametrize("place", range(4))
def test_what_is_not_finite_is_named(place):
  given = [np.zeros(2), np.eye(2), np.zeros(2), np.eye(2)]
  given[place] = np.full_like(given[place], np.nan)
  with pytest.raises(ValueError, match=f"{['mean_a', 'cov_a', 'mean_b', 'cov_b'][place]}: nan at"):
    frechet.distance(*given)


@pytest.mark.parametrize("place", range(1, 4))
def test_a_shape_that_does_not_fit_is_named(place):
  given = [np.zeros(2), np.eye(2), np.zeros(2), np.eye(2)]
  given[place] = np.ones(3) if place == 2 else np.eye(3)
  with pytest.raises(ValueError, match=["", "cov_a", "mean_b", "cov_b"][place] + ": shape"):
    frechet.distance(*given)


def test_mistakes_with_moments_are_told():
  with pytest.raises(ValueError, match=r"shape \(2, 3\), but the moments are of \[N, 4\]"):
    frechet.update(frechet.empty(4), np.ones((2, 3)))
  with pytest.raises(ValueError, match=r"nan at \[1, 0\]"):
    frechet.update(frechet.empty(2), np.array([[0.0, 0.0], [np.nan, 0.0]]))
  with pytest.raises(ValueError, match="of 4 numbers and of 3"):
    frechet.merge(frechet.empty(4), frechet.empty(3))
  with pytest.raises(ValueError, match="at least 2 features, not 1"):
    frechet.covariance(of(np.ones((1, 2))))
