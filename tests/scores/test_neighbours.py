import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from jaxdiff.scores import features, neighbours
from jaxdiff.scores.neighbours import density_coverage, near_copies, nearest, precision_recall


def draw(seed, num, dim=6, mean=0.0):
  return np.random.default_rng(seed).normal(mean, 1, (num, dim))


def table(a, b):
  """All distances from their differences: f64[N,M]."""
  return np.sqrt(((a[:, None].astype(np.float64) - b[None]) ** 2).sum(-1))


def naive_nearest(queries, references, k):
  distances = table(queries, references)
  order = np.argsort(distances, axis=1, kind="stable")[:, :k]
  return order, np.take_along_axis(distances, order, axis=1)


def naive_radius(x, k):
  among = table(x, x)
  np.fill_diagonal(among, np.inf)
  return np.sort(among, axis=1)[:, k - 1]


def naive_scores(real, fake, k):
  """Precision, recall, density, coverage as the papers write them, with closed balls."""
  across = table(real, fake)
  in_real, in_fake = across <= naive_radius(real, k)[:, None], across <= naive_radius(fake, k)
  return in_real.any(0).mean(), in_fake.any(1).mean(), in_real.sum(0).mean() / k, in_real.any(1).mean()


def scores(real, fake, k):
  return (*precision_recall(real, fake, k), *density_coverage(real, fake, k))


def modes(seed, *centres, num=100):
  """num points around each centre, 1 wide, in 2 dimensions."""
  return np.concatenate([draw(seed + i, num, 2) + [c, 0] for i, c in enumerate(centres)])


@pytest.mark.parametrize("k", [1, 2, 7])
@pytest.mark.parametrize("block", [1, 100, 2**23])
def test_nearest_is_what_a_table_of_all_distances_says(k, block, monkeypatch):
  monkeypatch.setattr(features, "BLOCK", block)
  queries, references = draw(0, 23), draw(1, 31)
  row, distance = nearest(queries, references, k)
  wanted_row, wanted_distance = naive_nearest(queries, references, k)
  np.testing.assert_array_equal(row, wanted_row)
  np.testing.assert_allclose(distance, wanted_distance, rtol=1e-14)


def test_nearest_agrees_with_scikit_learn():
  queries, references = draw(2, 300, 40), draw(3, 500, 40)
  distance, row = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(references).kneighbors(queries)
  got = nearest(queries, references, 4)
  np.testing.assert_array_equal(got.row, row)
  np.testing.assert_allclose(got.distance, distance, rtol=1e-10)


