import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation import features, gather
from jaxdiff.evaluation.features import Seen
from jaxdiff.scores import frechet

PIXELS = features.load("pixels")
IMAGES = np.random.default_rng(0).integers(0, 256, (90, 4, 4, 1), np.uint8)
FEATURES = IMAGES.reshape(90, 16).astype(np.float32) / 255


def batches(size, labels=None):
  for start in range(0, len(IMAGES), size):
    here = slice(start, start + size)
    yield IMAGES[here], None if labels is None else labels[here]


@pytest.mark.parametrize("size", [1, 7, 90])
def test_moments_are_of_all_and_kept_features_of_a_fixed_choice(size, monkeypatch):
  monkeypatch.setattr(gather, "KEEP", 20)
  found = gather.gather(batches(size), 90, PIXELS)
  assert found.moments.num == 90
  np.testing.assert_allclose(found.moments.mean, FEATURES.mean(axis=0), rtol=1e-6)
  np.testing.assert_allclose(frechet.covariance(found.moments), np.cov(FEATURES.T), atol=1e-8)
  assert len(found.rows) == 20 and (np.diff(found.rows) > 0).all() and found.rows[-1] > 45
  np.testing.assert_array_equal(found.kept, FEATURES[found.rows])
  assert found.logits is None and found.votes is None


def test_no_more_rows_are_held_however_many_images_come(monkeypatch):
  """What is left of a set has the same size for 300 images and for 3,000, and no batch outlives the next."""
  monkeypatch.setattr(gather, "KEEP", 50)
  extractor = PIXELS._replace(
    apply=lambda images: Seen(PIXELS.apply(images).features, np.zeros((len(images), 3)))
  )
  sizes = []
  for num in (300, 3000):
    found = gather.gather(((IMAGES[:30], np.zeros(30, int)) for _ in range(num // 30)), num, extractor)
    assert found.moments.num == num
    sizes.append(sum(array.nbytes for array in (found.kept, found.logits, found.rows, *found.moments[1:])))
  assert sizes[0] == sizes[1]


def test_votes_count_images_that_have_a_label():
  logits = np.random.default_rng(1).standard_normal((90, 3))
  labels = np.random.default_rng(2).integers(-1, 3, 90)
  said = iter(np.split(logits, range(7, 90, 7)))
  votes = gather.gather(batches(7, labels), 90, PIXELS, lambda images, seen: next(said)).votes
  for c in range(3):
    assert votes.total[c] == (labels == c).sum()
    assert votes.right[c] == ((labels == c) & (logits.argmax(axis=1) == c)).sum()


def test_a_label_that_the_classifier_does_not_know_is_told():
  with pytest.raises(UserError, match=r"an image has the label 3; the classifier .* knows 3 classes, 0\.\.2"):
    gather.gather(batches(90, np.full(90, 3)), 90, PIXELS, lambda images, seen: np.zeros((len(images), 3)))
