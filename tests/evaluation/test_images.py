import numpy as np
import pytest

from jaxdiff import data
from jaxdiff.data import decode
from jaxdiff.errors import UserError
from jaxdiff.evaluation import images
from tests import small


def some(num=600, shape=(8, 8, 1)):
  return np.random.default_rng(0).integers(0, 256, (num, *shape), np.uint8)


def given(spec, *overrides):
  return images.given(small.config("dit", f"eval.images={spec}", *overrides))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_read_in_batches_with_its_labels(save, tmp_path):
  save(tmp_path / "a.npz", some(), np.arange(600) % 10)
  found = given(tmp_path / "a.npz")
  parts = list(found.batches())
  assert (found.num, found.shape) == (600, (8, 8, 1)) and len(parts) == 3
  np.testing.assert_array_equal(np.concatenate([batch for batch, _ in parts]), some())
  np.testing.assert_array_equal(np.concatenate([label for _, label in parts]), np.arange(600) % 10)
  rows = np.array([599, 3, 3, 300])
  np.testing.assert_array_equal(images.pick(found, rows), some()[rows])
  few, labels = images.first(found, 12)
  assert np.array_equal(few, some()[:12]) and labels.tolist() == [*range(10), 0, 1]


def test_an_npz_without_labels_has_none(tmp_path):
  np.savez(tmp_path / "a.npz", some(20))
  ((_, labels),) = given(tmp_path / "a.npz").batches()
  assert labels is None
  assert (images.first(given(tmp_path / "a.npz"), 3)[1] == -1).all()


def test_a_folder_gives_its_images_brought_to_size_with_the_labels_of_its_subfolders(tmp_path):
  for name, value in (("b/1.png", 10), ("a/2.png", 20), ("loose.png", 30), ("a/deep/3.png", 40)):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(decode.encode_png(np.full((12, 16, 3), value, np.uint8)))
  ((batch, labels),) = given(tmp_path, "model.num_classes=2").batches()
  assert batch.shape == (4, 8, 8, 1)
  assert dict(zip(batch[:, 0, 0, 0].tolist(), labels.tolist(), strict=True)) == {30: -1, 20: 0, 40: 0, 10: 1}
  ((_, labels),) = given(tmp_path).batches()
  assert (labels == -1).all(), "two folders are not the ten classes of the model"


def test_a_folder_of_images_of_a_gray_model_is_seen_as_its_data_are(tmp_path):
  colours = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
  for c in "ab":
    (tmp_path / c).mkdir()
    (tmp_path / c / "1.png").write_bytes(decode.encode_png(colours))
  ((batch, _),) = given(tmp_path, "model.num_classes=2").batches()
  source = data.load(f"folder:{tmp_path}")
  np.testing.assert_array_equal(
    batch[0], data.examples(source, small.config("dit").data, np.array([0]))["image"][0]
  )


def test_a_link_to_nowhere_is_told(tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "1.png").symlink_to(tmp_path / "gone.png")
  with pytest.raises(UserError, match=r"cannot read .*1\.png' \(config\.eval\.images\): No such file"):
    list(given(tmp_path).batches())


def test_a_split_of_the_data_can_be_scored():
  found = given("data:train[:30]")
  ((batch, labels),) = found.batches()
  assert found.num == 30 and batch.shape == (30, 8, 8, 1) and labels.shape == (30,)
  np.testing.assert_array_equal(
    images.take(small.config("dit").data, "train[:30]", np.array([4, 2])), batch[[4, 2]]
  )


def test_images_that_cannot_be_scored_are_told(tmp_path):
  np.savez(tmp_path / "large.npz", some(20, (16, 16, 3)))
  np.savez(tmp_path / "labels.npz", some(20), np.arange(19))
  np.savez(tmp_path / "none.npz", a=some(20))
  np.savez(tmp_path / "cut.npz", some(20))
  (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:400])
  (tmp_path / "empty").mkdir()
  for spec, message in {
    "large.npz": "holds images of 16x16x3, config.data has 8x8x1",
    "labels.npz": "labels of its 20 images are int[20]",
    "none.npz": "has no arr_0 with images",
    "cut.npz": "cannot read",
    "empty": "holds no images",
    "missing.npz": "there is no file",
    "missing": "is neither a folder nor an .npz file",
  }.items():
    with pytest.raises(UserError) as told:
      given(tmp_path / spec)
    assert message in str(told.value) and "config.eval.images" in str(told.value)


def test_a_damaged_image_is_named(tmp_path):
  np.savez(tmp_path / "a.npz", some())
  whole = bytearray((tmp_path / "a.npz").read_bytes())
  whole[5000] ^= 255
  (tmp_path / "a.npz").write_bytes(whole)
  with pytest.raises(UserError, match="arr_0 of .*a.npz .* is damaged"):
    list(given(tmp_path / "a.npz").batches())
  (tmp_path / "b.png").write_bytes(b"no image")
  with pytest.raises(UserError, match="b.png' .* is not an image that can be read"):
    list(given(tmp_path).batches())
