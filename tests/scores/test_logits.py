import numpy as np
import pytest

from jaxdiff.scores.logits import accuracy, inception_score


def naive(logits):
  """The score as it is defined, for logits whose powers are finite."""
  p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  marginal = p.mean(axis=0)
  return np.exp(np.mean([(q * np.log(q / marginal)).sum() for q in p]))


def draw(seed, num, classes):
  return 2 * np.random.default_rng(seed).normal(size=(num, classes))


def sure(classes, num):
  """Logits of images that are surely of class 0, 1, ... in turn."""
  return 1e3 * np.eye(classes)[np.arange(num) % classes]


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_images_of_no_class_score_one(classes, offset):
  assert inception_score(np.full((30, classes), offset)) == pytest.approx((1, 0), abs=1e-12)


@pytest.mark.parametrize("classes", [2, 10])
def test_images_surely_of_each_class_score_the_number_of_classes(classes):
  assert inception_score(sure(classes, 200), splits=1) == pytest.approx((classes, 0), rel=1e-12)
  assert inception_score(sure(classes, 200), splits=10, seed=None) == pytest.approx((classes, 0), rel=1e-12)


def test_images_surely_of_one_class_score_one():
  assert inception_score(1e3 * np.eye(5)[np.full(40, 2)]) == (1, 0)


def test_half_of_the_classes_score_half():
  assert inception_score(sure(4, 200) @ np.eye(4, 8), splits=1).mean == pytest.approx(4, rel=1e-12)


def test_a_split_is_scored_by_the_definition():
  logits = draw(0, 50, 7)
  assert inception_score(logits, splits=1).mean == pytest.approx(naive(logits), rel=1e-12)
  parts = [naive(part) for part in np.split(logits, [10, 20, 30, 40])]
  got = inception_score(logits, splits=5, seed=None)
  assert got == pytest.approx((np.mean(parts), np.std(parts)), rel=1e-12)
  assert got.std > 1e-3


def test_splits_differ_by_at_most_one_and_lose_no_image():
  logits = draw(1, 11, 3)
  parts = [naive(logits[:4]), naive(logits[4:8]), naive(logits[8:])]
  assert inception_score(logits, splits=3, seed=None).mean == pytest.approx(np.mean(parts), rel=1e-12)


def test_the_order_of_classes_does_not_matter():
  logits = sure(10, 1000)
  in_turn, in_order = inception_score(logits), inception_score(logits[np.argsort(np.arange(1000) % 10)])
  assert in_order.mean == pytest.approx(in_turn.mean, rel=0.02) and in_order.mean > 9
  assert inception_score(logits) == in_turn != inception_score(logits, seed=1)


def test_extreme_and_small_types_of_logits_are_stable():
  logits = draw(2, 40, 6)
  wanted = inception_score(logits.astype(np.float32).astype(np.float64))
  assert inception_score(logits.astype(np.float32)) == pytest.approx(wanted, rel=1e-12)
  assert inception_score(logits + 1e6) == pytest.approx(inception_score(logits), rel=1e-8)
  assert np.isfinite(inception_score(1e300 * np.sign(logits))).all()


def test_mistakes_in_scoring_are_told():
  with pytest.raises(ValueError, match="logits: 9 images, but at least 10"):
    inception_score(draw(3, 9, 2))
  with pytest.raises(ValueError, match="splits=0"):
    inception_score(draw(3, 9, 2), splits=0)
  with pytest.raises(ValueError, match=r"logits: inf at \[1, 0\]"):
    inception_score(np.array([[0, 0], [np.inf, 0]]), splits=1)


LABELS = np.array([0, 0, 0, 0, 2, 2, 5])
PREDICTIONS = np.array([0, 0, 0, 1, 2, 0, 5])


@pytest.mark.parametrize(
  "given", [PREDICTIONS, PREDICTIONS.astype(np.uint8), np.eye(6)[PREDICTIONS], np.eye(6)[PREDICTIONS] - 9]
)
def test_accuracy_is_the_share_of_right_classes_of_all_and_by_class(given):
  got = accuracy(given, LABELS)
  assert got.overall == 5 / 7
  assert got.per_class == {0: 0.75, 2: 0.5, 5: 1.0}


def test_of_equal_logits_the_first_class_counts():
  assert accuracy(np.zeros((2, 3)), np.array([0, 1])).per_class == {0: 1.0, 1: 0.0}


@pytest.mark.parametrize(
  ("given", "labels", "message"),
  [
    (PREDICTIONS, LABELS[:-1], "predictions: int64.*6 labels need integers"),
    (PREDICTIONS.astype(float), LABELS, "predictions: float64"),
    (np.eye(6)[PREDICTIONS], LABELS[:-1], "predictions: int64"),
    (np.eye(6)[PREDICTIONS], LABELS + 1, "labels: 1 to 6, but logits of 6 classes know 0 to 5"),
    (np.eye(6)[PREDICTIONS], LABELS - 1, "labels: -1 to 4"),
    (np.full((7, 6), np.nan), LABELS, r"logits: nan at \[0, 0\]"),
    (PREDICTIONS, LABELS.astype(float), "labels: float64"),
    (PREDICTIONS[:0], LABELS[:0], "labels: int64"),
  ],
)
def test_mistakes_in_accuracy_are_told(given, labels, message):
  with pytest.raises(ValueError, match=message):
    accuracy(given, labels)