@given(st.data())
@settings(max_examples=80)
def test_of_equally_near_references_the_first_count(data):
  """Points of a small grid: distances are exact, and most of them are tied."""
  dim, k = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
  points = st.lists(st.lists(st.integers(0, 2), min_size=dim, max_size=dim), min_size=4, max_size=25)
  queries, references = np.array(data.draw(points)), np.array(data.draw(points))
  got, wanted = nearest(queries, references, k), naive_nearest(queries, references, k)
  np.testing.assert_array_equal(got.row, wanted[0])
  np.testing.assert_array_equal(got.distance, wanted[1])


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e8])
def test_distances_far_below_rounding_of_the_norms_are_exact(offset):
  """Two clusters 2 offset apart, 1 and 1e-3 wide inside: |a|^2 + |b|^2 - 2 a.b knows distances at 1e8 to 1 at best."""
  references = draw(4, 200, 8) * np.repeat([1, 1e-3], 100)[:, None]
  references += offset * np.repeat([1, -1], 100)[:, None]
  queries = references + 1e-5 * draw(5, 200, 8)
  for k in (1, 3):
    got, wanted = nearest(queries, references, k), naive_nearest(queries, references, k)
    np.testing.assert_array_equal(got.row, wanted[0])
    np.testing.assert_allclose(got.distance, wanted[1], rtol=1e-14)
  fakes = queries[::2]
  np.testing.assert_allclose(scores(references, fakes, 3), naive_scores(references, fakes, 3), rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
def test_small_types_neither_wrap_nor_round(dtype):
  rng = np.random.default_rng(6)
  queries, references = (rng.integers(0, 256, (20, 50)).astype(dtype) for _ in range(2))
  got, wanted = nearest(queries, references, 3), naive_nearest(queries, references, 3)
  np.testing.assert_array_equal(got.row, wanted[0])
  np.testing.assert_array_equal(got.distance, wanted[1])


def test_a_generator_that_draws_one_image_always_is_scored_by_few_distances(monkeypatch):
  """Without care every pair of copies would be a sum over the differences."""
  real, fake = draw(7, 400), np.tile(draw(8, 1), (400, 1))
  counted, distances = [], neighbours._distances
  monkeypatch.setattr(neighbours, "_distances", lambda *a: counted.append(a[2].size) or distances(*a))
  np.testing.assert_array_equal(nearest(fake, fake, 3).row, np.tile([0, 1, 2], (400, 1)))
  got = scores(real, fake, 5)
  assert sum(counted) < 30 * 400  # of 400 * 400 in each of five tables
  assert got == pytest.approx(naive_scores(real, fake, 5))


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("count", "mean"), [((60, 40), 0.0), ((40, 60), 1.0), ((30, 200), 0.3)])
def test_scores_are_their_definitions(k, count, mean, monkeypatch):
  monkeypatch.setattr(features, "BLOCK", 999)
  real, fake = draw(9, count[0]), 0.8 * draw(10, count[1], mean=mean)
  assert scores(real, fake, k) == pytest.approx(naive_scores(real, fake, k), rel=1e-12)


@given(st.data())
@settings(max_examples=60)
def test_points_on_the_edge_of_a_ball_are_inside(data):
  """On a grid most distances are equal to a radius, and many images are the same."""
  points = st.lists(st.tuples(*[st.integers(0, 3)] * 2), min_size=5, max_size=20)
  real, fake = np.array(data.draw(points)), np.array(data.draw(points))
  k = data.draw(st.integers(1, 4))
  assert scores(real, fake, k) == pytest.approx(naive_scores(real, fake, k), rel=1e-12)


def test_the_published_neighbour_counts_are_the_defaults():
  real, fake = draw(11, 50), draw(12, 50, mean=0.7)
  assert (
    precision_recall(real, fake) == precision_recall(real, fake, k=3) != precision_recall(real, fake, k=5)
  )
  assert (
    density_coverage(real, fake) == density_coverage(real, fake, k=5) != density_coverage(real, fake, k=3)
  )


@pytest.mark.parametrize("k", [1, 3, 5])
def test_a_set_against_itself_is_perfect(k):
  """Each point is in its own ball and in those of the points it is among the k nearest of: k + 1 on average."""
  x = draw(13, 100)
  assert scores(x, x[::-1], k) == pytest.approx((1, 1, (k + 1) / k, 1))
  copies = np.repeat(x, 10, axis=0)  # all radii are 0
  assert precision_recall(copies, copies, k) == (1, 1)
  assert density_coverage(copies, copies, k).coverage == 1


def test_sets_apart_have_nothing_in_common():
  assert scores(draw(14, 80), draw(15, 80, mean=50), 5) == (0, 0, 0, 0)


def test_density_is_one_on_average_for_equal_distributions():
  found = [density_coverage(draw(i, 100, 2), draw(1000 + i, 100, 2)).density for i in range(40)]
  assert np.mean(found) == pytest.approx(1, abs=4 * np.std(found) / 40**0.5)


def test_a_dropped_mode_lowers_recall_and_coverage_only():
  real, whole, dropped = modes(20, 0, 30), modes(30, 0, 30), modes(40, 0, 0)
  before, after = scores(real, whole, 5), scores(real, dropped, 5)
  assert after[0] == pytest.approx(before[0], abs=0.05) and after[2] == pytest.approx(before[2], abs=0.2)
  assert after[1] == pytest.approx(before[1] / 2, abs=0.05) and after[3] == pytest.approx(
    before[3] / 2, abs=0.06
  )


