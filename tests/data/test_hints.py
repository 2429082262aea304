"""Hints: each detector against shapes whose edges, lines and areas are known, and what each refuses."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from jaxdiff import data
from jaxdiff.data import hints
from jaxdiff.data.hints import areas, lines, maps, networks, strokes
from jaxdiff.errors import UserError
from jaxdiff.scores.fidelity import edges_f1

DETECTORS = sorted(hints.HINTS.keys() - {"depth"})
SPECS = [*DETECTORS, "hough(detector=lsd)", "hough(orders=8)", "scribble(detector=xdog)", "canny(spread=1.0)"]


def told(function, *arguments, **keywords):
  with pytest.raises(UserError) as e:
    function(*arguments, **keywords)
  assert "\n" not in str(e.value)
  return str(e.value)


def scene(height, width, channels=3):
  """A bright disc, a darker box and a line on a ground with noise."""
  rng = np.random.default_rng(0)
  image = np.full((height, width, 3), (60, 90, 40), np.uint8)
  side = min(height, width)
  cv2.rectangle(image, (width // 8, height // 8), (width // 2, height // 2), (200, 40, 60), -1)
  cv2.circle(image, (2 * width // 3, 2 * height // 3), side // 5, (220, 220, 90), -1)
  cv2.line(image, (0, height - 2), (width - 1, height // 2), (255, 255, 255), max(1, side // 32))
  image = np.clip(image.astype(int) + rng.integers(-6, 7, image.shape), 0, 255).astype(np.uint8)
  return image if channels == 3 else image[..., :1].copy()


SIZES = [(8, 8, 1), (32, 32, 3), (129, 65, 3), (65, 129, 1)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spec", SPECS)
def test_shapes_types_values_and_purity(spec, size):
  image = scene(*size)
  before = image.copy()
  hint = hints.parse(spec)
  one = hints.detect(hint, image, seed=1)
  assert one.shape == (*size[:2], hint.channels) and one.dtype == np.uint8
  np.testing.assert_array_equal(image, before)
  if hint.channels == 1:
    assert set(np.unique(one)) <= {0, 255}
  else:
    colours = {tuple(c) for c in hints.palette().tolist()}
    assert {tuple(c) for c in one.reshape(-1, 3).tolist()} <= colours
  if min(size[:2]) > 8:
    assert (one != one[0, 0]).any()  # there is something to see in the scene
  np.testing.assert_array_equal(
    hints.detect(hint, image[:, ::-1][:, ::-1], seed=1), one
  )  # whatever the strides


def test_names_and_channels_belong_together():
  assert set(hints.HINTS) == set(hints.CHANNELS) == set(maps.READINGS)
  assert set(hints.HINTS) == {"canny", "hough", "scribble", "segmentation", "depth"}


@pytest.mark.parametrize("spec", SPECS)
def test_opencvs_own_random_numbers_do_not_matter(spec):
  image, hint = scene(64, 64), hints.parse(spec)
  found = []
  for seed in (1, 2):
    cv2.setRNGSeed(seed)
    cv2.randu(np.zeros((3, seed)), 0, 1)
    found.append(hints.detect(hint, image, seed=5))
  np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("spec", ["canny(spread=2.0)", "scribble", "scribble(detector=xdog)"])
def test_a_seed_is_what_a_random_hint_follows(spec):
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 1), dtype=np.uint8)  # edges of any strength
  image, hint = cv2.GaussianBlur(noise, (0, 0), 3)[..., None], hints.parse(spec)
  image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX).reshape(64, 64, 1)
  drawn = [hints.detect(hint, image, seed).tobytes() for seed in (0, 1, 2, 0)]
  assert drawn[0] == drawn[3]
  assert len(set(drawn)) == 3


@pytest.mark.parametrize(
  "image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8)]
)
@pytest.mark.parametrize("name", hints.HINTS)
def test_other_arrays_are_refused(name, image):
  with pytest.raises(TypeError, match=r"made of an image uint8\[H,W,1 or 3\]"):
    hints.HINTS[name](image)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("value", [0, 128, 255])
def test_nothing_is_found_in_nothing(name, value):
  assert not hints.HINTS[name](np.full((32, 32, 3), value, np.uint8)).any()


# canny


def rectangle(height=40, width=60, top=9, bottom=30, left=13, right=45):
  """A bright rectangle, and for each pixel how far it is from the rectangle's border (maximum norm)."""
  image = np.full((height, width, 1), 30, np.uint8)
  image[top:bottom, left:right] = 200
  y, x = np.mgrid[:height, :width] + 0.5
  outside = np.maximum.reduce([top - y, y - bottom, left - x, x - right])
  return image, np.abs(outside)


