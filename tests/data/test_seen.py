"""What images of scenes show: depths by their colours, kinds by their outlines, also where they are noisy or no scenes."""

from __future__ import annotations

import functools

import cv2
import numpy as np
import pytest

from jaxdiff import data
from jaxdiff.data import outlines, seen, silhouettes, surfaces
from jaxdiff.data.silhouettes import SIDE, Silhouette
from jaxdiff.scores.fidelity import mean_iou

CLASSES = 1 + len(outlines.KINDS)
GRAY, RED, GREEN, BLUE = (128, 128, 128), (230, 40, 40), (20, 120, 20), (60, 60, 250)


@functools.cache
def scenes(size: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Images, label maps and depths of test scenes."""
  examples = data.load(f"shapes:{size}", "test").take(range(count))
  maps = [example["maps"] for example in examples]
  return tuple(
    np.stack(arrays)
    for arrays in (
      [e["image"] for e in examples],
      [m["segmentation"] for m in maps],
      [m["depth"] for m in maps],
    )
  )


def noisy(images: np.ndarray, sigma: float) -> np.ndarray:
  noise = sigma * np.random.default_rng(0).standard_normal(images.shape)
  return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)


def covered(kind: str, x: float, y: float, radius: float, turn: float = 0.3, size: int = 32) -> np.ndarray:
  """Pixels whose middle an outline covers, bool[S,S]."""
  at = (np.arange(size) + 0.5) / size
  dx, dy = (at - x)[None], (at - y)[:, None]
  c, s = np.cos(turn), np.sin(turn)
  return outlines.KINDS[kind].covers((c * dx + s * dy) / radius, (c * dy - s * dx) / radius)


def label_of(kind: str) -> int:
  return 1 + list(outlines.KINDS).index(kind)


def inner(mask: np.ndarray) -> np.ndarray:
  return cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=0) > 0


@pytest.mark.parametrize("size", [32, 64])
def test_colours_tell_depth(size):
  images, labels, depths = scenes(size, 100)
  for image, label, depth in zip(images, labels, depths, strict=True):
    same = inner(label == 0)
    for level in np.unique(depth[label > 0]):
      same |= inner(depth == level)
    found = seen.apparent_depth(image)
    assert found.dtype == np.uint16
    np.testing.assert_allclose(found[same] / 65535, depth[same] / 65535, atol=0.03)


def test_gray_is_far_and_black_and_white_are_no_error():
  grays = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
  assert not seen.apparent_depth(grays).any()
  assert seen.apparent_depth(np.array([[255, 0, 0], [0, 0, 9]], np.uint8)).tolist() == [65535, 65535]


@pytest.mark.parametrize(
  ("size", "sigma", "accuracy", "iou"),
  [
    (32, 0, 0.98, 0.94),
    (32, 5, 0.98, 0.94),
    (32, 10, 0.975, 0.93),
    (64, 0, 0.985, 0.955),
    (128, 10, 0.99, 0.965),
  ],
)
def test_label_maps_are_found_in_scenes(size, sigma, accuracy, iou):
  images, labels, _ = scenes(size, 200)
  found = np.stack([seen.apparent_segmentation(image) for image in noisy(images, sigma)])
  assert found.dtype == np.uint8
  assert (found == labels).mean() > accuracy
  assert mean_iou(labels, found, CLASSES) > iou


@pytest.mark.parametrize("size", [37, 100])
def test_a_size_may_be_any(size):
  images, labels, _ = scenes(size, 50)
  found = np.stack([seen.apparent_segmentation(image) for image in images])
  assert mean_iou(labels, found, CLASSES) > 0.93


def test_what_is_found_does_not_hang_on_what_was_read_before():
  images, *_ = scenes(32, 20)
  before = [seen.apparent_segmentation(image) for image in images]
  after = [seen.apparent_segmentation(image) for image in images[::-1]][::-1]
  np.testing.assert_array_equal(before, after)


def test_brightness_may_differ():
  """Drawn images miss colours by some levels."""
  images, labels, _ = scenes(32, 100)
  shift = np.random.default_rng(1).integers(-8, 9, (len(images), 1, 1, 3))
  found = [seen.apparent_segmentation(image) for image in np.clip(images + shift, 0, 255).astype(np.uint8)]
  assert mean_iou(labels, np.stack(found), CLASSES) > 0.92


def odd_images():
  rng = np.random.default_rng(0)
  for height, width in ((32, 32), (1, 1), (2, 3), (5, 40), (31, 33), (64, 150)):
    y, x = np.mgrid[:height, :width]
    dot, line = np.full((2, height, width, 3), 90, np.uint8)
    dot[height // 2, width // 2] = line[height // 2] = RED
    yield "dot", dot
    yield "line", line
    yield "noise", rng.integers(0, 256, (height, width, 3), np.uint8)
    yield "black and white", (rng.integers(0, 2, (height, width, 1)) * 255).repeat(3, axis=2).astype(np.uint8)
    yield "checker", ((x + y) % 2 * 255)[..., None].repeat(3, axis=2).astype(np.uint8)
    yield "ramp", np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=2).astype(np.uint8)
    blocks = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    yield "blocks", np.kron(blocks, np.ones((8, 8, 1), np.uint8))[:height, :width]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "image"), list(odd_images()))
def test_odd_images_have_some_map(name, image):
  found = seen.apparent_segmentation(image)
  assert found.shape == image.shape[:2] and found.dtype == np.uint8 and found.max() < CLASSES
  if name in ("dot", "line") and image.shape[0] == 32:
    assert not found.any()  # specks are no shapes


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("gray", [0, 127, 255])
def test_an_image_of_one_colour_is_ground(gray):
  assert not seen.apparent_segmentation(np.full((32, 32, 3), gray, np.uint8)).any()


def test_touching_shapes_of_one_colour_are_told_apart():
  image, wanted = np.full((32, 32, 3), GRAY, np.uint8), np.zeros((32, 32), np.uint8)
  for kind, x, y in (("circle", 0.3, 0.3), ("cross", 0.65, 0.65)):
    here = covered(kind, x, y, 0.24)
    image[here], wanted[here] = RED, label_of(kind)
  assert (seen.apparent_segmentation(image) == wanted).mean() > 0.98


def test_a_shape_in_two_colours_is_one():
  image, ring = np.full((32, 32, 3), GRAY, np.uint8), covered("ring", 0.5, 0.5, 0.25)
  image[ring] = RED
  image[:, :16][ring[:, :16]] = GREEN
  np.testing.assert_array_equal(seen.apparent_segmentation(image), np.where(ring, label_of("ring"), 0))


def test_nearer_shapes_hide_a_part():
  """A purer colour is nearer: what a blue square hides of a dull star is left open."""
  image, star, square = (
    np.full((32, 32, 3), GRAY, np.uint8),
    covered("star", 0.4, 0.4, 0.2),
    covered("square", 0.58, 0.58, 0.25),
  )
  image[star], image[square] = (180, 25, 25), BLUE
  wanted = np.where(square, label_of("square"), np.where(star, label_of("star"), 0))
  np.testing.assert_array_equal(seen.apparent_segmentation(image), wanted)


@pytest.mark.parametrize("kind", outlines.KINDS)
def test_an_outline_is_found_again(kind):
  """Of all turns and places, with its cover; its upper left hidden."""
  number = list(outlines.KINDS).index(kind)
  rng = np.random.default_rng(number)
  weight = np.ones((SIDE, SIDE), np.float32)
  weight[:12, :12] = 0
  for _ in range(10):
    turn, x, y, radius = rng.random(4) * (2 * np.pi, 0.4, 0.4, 0.12) + (0, 0.3, 0.3, 0.18)
    share = silhouettes.cover(np.array([number]), np.array([[turn, x, y, radius]], np.float32))[0]
    match = silhouettes.match(Silhouette(share * weight, weight, 0.95 * radius, 0.07))
    assert match.kind == number and match.cost < 6
    assert np.abs((match.cover - share) * weight).mean() < 0.025


@pytest.mark.parametrize("kind", outlines.KINDS)
def test_covers_have_the_outlines_area(kind):
  number = list(outlines.KINDS).index(kind)
  fine = covered(kind, 0.5, 0.5, 0.3, size=512).mean()
  share = silhouettes.cover(np.array([number]), np.array([[0.3, 0.5, 0.5, 0.3]], np.float32))
  assert share.mean() == pytest.approx(fine, rel=0.01)


@pytest.mark.parametrize("kind", [kind for kind in outlines.KINDS if outlines.KINDS[kind].turns])
def test_turns_after_which_an_outline_looks_the_same(kind):
  turns = outlines.KINDS[kind].turns
  first, again, between = (
    covered(kind, 0.5, 0.5, 0.3, turn, size=200) for turn in (0, 2 * np.pi / turns, np.pi / turns)
  )
  assert (first != again).mean() < 0.002 < (first != between).mean()


def test_surfaces_are_told_by_colour_and_the_ground_by_the_border():
  image = np.full((48, 48, 3), GRAY, np.uint8)
  image += np.arange(48, dtype=np.uint8)[:, None, None] // 2  # a ground that is brighter below
  image[10:20, 10:25], image[30:40, 5:20], image[24, 40] = RED, BLUE, GREEN
  found = surfaces.find(image, SIDE)
  assert len(found.colours) == 3 and found.colours.shape == (3, 3) and found.spreads.shape == (3,)
  assert (found.label[10:20, 10:25] == 1).all() and (found.label[30:40, 5:20] == 2).all()
  assert (found.label > 0).sum() == 300
  np.testing.assert_allclose(found.colours[1:], [RED, BLUE], atol=3)


def test_means_over_cells_keep_the_mean():
  pixels = np.random.default_rng(0).random((45, 128, 2), np.float32)
  cells = surfaces.means(pixels, SIDE)
  assert cells.shape == (SIDE, SIDE, 2)
  np.testing.assert_allclose(cells.mean((0, 1)), pixels.mean((0, 1)), rtol=1e-5)
  np.testing.assert_array_equal(surfaces.means(pixels[:SIDE, :SIDE], SIDE), pixels[:SIDE, :SIDE])
