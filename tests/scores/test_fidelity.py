import numpy as np
import pytest
from scipy import stats

from jaxdiff.scores.fidelity import FIDELITY, edges_f1, mean_iou, rank_correlation


def rng(seed):
  return np.random.default_rng(seed)


def line(row, size=9):
  """One image with a horizontal line."""
  image = np.zeros((1, size, size), bool)
  image[0, row] = True
  return image


def naive_f1(asked, found, tolerance):
  """As it is defined, pixel by pixel; images with edges in both."""
  values = []
  for a, b in zip(asked, found, strict=True):
    a, b = np.argwhere(a), np.argwhere(b)
    near = np.abs(a[:, None] - b[None]).max(axis=-1) <= tolerance
    precision, recall = near.any(axis=0).mean(), near.any(axis=1).mean()
    values.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
  return np.mean(values)


@pytest.mark.parametrize("tolerance", [0, 1, 2, 5])
@pytest.mark.parametrize("off", [0, 1, 2, 3])
def test_a_shifted_line_counts_within_the_tolerance(tolerance, off):
  assert edges_f1(line(4), line(4 + off), tolerance) == float(off <= tolerance)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 0), (0, 2), (-2, 2)])
def test_distance_is_chebyshevs(rows, columns):
  asked, found = np.zeros((2, 1, 9, 9), bool)
  asked[0, 4, 4] = found[0, 4 + rows, 4 + columns] = True
  reach = max(abs(rows), abs(columns))
  assert edges_f1(asked, found, reach) == 1 and edges_f1(asked, found, reach - 1) == 0


def test_precision_and_recall_have_their_formula():
  """Of two asked lines one is found, and nothing else: precision 1, recall 1/2. The roles swapped, the same F1."""
  both = line(1) | line(6)
  assert edges_f1(both, line(1)) == edges_f1(line(1), both) == pytest.approx(2 / 3)
  # Found twice within the tolerance: no cost, as documented.
  assert edges_f1(line(4), line(3) | line(5)) == 1


@pytest.mark.parametrize("tolerance", [0, 1, 3])
def test_f1_is_what_it_is_defined_to_be(tolerance):
  asked, found = (rng(seed).random((6, 13, 17)) < share for seed, share in ((0, 0.02), (1, 0.05)))
  assert edges_f1(asked, found, tolerance) == pytest.approx(naive_f1(asked, found, tolerance))
  for change in (lambda x: x[:, ::-1], lambda x: x.swapaxes(1, 2), lambda x: 255 * x.astype(np.uint8)):
    assert edges_f1(change(asked), change(found), tolerance) == edges_f1(asked, found, tolerance)


def test_images_and_borders_do_not_touch():
  """An edge at an image's end is near none of the next image's, nor of the opposite border."""
  asked, found = np.zeros((2, 2, 5, 5), bool)
  asked[0, 4, 2] = found[1, 4, 2] = True
  assert edges_f1(asked, found, 4) == 0
  assert edges_f1(line(0), line(8)) == 0


def test_images_without_edges():
  none = np.zeros((1, 9, 9), bool)
  assert edges_f1(none, none) == 1
  assert edges_f1(none, line(4)) == edges_f1(line(4), none) == 0
  join = lambda *images: np.concatenate(images)
  assert edges_f1(join(none, line(4), none, line(1)), join(none, line(4), line(4), line(2))) == 0.75


def test_known_intersections_over_unions():
  asked, found = np.array([[[0, 0], [1, 1]]]), np.array([[[0, 1], [1, 1]]])
  assert mean_iou(asked, found, 2) == pytest.approx((1 / 2 + 2 / 3) / 2)
  assert mean_iou(asked, found, 9) == mean_iou(asked, found, 2)  # labels that occur nowhere do not count
  assert mean_iou(asked, asked + 2, 4) == 0
  assert mean_iou(asked, asked, 2) == 1
  # Label 2 is found where nothing asked for it: it counts, as 0.
  assert mean_iou(np.zeros((1, 2, 2), int), np.array([[[0, 0], [0, 2]]]), 3) == pytest.approx((3 / 4 + 0) / 2)