@pytest.mark.parametrize("blur", [0.0, 0.8, 1.5])
def test_a_rectangles_edges_lie_on_its_border(blur):
  image, distance = rectangle()
  edges = hints.canny(image, blur=blur)[..., 0] > 0
  assert distance[edges].max() <= 1
  # and it is closed: all of the border but rounded corners has an edge within a pixel
  border = distance < 1
  near = cv2.dilate(edges.astype(np.uint8), np.ones((3, 3))) > 0
  assert (border & ~near).sum() <= 4
  # thin: along a row across the rectangle's middle there are two edge pixels
  assert edges[20].sum() == 2


def test_an_edge_between_colours_of_equal_brightness_is_seen():
  image = np.zeros((32, 32, 3), np.uint8)
  image[:, :16], image[:, 16:] = (200, 0, 0), (0, 102, 0)  # luma 60 on both sides
  assert cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).std() == 0
  columns = np.unique(np.nonzero(hints.canny(image)[..., 0])[1])
  assert len(columns) == 1 and columns[0] in (15, 16)


def test_hysteresis_keeps_weak_edges_that_lead_to_strong_ones():
  """A vertical step grows from height 15 to 50, its gradient, 4 times that, from 60 to 200."""

  def kept(top, **thresholds):
    image = np.full((48, 32, 1), 100, np.uint8)
    image[:, 16:] += np.linspace(15, top, 48).astype(np.uint8)[:, None, None]
    return hints.canny(image, blur=0.0, **thresholds)[2:-2].any(axis=(1, 2))

  assert kept(50, low=50.0, high=150.0).all()
  assert not kept(35, low=50.0, high=150.0).any()  # nothing is above 140
  share = kept(50, low=120.0, high=150.0)  # from height 30 on
  assert abs(share.mean() - (50 - 30) / (50 - 15)) < 0.06
  assert abs(kept(50, low=150.0, high=150.0).mean() - (50 - 37.5) / (50 - 15)) < 0.06


def test_spread_multiplies_both_thresholds_by_a_factor_within_it():
  """The step's gradient is 400 times (1..3) / 3: with thresholds t f the edge shows while f < 400 / t."""
  image = np.zeros((16, 16, 1), np.uint8)
  image[:, 8:] = 100  # gradient 400
  seeds = range(300)

  def share(threshold):
    found = [
      hints.canny(image, low=threshold, high=threshold, blur=0.0, spread=1.0, seed=s).any() for s in seeds
    ]
    return np.mean(found)

  assert share(199.0) == 1  # a factor of at most 2
  assert share(801.0) == 0  # of at least 1/2
  # log-uniform: half of the factors are below 1, three quarters below 2^(1/2)
  assert abs(share(400.0) - 0.5) < 0.1
  assert abs(share(400 / 2**0.5) - 0.75) < 0.1


# hough


