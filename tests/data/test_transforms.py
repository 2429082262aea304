"""Sizes, crops, channels and flips."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdiff.data import transforms
from jaxdiff.data.transforms import View
from jaxdiff.errors import UserError

sides = st.integers(1, 70)
sizes = st.sampled_from([1, 8, 31, 32])
resizes = st.sampled_from(["auto", "pad"])


def ramp(height, width, channels=1):
  """Values that all differ from their neighbours, none zero."""
  return (np.arange(height * width * channels) % 251 + 1).astype(np.uint8).reshape(height, width, channels)


@settings(max_examples=60)
@given(sides, sides, st.sampled_from([1, 3]), sizes, st.sampled_from([1, 3]), resizes, st.booleans())
def test_any_image_fits_any_view_and_fitting_twice_changes_nothing(h, w, c, size, channels, resize, crop):
  v = View(size, channels, resize, random_crop=crop and resize == "auto", random_flip=False)
  fitted = transforms.fit(ramp(h, w, c), v)
  np.testing.assert_array_equal(transforms.fit(fitted, v), fitted)
  seen = transforms.augment([fitted], np.array([5], np.uint32), 0, v)
  assert seen.shape == (1, size, size, channels) and seen.dtype == np.uint8


@settings(max_examples=60)
@given(sides, sides, sizes, st.integers(0, 255), st.booleans())
def test_scaling_and_cropping_keep_an_even_colour(h, w, size, value, crop):
  v = View(size, 1, "auto", random_crop=crop, random_flip=True)
  image = np.full((h, w, 1), value, np.uint8)
  seen = transforms.augment([transforms.fit(image, v)], np.array([3], np.uint32), 1, v)
  assert (seen == value).all()


def test_an_image_of_the_right_size_is_untouched():
  image = ramp(8, 8)
  for resize in ("auto", "pad"):
    np.testing.assert_array_equal(transforms.fit(image, View(8, 1, resize, False, False)), image)


def test_pad_centres_a_smaller_image_on_zeros():
  padded = transforms.pad(ramp(28, 28), 32)
  np.testing.assert_array_equal(padded[2:30, 2:30], ramp(28, 28))
  assert padded.sum() == ramp(28, 28).sum(dtype=int)
  wide = transforms.pad(np.full((10, 40, 1), 9, np.uint8), 20)  # shrunk to 5x20, then padded to 20x20
  assert (wide[7:12] == 9).all() and not wide[:7].any() and not wide[12:].any()


def test_auto_takes_the_central_square():
  image = ramp(8, 20)
  np.testing.assert_array_equal(transforms.cover(image, 8), image[:, 6:14])
  np.testing.assert_array_equal(
    transforms.cover(image.transpose(1, 0, 2), 8), image[:, 6:14].transpose(1, 0, 2)
  )


def test_shrinking_does_not_alias():
  fine = np.zeros((64, 64, 1), np.uint8)
  fine[:, ::4] = 200  # lines, which interpolation between the nearest pixels would miss
  for small in (transforms.cover(fine, 16), transforms.pad(fine, 16), transforms.shrink(fine, 16)):
    assert (small == 50).all()


def test_gray_becomes_rgb_and_comes_back():
  gray = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
  rgb = transforms.with_channels(gray, 3)
  assert (rgb == gray).all() and rgb.shape == (16, 16, 3)
  np.testing.assert_array_equal(transforms.with_channels(rgb, 1), gray)
  green = np.full((2, 2, 3), (0, 255, 0), np.uint8)
  assert (transforms.with_channels(green, 1) == 150).all()  # 0.587 * 255: RGB order, not BGR


def test_flip_and_crop_depend_on_seed_and_index_only():
  v = View(32, 1, "auto", random_crop=True, random_flip=True)
  images = [transforms.fit(ramp(64, 48), v) for _ in range(64)]
  index = np.arange(1000, 1064, dtype=np.uint32)
  together = transforms.augment(images, index, 7, v)
  alone = [transforms.augment([image], i[None], 7, v)[0] for image, i in zip(images, index, strict=True)]
  np.testing.assert_array_equal(together, alone)
  assert len({image.tobytes() for image in together}) > 50  # they do differ by index
  assert (together != transforms.augment(images, index, 8, v)).any(axis=(1, 2, 3)).mean() > 0.8  # and by seed


def test_a_flip_mirrors_half_of_the_examples():
  v = View(4, 1, "auto", random_crop=False, random_flip=True)
  image, index = ramp(4, 4), np.arange(4000, dtype=np.uint32)
  seen = transforms.augment([image] * 4000, index, 0, v)
  mirrored = (seen == image[:, ::-1]).all(axis=(1, 2, 3))
  np.testing.assert_array_equal(seen[~mirrored], np.broadcast_to(image, seen[~mirrored].shape))
  assert abs(mirrored.mean() - 0.5) < 0.03  # 4 standard deviations


def test_random_windows_reach_all_of_the_image_and_keep_their_size():
  image = ramp(50, 100)
  draws = np.random.default_rng(0).random((2000, 3))
  draws = np.concatenate([draws, [[0, 0, 0], [1 - 1e-9] * 3]])
  for draw in draws:
    assert transforms.window(image, draw, 8).shape == (8, 8, 1)
  whole = transforms.window(image, np.array([1 - 1e-9, 0, 0]), 50)
  np.testing.assert_array_equal(whole, image[:, :50])
  corner = transforms.window(image, np.array([0, 1 - 1e-9, 1 - 1e-9]), 40)
  np.testing.assert_array_equal(corner, image[10:, 60:])


def test_uniform_is_uniform_and_its_draws_are_independent():
  index = np.arange(20_000, dtype=np.uint32)
  draws = np.stack([transforms.uniform(seed, index, which) for seed in (0, 1) for which in (0, 1)])
  assert 0 <= draws.min() and draws.max() < 1
  counts = np.stack([np.histogram(u, bins=20, range=(0, 1))[0] for u in draws])
  assert ((counts - 1000) ** 2 / 1000).sum(axis=1).max() < 50  # chi-squared with 19 degrees: p = 1e-4
  assert np.abs(np.corrcoef(draws) - np.eye(4)).max() < 0.03  # across seeds and draws
  assert max(abs(np.corrcoef(u[:-1], u[1:])[0, 1]) for u in draws) < 0.03  # along the stream


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"channels": 4}, "config.data.channels is 4. Use 1 (gray) or 3 (RGB); no source reads latents."),
    ({"image_size": 0}, "config.data.image_size is 0."),
    ({"resize": "padd"}, "unknown resize (config.data.resize) 'padd'. Did you mean 'pad'? Known: auto, pad."),
    ({"resize": "pad", "random_crop": True}, "config.data.random_crop=True crops"),
  ],
)
def test_wrong_views_are_told(section, wrong, message):
  with pytest.raises(UserError) as e:
    transforms.view(section(**wrong), train=True)
  assert message in str(e.value)


def test_without_training_nothing_is_random(section):
  v = transforms.view(section(random_crop=True, random_flip=True), train=False)
  assert not v.random_crop and not v.random_flip
