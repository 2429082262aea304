import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation import features, gather, images, reference
from tests import small

PIXELS = features.load("pixels")


@pytest.fixture(scope="module")
def config():
  return small.config("dit", "data.split=train[:200]")


@pytest.fixture(scope="module")
def made(config):
  return reference.of_split(config, "train[:200]", PIXELS, None)


def equal(a, b):
  return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def some(seed=0, num=40):
  return np.random.default_rng(seed).integers(0, 256, (num, 8, 8, 1), np.uint8)


def test_statistics_are_those_of_the_splits_pixels(config, made):
  pixels = images.take(config.data, "train[:200]", np.arange(200)).reshape(200, 64) / 255
  np.testing.assert_allclose(made.mean, pixels.mean(axis=0), atol=1e-6)
  np.testing.assert_allclose(made.covariance, np.cov(pixels.T), atol=1e-6)
  assert (made.num, made.extractor) == (200, "pixels") and "8x8x1" in made.resize and "digits" in made.data


def test_a_file_gives_back_what_was_saved_and_others_can_read_its_moments(config, made, tmp_path):
  reference.save(path := tmp_path / "statistics.npz", made)
  assert equal(reference.load(path, PIXELS, config.data), made)
  with np.load(path, allow_pickle=False) as file:
    assert file["mu"].shape == (64,) and file["sigma"].shape == (64, 64)


def test_statistics_of_a_split_are_made_once(config, tmp_path):
  looked = []

  def apply(images):
    looked.append(len(images))
    return PIXELS.apply(images)

  extractor = PIXELS._replace(apply=apply)
  one = reference.of_split(config, "train[:200]", extractor, tmp_path)
  assert sum(looked) == 200
  assert equal(reference.of_split(config, "train[:200]", extractor, tmp_path), one)
  assert sum(looked) == 200
  reference.of_split(config, "train[200:300]", extractor, tmp_path)
  assert sum(looked) == 300


def test_moments_alone_are_read_as_others_publish_them(config, made, tmp_path):
  np.savez(path := tmp_path / "published.npz", mu=made.mean, sigma=made.covariance)
  found = reference.load(path, PIXELS, config.data)
  np.testing.assert_array_equal(found.mean, made.mean)
  assert found.kept is None and found.num == 0


def test_published_images_are_looked_at_and_published_moments_stay(config, tmp_path):
  np.savez(path := tmp_path / "batch.npz", some(), np.zeros(40, int))
  of_images = reference.load(path, PIXELS, config.data)
  assert of_images.num == 40 and len(of_images.kept) == 40
  np.savez(path, some(), mu=np.zeros(64), sigma=np.eye(64), mu_s=np.zeros(9))
  both = reference.load(path, PIXELS, config.data)
  assert (both.mean == 0).all() and np.array_equal(both.kept, of_images.kept)
  # moments of another network's features: the images are what can be compared with
  np.savez(path, some(), mu=np.zeros(2048), sigma=np.eye(2))
  assert equal(reference.load(path, PIXELS, config.data)[1:3], of_images[1:3])


def test_files_made_in_another_way_are_told(config, made, tmp_path):
  reference.save(path := tmp_path / "statistics.npz", made)
  other = PIXELS._replace(fingerprint="classifier-1234")
  with pytest.raises(
    UserError, match="was made with the extractor 'pixels', this evaluation has 'classifier-1234'"
  ):
    reference.load(path, other, config.data)
  larger = small.config("dit", "data.image_size=16")
  with pytest.raises(UserError, match="the resize 'auto to 8x8x1; .*', this evaluation has 'auto to 16x16x1"):
    reference.load(path, PIXELS, larger.data)


def test_moments_of_another_number_of_features_are_told(config, tmp_path):
  np.savez(path := tmp_path / "published.npz", mu=np.zeros(2048), sigma=np.zeros((2048, 2048)))
  with pytest.raises(
    UserError, match=r"holds mu of shape \[2048\]; 'pixels' \(config.eval.features\) gives 64 features"
  ):
    reference.load(path, PIXELS, config.data)


@pytest.mark.parametrize("cut", [0, 10, 300])
def test_a_damaged_file_is_told(config, made, tmp_path, cut):
  reference.save(path := tmp_path / "statistics.npz", made)
  path.write_bytes(path.read_bytes()[:cut])
  with pytest.raises(UserError, match="cannot read .*statistics.npz"):
    reference.load(path, PIXELS, config.data)


def test_files_without_statistics_are_told(config, tmp_path):
  np.savez(path := tmp_path / "other.npz", weights=np.zeros(3))
  with pytest.raises(UserError, match="holds no statistics: it has neither mu and sigma nor images in arr_0"):
    reference.load(path, PIXELS, config.data)
  np.savez(path, np.zeros((40, 8, 8, 1)))
  with pytest.raises(
    UserError, match=r"arr_0 of .* is float64\[40, 8, 8, 1\]; it should be uint8\[N,H,W,1 or 3\]"
  ):
    reference.load(path, PIXELS, config.data)
  with pytest.raises(UserError, match="there is no file"):
    reference.load(tmp_path / "none.npz", PIXELS, config.data)


def test_kept_rows_of_a_large_split_name_their_images(config, monkeypatch):
  monkeypatch.setattr(gather, "KEEP", 15)
  found = reference.of_split(config, "train[:200]", PIXELS, None)
  chosen = images.take(config.data, "train[:200]", found.rows)
  np.testing.assert_array_equal(found.kept, PIXELS.apply(chosen).features)
