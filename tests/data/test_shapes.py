"""Drawn scenes: functions of their number, whose maps agree with the image."""

from __future__ import annotations

import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest

from jaxdiff import data
from jaxdiff.data import base, shapes
from jaxdiff.errors import UserError

KINDS = ("circle", "square", "triangle", "star", "ring", "cross")


@pytest.fixture(scope="module", params=[32, 64])
def some(request):
  """(scene, example) for 300 scenes of a size."""
  scenes = shapes.scenes("train", range(300))
  return [(scene, shapes.draw(scene, request.param)) for scene in scenes]


def mark(examples) -> str:
  """A digest of all that examples hold."""
  return base.digest(*(part for e in examples for part in (e["image"], e["label"], *e["maps"].values())))


def alone(scene, i):
  """The scene with one of its shapes."""
  return scene._replace(
    **{
      name: getattr(scene, name)[[i]] for name in ("kinds", "depths", "radii", "turns", "centres", "colours")
    }
  )


def inner(mask: np.ndarray) -> np.ndarray:
  """Where all pixels within two of a pixel belong to the mask; beyond the border nothing is."""
  square = np.ones((5, 5), np.uint8)
  return cv2.erode(mask.astype(np.uint8), square, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0


@pytest.mark.parametrize(
  ("spec", "size"), [("shapes", 32), ("shapes:64", 64), ("shapes:37", 37), ("shapes:128", 128)]
)
def test_what_an_example_is(spec, size):
  source = data.load(spec)
  assert len(source) == 50_000 and source.label_names == KINDS and len(data.load(spec, "test")) == 5_000
  example = source[49_999]
  assert example["image"].shape == (size, size, 3) and example["image"].dtype == np.uint8
  assert example["image"].flags.c_contiguous and type(example["label"]) is int
  assert list(example["maps"]) == ["segmentation", "depth"]
  for name, dtype in (("segmentation", np.uint8), ("depth", np.uint16)):
    assert example["maps"][name].shape == (size, size) and example["maps"][name].dtype == dtype


def test_an_example_is_a_function_of_its_number():
  source = data.load("shapes")
  rows = [5, 0, 777, 49_999, 6]
  together = source.take(rows)
  again = pickle.loads(pickle.dumps(source))
  assert again.fingerprint == source.fingerprint
  one_by_one = {row: again[row] for row in sorted(rows)}
  assert mark(together) == mark([one_by_one[row] for row in rows])
  assert len({mark([e]) for e in together}) == len(rows)


def test_no_rows_are_no_scenes():
  assert shapes.scenes("train", []) == data.load("shapes").take([]) == []


def test_another_process_draws_the_same():
  code = "import sys; sys.path.insert(0, '.'); from tests.data.test_shapes import mark; from jaxdiff.data import load;"
  code += "print(mark(load('shapes:48', 'test').take(range(20))))"
  command = [sys.executable, "-c", code]
  there = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
  assert there == mark(data.load("shapes:48", "test").take(range(20)))


def test_scenes_are_those_of_this_version():
  """Fails where any scene changed, on whatever machine: raise shapes.VERSION with this digest."""
  assert (shapes.VERSION, mark(data.load("shapes").take(range(100)))) == (1, "908873a24d00")


def test_fingerprints_tell_version_size_and_split(monkeypatch):
  marks = {
    data.load(spec, split).fingerprint for spec in ("shapes", "shapes:64") for split in ("train", "test")
  }
  monkeypatch.setattr(shapes, "VERSION", shapes.VERSION + 1)
  assert len(marks | {data.load("shapes").fingerprint}) == 5
  assert data.load("shapes:32").fingerprint == data.load("shapes").fingerprint


def test_splits_and_shares_have_scenes_of_their_own():
  train, test = shapes.scenes("train", range(50)), shapes.scenes("test", range(50))
  assert not {float(scene.radii[0]) for scene in train} & {float(scene.radii[0]) for scene in test}
  first, rest = data.load("shapes", "train[:10%]"), data.load("shapes", "train[10%:]")
  assert (len(first), len(rest)) == (5_000, 45_000)
  assert mark([first[0]]) != mark([rest[0]])


def test_a_scene_is_the_same_at_every_size():
  small, large = (data.load(spec).take(range(100)) for spec in ("shapes", "shapes:128"))
  assert [e["label"] for e in small] == [e["label"] for e in large]
  for one, other in zip(small, large, strict=True):
    shrunk = cv2.resize(other["image"], (32, 32), interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk.astype(int) - one["image"]).mean() < 2.5


def test_maps_agree_with_each_other_and_with_the_scene(some):
  for scene, example in some:
    segmentation, depth = example["maps"]["segmentation"], example["maps"]["depth"]
    of_shapes = {round(65535 * d): 1 + kind for d, kind in zip(scene.depths, scene.kinds, strict=True)}
    assert len(of_shapes) == len(scene.kinds)
    for level, label in of_shapes.items():
      assert (segmentation[depth == level] == label).all()
    on_ground = ~np.isin(depth, list(of_shapes))
    np.testing.assert_array_equal(on_ground, segmentation == 0)
    assert depth[on_ground].max(initial=0) < 0.46 * 65535 < 0.52 * 65535 < min(of_shapes)


def test_the_ground_is_a_ramp(some):
  for _, example in some[:50]:
    depth = np.where(example["maps"]["segmentation"] == 0, example["maps"]["depth"], np.nan)
    rows, columns = np.nonzero(~np.isnan(depth))
    plane = np.stack([rows, columns, np.ones_like(rows)], axis=1)
    solution, *_ = np.linalg.lstsq(plane, depth[rows, columns], rcond=None)
    np.testing.assert_allclose(plane @ solution, depth[rows, columns], atol=1)
    assert solution[0] > 0  # nearer downwards


def test_colours_are_exact_inside_shapes(some):
  seen = 0
  for scene, example in some:
    for depth, colour in zip(scene.depths, scene.colours, strict=True):
      here = inner(example["maps"]["depth"] == round(65535 * depth))
      assert (example["image"][here] == colour).all()
      seen += here.any()
  assert seen > 1.5 * len(some)


def test_nearer_shapes_hide_farther_ones(some):
  """What each shape covers alone, put together by depth, is the map; the label is the kind of the nearest."""
  for scene, example in some[:100]:
    depth = np.zeros_like(example["maps"]["depth"])
    for i in range(len(scene.kinds)):
      one = shapes.draw(alone(scene, i), len(depth))["maps"]
      depth = np.maximum(depth, np.where(one["segmentation"] > 0, one["depth"], 0))
    on_shapes = example["maps"]["segmentation"] > 0
    np.testing.assert_array_equal(depth[on_shapes], example["maps"]["depth"][on_shapes])
    assert not depth[~on_shapes].any()
    nearest = example["maps"]["depth"] == example["maps"]["depth"].max()
    assert (example["maps"]["segmentation"][nearest] == 1 + example["label"]).all()


def test_edges_are_mixed_by_area(monkeypatch):
  """A white square from row 8.25 to row 24.25 on black: the rows at its ends show their share, to the sixteenth."""
  monkeypatch.setattr(shapes, "TEXTURE", 0.0)
  (scene,) = shapes.scenes("train", [0])
  square = scene._replace(
    kinds=np.array([KINDS.index("square")]),
    radii=np.array([0.25 / 0.85]),
    turns=np.array([[1.0, 0.0]]),
    centres=np.array([[0.5, 0.5 + 0.25 / 32]]),
    colours=np.array([[255] * 3], np.uint8),
    ground=scene.ground._replace(luma=0.0),
  )
  example = shapes.draw(square, 32)
  column = example["image"][:, 16]
  expected = np.zeros(32)
  expected[8], expected[9:24], expected[24] = round(0.75 * 255), 255, round(0.25 * 255)
  np.testing.assert_array_equal(column, expected[:, None].repeat(3, axis=1))
  # The maps go by pixels' centres: at 8.5 inside, at 24.5 no longer.
  assert np.flatnonzero(example["maps"]["segmentation"][:, 16]).tolist() == list(range(8, 24))


def test_the_nearest_shape_is_in_sight_and_of_a_size_to_tell(some):
  """Its area against that of the same shape in the middle of the image."""
  for scene, example in some:
    nearest = example["maps"]["depth"] == round(65535 * scene.depths[0])
    middle = alone(scene, 0)._replace(centres=np.array([[0.5, 0.5]]))
    whole = shapes.draw(middle, len(nearest))["maps"]["segmentation"] > 0
    assert nearest.sum() >= 0.6 * whole.sum() - 2
    assert 0.2 <= scene.radii[0] <= 0.34
    assert not whole[[0, -1]].any() and not whole[:, [0, -1]].any()


def test_surfaces_are_told_by_luma_alone():
  for scene in shapes.scenes("test", range(300)):
    lumas = np.append(scene.colours @ shapes.LUMA, 255 * scene.ground.luma)
    gaps = np.diff(np.sort(lumas))
    assert gaps.min() > 30
    assert 255 * shapes.TEXTURE < 10  # on the ground, from its luma either way


def test_kinds_counts_and_textures_occur_equally():
  scenes = shapes.scenes("train", range(6000))
  for found, kinds in (
    ([scene.kinds[0] for scene in scenes], len(KINDS)),
    ([kind for scene in scenes for kind in scene.kinds[1:]], len(KINDS)),
    ([len(scene.kinds) - 1 for scene in scenes], shapes.MAX_SHAPES),
    ([scene.ground.texture for scene in scenes], len(shapes.TEXTURES)),
  ):
    expected = len(found) / kinds
    counts = np.bincount(found, minlength=kinds)
    assert (
      (counts - expected) ** 2 / expected
    ).sum() < 25  # chi-square: one in 10,000 of 5 degrees of freedom


def test_kinds_have_the_area_of_their_formula():
  """Each shape's outline in closed form: the share of pixels it covers."""
  (scene,) = shapes.scenes("train", [0])
  areas = {
    "circle": np.pi,
    "square": 1.7**2,
    "triangle": 0.75 * 3**0.5 * 1.35**2,
    "star": 5 * 1.35 * 0.58 * np.sin(np.pi / 5),
    "ring": np.pi * (1.08**2 - 0.56**2),
    "cross": 4 * 0.37 * (2 * 1.11 - 0.37),
  }
  for i, kind in enumerate(KINDS):
    for turn in (0.03, 0.07, 0.4):
      turned = np.array([[np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)]])
      middle = alone(scene, 0)._replace(
        kinds=np.array([i]), centres=np.array([[0.5, 0.5]]), radii=np.array([0.3]), turns=turned
      )
      covered = (shapes.draw(middle, 128)["maps"]["segmentation"] > 0).mean()
      assert covered == pytest.approx(areas[kind] * 0.3**2, rel=0.015)


@pytest.mark.parametrize("kind", KINDS)
def test_no_outline_is_cut_off(kind):
  v, u = np.mgrid[-1.5:1.5:1001j, -1.5:1.5:1001j]
  farthest = np.hypot(u, v)[shapes.KINDS[kind].covers(u, v)].max()
  assert 0.98 * shapes.KINDS[kind].reach < farthest <= shapes.KINDS[kind].reach


@pytest.mark.parametrize("where", ["31", "129", "x", "-64", "064", "32x32", "6e1", "٦٤", "0", " 64"])
def test_wrong_sizes_are_told(where):
  with pytest.raises(UserError) as e:
    data.load(f"shapes:{where}")
  assert "\n" not in str(e.value)
  assert str(e.value).startswith(
    f"data source 'shapes:{where}' is of no size that scenes have: write shapes:64,"
  )


def test_a_wrong_split_is_told():
  with pytest.raises(base.NoSplit, match="has the splits 'train' and 'test', not 'val'"):
    data.load("shapes", "val")