def test_an_invented_mode_lowers_precision_and_density_only():
  real, invented = modes(50, 0, 0), modes(60, 0, 30)
  precision, recall, density, coverage = scores(real, invented, 5)
  assert 0.4 < precision <= 0.5 and 0.35 < density < 0.65
  assert recall > 0.9 and coverage > 0.85


def test_truncation_raises_precision_and_lowers_recall():
  real, fake = draw(16, 500, 8), draw(17, 500, 8)
  whole, truncated = precision_recall(real, fake), precision_recall(real, 0.5 * fake)
  assert truncated.precision > whole.precision + 0.1
  assert truncated.recall < whole.recall - 0.2


def test_one_outlier_among_the_reals_raises_precision_but_not_density():
  """The weakness of precision that density was made for: the outlier's ball holds all fakes."""
  real, fake = draw(18, 200, 2), draw(19, 200, 2, mean=8)
  outlier = np.concatenate([real, [[30.0, 30.0]]])
  assert precision_recall(real, fake).precision == 0
  assert precision_recall(outlier, fake).precision == 1
  assert density_coverage(outlier, fake).density == pytest.approx(1 / 5)


def test_near_copies_are_nearer_than_the_quantile_of_the_training_images():
  """Training images 1, 2, ..., 100 apart: 10% of the distances to the nearest other one, 1, 1, 2, ..., 100, are at most 10."""
  training = np.concatenate([[0], np.cumsum(np.arange(1, 101))])[:, None].astype(float)
  among = np.array([1, *range(1, 101)], float)
  generated = training[-3] + np.array([[0], [5], [10], [11], [40]])
  got = near_copies(generated, training, quantile=0.1)
  np.testing.assert_array_equal(got.distance_among_training, among)
  np.testing.assert_allclose(got.distance, [0, 5, 10, 11, 40])
  assert np.quantile(among, 0.1) == 10
  assert got.share == 2 / 5
  assert near_copies(generated, training, quantile=0.12).share == 4 / 5


def test_one_percent_is_the_default_quantile():
  training = draw(21, 500)
  generated = training + 0.2 * draw(22, 500)
  share = near_copies(generated, training).share
  assert 0 < share < 1
  assert (
    share == (naive_nearest(generated, training, 1)[1] < np.quantile(naive_radius(training, 1), 0.01)).mean()
  )


def test_an_exact_copy_is_one_even_where_the_training_set_holds_copies_of_its_own():
  training = np.repeat(draw(23, 20), 2, axis=0)
  assert near_copies(training[:5], training).share == 1
  assert near_copies(training[:5] + 1e-9, training).share == 0


@pytest.mark.parametrize("k", [0, -1, 6])
def test_a_number_of_neighbours_that_cannot_be_is_told(k):
  x, many = draw(24, 5), draw(25, 50)
  with pytest.raises(ValueError, match=rf"k={k}, but of 5 references 1 to 5"):
    nearest(many, x, k)
  if k == 6:
    with pytest.raises(ValueError, match="fake: 5 images, but k=6"):
      precision_recall(many, x, k)
  for score in (precision_recall, density_coverage):
    with pytest.raises(ValueError, match=f"real: 5 images, but k={k}"):
      score(x, many, k)
  with pytest.raises(ValueError, match="training: 1 images, but k=1"):
    near_copies(many, x[:1])


@pytest.mark.parametrize("score", [nearest, precision_recall, density_coverage, near_copies])
def test_features_are_checked(score):
  x = draw(26, 9)
  for wrong in (x[:, :3], x[:0], np.full_like(x, np.nan), x[0]):
    for pair in ((x, wrong), (wrong, x)):
      with pytest.raises(ValueError, match="lengths|at least 1|nan at|must be"):
        score(*pair)
