from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from jaxdiff import pictures
from jaxdiff.errors import UserError


def noise(*shape):
  return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def find(picture, tile, scale):
  """Where an enlarged tile stands in a picture: every (y, x) at which all its pixels agree."""
  big = np.broadcast_to(tile, (*tile.shape[:2], 3)).repeat(scale, 0).repeat(scale, 1)
  height, width = big.shape[:2]
  corners = np.argwhere((picture[: -height + 1, : -width + 1] == big[0, 0]).all(-1))
  return [(y, x) for y, x in corners if (picture[y : y + height, x : x + width] == big).all()]


@pytest.mark.parametrize(("size", "channels", "scale"), [(8, 1, 8), (28, 1, 3), (32, 3, 2), (64, 3, 1)])
def test_tiles_stand_in_reading_order_unchanged(size, channels, scale):
  images = noise(6, size, size, channels)
  picture = pictures.grid(images, columns=3)
  assert picture.dtype == np.uint8
  assert picture.shape[-1] == 3
  places = [find(picture, image, scale) for image in images]
  assert all(len(place) == 1 for place in places)
  ys, xs = np.array(places)[:, 0].T.reshape(2, 2, 3)
  assert (np.diff(xs, axis=1) >= size * scale).all()
  assert (np.diff(ys, axis=0) >= size * scale).all()
  assert (ys == ys[:, :1]).all()
  assert (xs == xs[:1]).all()


def test_labels_add_ink_but_leave_the_images_alone():
  images = noise(4, 16, 16, 3)
  plain = pictures.grid(images, columns=2)
  labelled = pictures.grid(images, ["cat", "dog", "bird", "ship"], columns=2)
  assert labelled.shape[0] > plain.shape[0]
  assert all(len(find(labelled, image, 4)) == 1 for image in images)


def test_sorted_labels_become_rows_and_repeated_ones_columns():
  images = noise(12, 64, 64, 3)
  rows = pictures.grid(images, [0] * 4 + [1] * 4 + [2] * 4)
  (y0, x0), (y3, _), (y4, x4) = (find(rows, images[i], 1)[0] for i in (0, 3, 4))
  assert (y0, x0) == (y3, x4)
  assert y4 > y0
  assert x0 > 15  # room for the row captions
  columns = pictures.grid(images, [0, 1, 2, 3] * 3)
  (y0, x0), (y3, _), (y4, x4) = (find(columns, images[i], 1)[0] for i in (0, 3, 4))
  assert (y0, x0) == (y3, x4)
  assert y4 > y0
  assert y0 > 15  # room for the column captions


@pytest.mark.parametrize(
  ("labels", "columns"),
  [
    (None, 10),
    (list(range(10)) * 10, 10),
    ([i // 10 for i in range(100)], 10),
    ([i // 50 for i in range(100)], 10),  # two long runs: rows of ten, each of one class
    ([i % 4 for i in range(100)], 12),  # close to square, and still one class a column
    ([i % 7 for i in range(100)], 14),
    ([0, 1, 1, 0] + [2] * 96, 10),
    ([3] * 100, 10),
    (list(range(100)), 10),
  ],
)
def test_number_of_columns(labels, columns):
  assert pictures._columns(100, labels and [str(label) for label in labels]) == columns


def test_odd_inputs():
  assert pictures.grid(noise(1, 8, 8, 1), [7]).shape[-1] == 3
  pictures.grid(noise(2, 8, 8, 3), ["an extraordinarily long label that cannot fit over any tile", "x"])
  pictures.grid(noise(5, 8, 8, 3), [""] * 5, columns=99)
  for wrong in (noise(2, 8, 8, 2), noise(8, 8, 3), noise(0, 8, 8, 3), noise(2, 8, 8, 3).astype(np.float32)):
    with pytest.raises(ValueError, match="expected u8"):
      pictures.grid(wrong)
  with pytest.raises(ValueError, match="2 images but 3 labels"):
    pictures.grid(noise(2, 8, 8, 3), [0, 1, 2])


def test_film_strip_runs_from_noise_to_image():
  frames = noise(21, 3, 16, 16, 1)
  strip = pictures.film_strip(frames, np.linspace(1, 0, 21), labels=["a", "b", "c"], max_columns=5)
  first, last = find(strip, frames[0, 0], 4)[0], find(strip, frames[20, 0], 4)[0]
  assert first[0] == last[0]
  assert first[1] < last[1]
  assert len(find(strip, frames[10, 2], 4)) == 1
  assert not find(strip, frames[1, 0], 4)
  with pytest.raises(ValueError, match="21 frames but 20 times"):
    pictures.film_strip(frames, np.zeros(20))


def test_save_png(tmp_path):
  picture = pictures.grid(noise(4, 8, 8, 3), path=tmp_path / "new" / "grid.png")
  assert (np.asarray(Image.open(tmp_path / "new" / "grid.png")) == picture).all()
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match=r"cannot write .*grid\.png"):
    pictures.save_png(tmp_path / "file" / "grid.png", picture)


def test_save_npz_is_laid_out_for_the_evaluator(tmp_path):
  images = noise(5, 8, 8, 3)
  pictures.save_npz(tmp_path / "samples.npz", images, np.arange(5, dtype=np.int32))
  with np.load(tmp_path / "samples.npz") as saved:
    assert sorted(saved) == ["arr_0", "arr_1"]
    assert (saved["arr_0"] == images).all()
    assert saved["arr_0"].dtype == np.uint8
    assert saved["arr_1"].tolist() == [0, 1, 2, 3, 4]
    assert saved["arr_1"].dtype == np.int64
  with pytest.raises(ValueError, match="expected u8"):
    pictures.save_npz(tmp_path / "samples.npz", images.astype(np.float32), np.arange(5))