def test_counts_are_over_the_set():
  """Label 1: 1 of 1 pixels in the first image, 0 of 2 in the second; by image its mean would be 1/2."""
  asked = np.array([[[1, 0, 0]], [[1, 1, 0]]])
  found = np.array([[[1, 0, 0]], [[0, 0, 0]]])
  assert mean_iou(asked, found, 2) == pytest.approx((1 / 3 + 3 / 5) / 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_mean_iou_is_scikit_learns(dtype):
  from sklearn.metrics import jaccard_score

  asked, found = rng(0).integers(0, 5, (2, 4, 8, 9)).astype(dtype)
  found = np.where(rng(1).random(found.shape) < 0.5, asked, found)
  assert mean_iou(asked, found, 7) == pytest.approx(
    jaccard_score(asked.ravel(), found.ravel(), average="macro", labels=range(5))
  )
  swap = rng(2).permutation(7).astype(dtype)
  assert mean_iou(swap[asked], swap[found], 7) == pytest.approx(mean_iou(asked, found, 7))


@pytest.mark.parametrize("levels", [3, 10**6])
def test_rank_correlation_is_scipys(levels):
  asked, found = rng(0).integers(0, levels, (2, 5, 6, 7))
  found = found + asked
  expected = [stats.spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(asked, found, strict=True)]
  assert rank_correlation(asked, found) == pytest.approx(np.mean(expected))
  assert rank_correlation(found, asked) == pytest.approx(np.mean(expected))


def test_rank_correlation_knows_order_alone():
  asked = rng(1).normal(size=(3, 5, 5))
  assert rank_correlation(asked, np.exp(3 * asked) - 7) == pytest.approx(1)
  assert rank_correlation(asked, -(asked**3)) == pytest.approx(-1)
  assert rank_correlation(asked[:2], asked[:2] * np.array([1, -1])[:, None, None]) == pytest.approx(0)
  # Unsigned numbers must not wrap around.
  assert rank_correlation(
    np.array([[[0, 200, 255]]], np.uint8), np.array([[[9, 5, 0]]], np.uint8)
  ) == pytest.approx(-1)


def test_constant_maps():
  flat, ramp = np.full((1, 3, 3), 7), np.arange(9).reshape(1, 3, 3)
  assert rank_correlation(flat, flat + 1) == 1
  assert rank_correlation(flat, ramp) == rank_correlation(ramp, flat) == 0


@pytest.mark.parametrize("kind", FIDELITY)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_kind_of_hint_scores_itself_best(kind, channels):
  asked = np.where(rng(0).random((3, 16, 16, channels)) < 0.02, 255, 0).astype(np.uint8)
  score = FIDELITY[kind]
  assert score(asked, asked) == pytest.approx(1)
  other = asked[:, ::-1]
  assert isinstance(score(asked, other), float) and -1 <= score(asked, other) < 1


@pytest.mark.parametrize("kind", ["canny", "hough", "scribble"])
def test_edges_are_brighter_than_127(kind):
  asked = 255 * line(4).astype(np.uint8)[..., None]
  dim, bright = ((line(4) * value).astype(np.uint8)[..., None] for value in (127, 128))
  assert FIDELITY[kind](asked, bright) == 1 and FIDELITY[kind](asked, dim) == 0
  assert (
    FIDELITY[kind](asked, 255 * line(5).astype(np.uint8)[..., None]) == 1
  )  # a pixel off is within the tolerance
  assert FIDELITY[kind](asked, 255 * line(6).astype(np.uint8)[..., None]) == 0


def test_colours_are_labels():
  """Colours that share channels, or sum up alike, are different labels."""
  palette = np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (255, 255, 255)], np.uint8)
  asked, found = rng(0).integers(0, 5, (2, 3, 8, 8))
  assert FIDELITY["segmentation"](palette[asked], palette[found]) == pytest.approx(mean_iou(asked, found, 5))


def test_depth_hints_are_ranked():
  asked, found = rng(0).integers(0, 256, (2, 3, 8, 8, 1), dtype=np.uint8)
  assert FIDELITY["depth"](asked, found) == pytest.approx(rank_correlation(asked[..., 0], found[..., 0]))
  assert FIDELITY["depth"](asked, 255 - asked) == pytest.approx(-1)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: edges_f1(line(1)[0], line(1)[0]), "asked: shape (9, 9), but it must be [N,H,W]"),
    (lambda: edges_f1(line(1), line(1)[:0]), "found: shape (0, 9, 9), but"),
    (lambda: edges_f1(line(1), line(1, size=8)), "asked: shape (1, 9, 9), but found: (1, 8, 8)"),
    (lambda: edges_f1(line(1), line(1) * 0.5), "found: values of type float64"),
    (lambda: edges_f1(line(1), line(1), -1), "tolerance=-1, but"),
    (
      lambda: mean_iou(np.full((1, 2, 2), 3), np.zeros((1, 2, 2), int), 3),
      "asked: labels 3 to 3, but they must be 0 to 2",
    ),
    (lambda: mean_iou(np.zeros((1, 2, 2), int), np.full((1, 2, 2), -1), 3), "found: labels -1 to -1, but"),
    (
      lambda: rank_correlation(np.zeros((1, 2, 2)), np.full((1, 2, 2), np.nan)),
      "found: all values must be finite",
    ),
    (
      lambda: FIDELITY["depth"](np.zeros((1, 2, 2, 1)), np.zeros((1, 2, 2, 1))),
      "asked: values of type float64, but hints are uint8",
    ),
    (
      lambda: FIDELITY["canny"](np.zeros((1, 2, 2), np.uint8), np.zeros((1, 2, 2), np.uint8)),
      "asked: shape (1, 2, 2), but it must be [N,H,W,Ch]",
    ),
  ],
)
def test_wrong_input_is_told(call, message):
  with pytest.raises(ValueError) as e:
    call()
  assert str(e.value).startswith(message)