@pytest.mark.parametrize("detector", ["hough", "lsd"])
@pytest.mark.parametrize("side", [32, 64, 256])
def test_a_drawn_lines_ends_are_found(detector, side):
  image = np.zeros((side, side, 1), np.uint8)
  ends = np.array([[0.2, 0.3], [0.8, 0.7]]) * side
  cv2.line(image, *np.rint(ends).astype(int).tolist(), 255, max(2, side // 16))
  drawn = hints.hough(image, detector=detector, votes=0.2, min_length=0.3)[..., 0]
  y, x = np.nonzero(drawn)
  assert len(x)
  tolerance = 0.08 * side + 1
  assert abs(x.min() - ends[0, 0]) < tolerance and abs(x.max() - ends[1, 0]) < tolerance
  # all that is drawn lies along the line, within half of its width and a pixel or two
  direction = np.diff(ends, axis=0)[0]
  normal = np.array([-direction[1], direction[0]]) / np.hypot(*direction)
  apart = np.abs((np.stack([x, y], axis=1) - ends[0]) @ normal)
  assert apart.max() <= side / 32 + 2.5


def test_the_line_segment_detector_keeps_places_and_lengths():
  gray = np.zeros((64, 64), np.uint8)
  gray[:, 24:] = 200  # an edge between the columns 23 and 24, over the whole height
  (x0, y0, x1, y1), *more = lines.grown(gray, 20.0)
  assert not more
  np.testing.assert_allclose([x0, x1], 23.5, atol=0.2)
  assert abs(y1 - y0) > 56
  assert len(lines.grown(gray, 80.0)) == 0


def test_line_width_follows_the_images_size():
  found = {}
  for side in (32, 512):
    image = np.zeros((side, side, 1), np.uint8)
    image[:, side // 2 :] = 255
    found[side] = hints.hough(image)[side // 2, :, 0].astype(bool).sum()
  assert found[32] == 1 and found[512] in (2, 3)  # OpenCV draws a line of 2 pixels with 3


def test_an_image_is_turned_in_eight_ways_and_back():
  image = np.arange(15, dtype=np.uint8).reshape(3, 5, 1)
  ways = [lines.turned(image, number) for number in range(lines.ORDERS)]
  assert len({(way.shape, way.tobytes()) for way in ways}) == lines.ORDERS
  assert all((lines.turned_back(way, number) == image).all() for number, way in enumerate(ways))


def test_more_orders_find_the_same_lines_again_in_an_image_that_hardly_differs():
  source, noise = data.load("shapes"), np.random.default_rng(0)
  images = np.stack([example["image"] for example in source.take(range(40))])
  noisy = np.clip(np.rint(images + noise.normal(0, 5, images.shape)), 0, 255).astype(np.uint8)

  def found_again(orders):
    asked, found = (
      np.stack([hints.hough(image, orders=orders) for image in some]) for some in (images, noisy)
    )
    return edges_f1(asked[..., 0], found[..., 0])

  assert found_again(1) < 0.7 and found_again(8) > 0.9
  one, eight = (hints.hough(images[0], orders=orders) for orders in (1, 8))
  assert (eight[one > 0] > 0).all() and eight.sum() > one.sum(), "the first order's lines are among them"


# scribble


def test_a_scribble_runs_along_the_contour_with_gaps():
  image, distance = rectangle(120, 120, 30, 90, 30, 90)
  strokes_drawn = hints.scribble(image, seed=3)[..., 0] > 0
  assert distance[strokes_drawn].max() < 0.024 * 120 + 4 * 0.01 * 120  # half a stroke and wobble
  border = distance < 1
  reached = cv2.dilate(strokes_drawn.astype(np.uint8), np.ones((9, 9))) > 0
  assert 0.5 < (border & reached).sum() / border.sum() <= 1
  whole = hints.scribble(image, seed=3, gaps=0.0)[..., 0] > 0
  broken = hints.scribble(image, seed=3, gaps=0.5)[..., 0] > 0
  assert broken.sum() < 0.75 * whole.sum()
  assert not (broken & ~whole).any()  # a gap takes away, and adds nothing
  steady = hints.scribble(image, gaps=0.0, wobble=0.0)[..., 0] > 0
  assert distance[steady].max() <= 4


def test_strokes_are_as_wide_in_an_image_of_any_size():
  shares = []
  for side in (96, 192, 480):
    image, _ = rectangle(side, side, side // 4, 3 * side // 4, side // 4, 3 * side // 4)
    shares.append((hints.scribble(image, wobble=0.0, gaps=0.0) > 0).mean())
  np.testing.assert_allclose(shares, shares[-1], rtol=0.35)
  thick = hints.scribble(image, wobble=0.0, gaps=0.0, width=0.06)
  assert (thick > 0).mean() > 2 * shares[-1]


def test_xdog_in_closed_form():
  """Of a constant image S is its brightness: T is 1 at and above the level, 1 + tanh(phi (S - level)) below."""
  for value in (0, 90, 102, 200):
    ink = strokes.xdog(np.full((20, 20, 1), value, np.uint8), 2.0, 0.4)
    s = value / 255
    np.testing.assert_allclose(ink, 1 if s >= 0.4 else 1 + np.tanh(20 * (s - 0.4)), atol=1e-4)
  # beside a step the dark side sinks below its own brightness, the bright one rises above its own
  step = np.full((20, 40, 1), 128, np.uint8)
  step[:, 20:] = 255
  ink = strokes.xdog(step, 1.5, 0.4)
  assert ink[10, 2] == 1 and ink[10, 38] == 1 and ink[10, 18] < 0.5


def drawing(height=90, width=120):
  page = np.zeros((height, width), np.uint8)
  cv2.ellipse(page, (width // 2, height // 2), (width // 3, height // 3), 10, 0, 300, 255, 3)
  cv2.line(page, (5, 5), (30, 60), 255, 2)
  return page


def test_dark_on_light_is_light_on_dark():
  page = drawing()
  expected = page[..., None]
  for ink, paper in ((255, 0), (0, 255), (40, 230), (200, 20), (120, 255)):
    mixed = np.where(page > 0, ink, paper).astype(np.uint8)
    for given in (mixed, mixed[..., None], mixed[..., None].repeat(3, -1), mixed[..., None].repeat(4, -1)):
      np.testing.assert_array_equal(hints.from_drawing(given), expected)


def test_noise_of_the_paper_is_no_stroke():
  rng = np.random.default_rng(0)
  paper = rng.integers(225, 256, (60, 80), dtype=np.uint8)
  assert not hints.from_drawing(paper).any()
  page = drawing(60, 80)
  scanned = np.where(page > 0, 60, paper).astype(np.uint8)
  np.testing.assert_array_equal(hints.from_drawing(scanned)[..., 0], page)


# segmentation


def test_the_palette():
  colours = hints.palette().astype(int)
  assert colours.shape == (256, 3) and hints.palette().dtype == np.uint8
  assert len({tuple(c) for c in colours.tolist()}) == 256
  apart = [np.abs(a - b).max() for a, b in itertools.combinations(colours[:20], 2)]
  assert min(apart) >= 64
  known = {
    0: (0, 0, 0),
    1: (128, 0, 0),
    2: (0, 128, 0),
    4: (0, 0, 128),
    15: (192, 128, 128),
    20: (0, 64, 128),
  }
  known[255] = (224, 224, 192)
  assert {label: tuple(colours[label].tolist()) for label in known} == known


def test_labels_are_coloured():
  labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
  np.testing.assert_array_equal(hints.segmentation_from_labels(labels).reshape(-1, 3), hints.palette())
  for wrong in (labels[..., None], labels.astype(np.int32), labels.astype(np.uint16)):
    with pytest.raises(TypeError, match=r"a label map is uint8\[H,W\]"):
      hints.segmentation_from_labels(wrong)


@pytest.mark.parametrize("side", [32, 200])
def test_areas_of_one_colour_are_regions_by_their_size(side):
  image = np.full((side, side, 3), (20, 40, 160), np.uint8)  # the largest: label 0
  image[: side // 2, : side // 2] = (230, 220, 40)  # a quarter: 1
  image[-side // 4 :, -side // 4 :] = (180, 30, 30)  # a sixteenth: 2
  expected = np.zeros((side, side), np.uint8)
  expected[: side // 2, : side // 2] = 1
  expected[-side // 4 :, -side // 4 :] = 2
  found = hints.segmentation(image, smooth=0.0)
  np.testing.assert_array_equal(found, hints.segmentation_from_labels(expected))
  # mean shift moves nothing between areas so different
  assert (hints.segmentation(image) != found).any(axis=-1).mean() < 0.02


def test_one_colour_in_two_places_is_two_regions_and_specks_are_none():
  image = np.full((64, 64, 3), 30, np.uint8)
  image[5:25, 5:25] = 220
  image[35:60, 35:60] = 220
  image[10, 50] = 220  # a speck: its surroundings take it
  found = areas.regions(image, 2, 0.01, 0.0)
  assert found[10, 10] == 2 and found[40, 40] == 1 and found[10, 50] == 0
  assert set(np.unique(found)) == {0, 1, 2}


def test_small_regions_go_to_the_nearest():
  numbers = np.zeros((10, 10), np.int32)
  numbers[:, 5:] = 1
  numbers[2, 6:8] = 2
  expected = numbers.copy()
  expected[2, 6:8] = 1
  np.testing.assert_array_equal(areas.merged(numbers, 3), expected)
  np.testing.assert_array_equal(areas.merged(numbers, 2), numbers)
  assert len(np.unique(areas.merged(numbers, 1000))) == 1  # all too small: the largest takes all


# depth


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_depth_is_normalised_in_closed_form(dtype):
  rng = np.random.default_rng(0)
  given = rng.integers(5, 200, (9, 7)).astype(dtype) * (1 if dtype == np.uint8 else 300)
  v = given.astype(np.float64)
  expected = 255 * (v - v.min()) / (v.max() - v.min())
  bright = hints.depth_from_map(given)
  assert bright.shape == (9, 7, 1) and bright.dtype == np.uint8
  np.testing.assert_allclose(bright[..., 0], expected, atol=0.5)
  assert bright.min() == 0 and bright.max() == 255
  np.testing.assert_allclose(hints.depth_from_map(given, "dark")[..., 0], 255 - expected, atol=0.5)
  inverse = 1 / v
  expected = 255 * (inverse - inverse.min()) / (inverse.max() - inverse.min())
  np.testing.assert_allclose(hints.depth_from_map(given, near="distance")[..., 0], expected, atol=0.5)


def test_scale_and_shift_of_inverse_depth_do_not_matter():
  given = np.random.default_rng(0).integers(0, 100, (9, 7)).astype(np.uint16)
  np.testing.assert_array_equal(hints.depth_from_map(given), hints.depth_from_map(given * 600 + 900))


def test_what_was_not_measured_is_far():
  given = np.array([[0, 1000], [2000, 4000]], np.uint16)
  np.testing.assert_array_equal(hints.depth_from_map(given, "distance")[..., 0], [[0, 255], [128, 64]])


def test_a_constant_depth_is_black():
  for near in ("bright", "dark", "distance"):
    assert not hints.depth_from_map(np.full((4, 4), 77, np.uint16), near).any()


def test_other_depth_maps_are_refused():
  for wrong in (np.zeros((4, 4)), np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4), np.int32)):
    with pytest.raises(TypeError, match=r"a depth map is uint8 or uint16 \[H,W\]"):
      hints.depth_from_map(wrong)
  assert "Did you mean 'bright'" in told(hints.depth_from_map, np.zeros((4, 4), np.uint8), "brigth")


def test_depth_without_a_map_or_network_says_what_to_give():
  message = told(hints.HINTS["depth"], scene(32, 32))
  for word in ("depth maps (shapes)", "config.data.hint_maps", 'depth(onnx="FILE")'):
    assert word in message


# networks


@pytest.fixture
def export(tmp_path):
  """Writes a network of the given nodes, from `images` to `y`."""
  onnx = pytest.importorskip("onnx")
  pytest.importorskip("onnxruntime")
  from onnx import TensorProto, helper

  counter = itertools.count()

  def make(*nodes, shape=("n", 3, "h", "w"), constants=()):
    made = [helper.make_node(op, ins, outs, **attributes) for op, ins, outs, attributes in nodes]
    graph = helper.make_graph(
      made,
      "tiny",
      [helper.make_tensor_value_info("images", TensorProto.FLOAT, list(shape))],
      [helper.make_empty_tensor_value_info("y")],
      [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path / f"{next(counter)}.onnx"
    onnx.save(model, path)
    return str(path)

  return make


def colours(height=12, width=10):
  """An image of pure red, green and blue, and which of them a pixel is."""
  which = np.random.default_rng(0).integers(0, 3, (height, width)).astype(np.uint8)
  return (255 * np.eye(3, dtype=np.uint8))[which], which


def test_logits_of_a_network_are_labels(export):
  image, which = colours()
  path = export(("Identity", ["images"], ["y"], {}))
  found = hints.segmentation(image, onnx=path, scaling="unit")
  np.testing.assert_array_equal(found, hints.segmentation_from_labels(which))
  last = export(("Identity", ["images"], ["y"], {}), shape=("n", "h", "w", 3))
  np.testing.assert_array_equal(hints.segmentation(image, onnx=last, scaling="unit"), found)


@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_label_map_of_a_network_is_taken_as_it_is(export, keepdims):
  image, which = colours()
  path = export(("ArgMax", ["images"], ["y"], {"axis": 1, "keepdims": keepdims}))
  found = hints.segmentation(image, onnx=path)
  np.testing.assert_array_equal(found, hints.segmentation_from_labels(which))


def test_a_network_of_fixed_and_of_smaller_size(export):
  image = np.zeros((32, 64, 3), np.uint8)
  image[:16, :, 0], image[16:, :, 2] = 255, 255
  pooled = ("AveragePool", ["images"], ["y"], {"kernel_shape": [4, 4], "strides": [4, 4]})
  path = export(pooled, shape=(1, 3, 16, 16))
  expected = np.zeros((32, 64), np.uint8)
  expected[16:] = 2
  found = hints.segmentation(image, onnx=path, scaling="unit")
  np.testing.assert_array_equal(found, hints.segmentation_from_labels(expected))


@pytest.mark.parametrize(("near", "sign"), [("bright", 1), ("dark", -1)])
def test_a_networks_depth_is_normalised(export, near, sign):
  image = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
  path = export(("ReduceMean", ["images"], ["y"], {"axes": [1], "keepdims": 0}))
  v = sign * image.astype(np.float64).mean(axis=-1)
  expected = 255 * (v - v.min()) / (v.max() - v.min())
  found = hints.depth(image, onnx=path, scaling="unit", near=near)
  assert found.shape == (12, 10, 1)
  np.testing.assert_allclose(found[..., 0], expected, atol=0.51)
  gray = image[..., :1]
  as_rgb = hints.depth(gray, onnx=path, scaling="unit")
  np.testing.assert_array_equal(as_rgb, hints.depth_from_map(gray[..., 0]))


def test_a_network_that_reads_gray_gets_the_luma(export):
  image = scene(16, 16)
  path = export(("Identity", ["images"], ["y"], {}), shape=("n", 1, "h", "w"))
  luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
  found = hints.depth(image, onnx=path, scaling="unit")
  np.testing.assert_array_equal(found, hints.depth_from_map(luma))


def test_networks_that_do_not_fit(export, tmp_path):
  image, _ = colours()
  vectors = export(("ReduceMean", ["images"], ["y"], {"axes": [2, 3], "keepdims": 0}))
  assert "shape [1, 3] for 1 images; a hint wants logits" in told(hints.segmentation, image, onnx=vectors)
  assert "shape [1, 3] for 1 images; a hint wants depths" in told(hints.depth, image, onnx=vectors)
  three = export(("Identity", ["images"], ["y"], {}))
  assert "a depth hint wants [N,h,w] or [N,1,h,w]" in told(hints.depth, image, onnx=three)
  two = export(("Identity", ["images"], ["y"], {}), shape=("n", 2, "h", "w"))
  assert "either axis 1 or axis 3 should be 1 or 3" in told(hints.segmentation, image, onnx=two)
  assert "there is no ONNX file" in told(hints.segmentation, image, onnx=str(tmp_path / "none.onnx"))
  assert "Did you mean 'imagenet'" in told(hints.depth, image, onnx=three, scaling="image_net")
  high = export(("ReduceMean", ["images"], ["y"], {"axes": [1], "keepdims": 0}))
  assert "labels of -" in told(
    hints.segmentation, np.zeros((4, 4, 3), np.uint8), onnx=high
  )  # imagenet's mean
  broken = export(("Log", ["images"], ["x"], {}), ("ReduceMean", ["x"], ["y"], {"axes": [1]}))
  assert "not finite" in told(hints.depth, image, onnx=broken, scaling="unit")


def test_a_network_is_opened_once(export, monkeypatch):
  image, _ = colours()
  path = export(("Identity", ["images"], ["y"], {}))
  opened = []
  real = networks.onnx_file.open_session
  monkeypatch.setattr(networks.onnx_file, "open_session", lambda p: opened.append(p) or real(p))
  for _ in range(3):
    hints.segmentation(image, onnx=path)
  assert len(opened) == 1


# specs and checks


def test_a_spec_is_read_with_its_defaults():
  assert hints.parse("") is None
  plain = hints.parse("canny")
  assert plain.arguments == {"low": 50.0, "high": 150.0, "blur": 0.8, "spread": 0.0} and plain.channels == 1
  given = hints.parse("canny(low=20,spread=1.0)")
  assert given.arguments == plain.arguments | {"low": 20.0, "spread": 1.0}
  image = scene(32, 32)
  np.testing.assert_array_equal(
    hints.detect(given, image, 3), hints.canny(image, low=20.0, spread=1.0, seed=3)
  )
  assert hints.parse("depth(onnx='a b/c.onnx', near=distance)").arguments["onnx"] == "a b/c.onnx"


def test_augmentation_ends_with_training():
  hint = hints.parse("canny(spread=3.0)", train=False)
  image = scene(32, 32)
  for seed in range(4):
    np.testing.assert_array_equal(hints.detect(hint, image, seed), hints.canny(image))


@pytest.mark.parametrize(
  ("spec", "words"),
  [
    ("cany", "unknown hint 'cany'. Did you mean 'canny'?"),
    ("canny(lo=3)", "unknown argument of hint 'canny': 'lo'. Did you mean 'low'?"),
    ("canny(low=high)", "low of hint 'canny' takes a number (by default 50.0), not 'high'."),
    ("canny(low", "cannot read the hint 'canny(low'."),
    ("scribble(seed=3)", "follows from config.seed"),
  ],
)
def test_specs_that_are_wrong(spec, words):
  assert words in told(hints.parse, spec)


@pytest.mark.parametrize(
  ("spec", "words"),
  [
    ("canny(low=200.0)", "low of hint 'canny' is 200.0, above high, 150.0"),
    ("hough(low=200.0)", "low of hint 'hough' is 200.0, above high, 150.0"),
    ("canny(blur=-1.0)", "blur of hint 'canny' is -1.0 (config.data.hint). Use at least 0."),
    ("hough(orders=9)", "orders of hint 'hough' is 9 (config.data.hint). Use 1 to 8, a whole number."),
    ("hough(orders=0)", "Use 1 to 8"),
    ("hough(detector=lsp)", "Did you mean 'lsd'?"),
    ("scribble(detector=dog)", "Did you mean 'xdog'?"),
    ("scribble(width=-0.1)", "width of hint 'scribble' is -0.1"),
    ("segmentation(colours=0)", "colours of hint 'segmentation' is 0 (config.data.hint). Use at least 1."),
    ("depth(near=left)", "unknown near of hint 'depth' (config.data.hint) 'left'."),
  ],
)
def test_parameters_that_cannot_be(spec, words):
  assert words in told(hints.detect, hints.parse(spec), scene(32, 32))


def test_a_mark_tells_hints_and_files_apart(tmp_path):
  file = tmp_path / "a.onnx"
  file.write_bytes(b"one")
  other = tmp_path / "b.onnx"
  other.write_bytes(b"one")
  mark = hints.mark(hints.parse(f"depth(onnx={str(file)!r})"))
  assert mark == hints.mark(hints.parse(f"depth(onnx={str(other)!r})"))
  other.write_bytes(b"two")
  assert mark != hints.mark(hints.parse(f"depth(onnx={str(other)!r})"))
  assert hints.mark(hints.parse("canny")) == hints.mark(hints.parse("canny(low=50)"))
  assert hints.mark(hints.parse("canny")) != hints.mark(hints.parse("canny(low=51)"))


def test_a_map_that_a_model_cannot_follow():
  good = hints.canny(scene(32, 32))
  hints.check_map(good, 1, 32)
  assert "my.png is 32x32 pixels, the model's hints are 16x16" in told(hints.check_map, good, 1, 16, "my.png")
  assert "has 1 channels, the model's hints have 3" in told(hints.check_map, good, 3, 32)
  assert "is empty: all of its pixels are 9,9,9." in told(
    hints.check_map, np.full((8, 8, 3), 9, np.uint8), 3, 8
  )
  assert "is float64[8, 8, 1], not uint8[H,W,C]" in told(hints.check_map, np.zeros((8, 8, 1)), 1, 8)
