"""Hints in batches: each belongs to the image beside it, whatever crop, flip, batch, process or memory; files of maps."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import shutil
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxdiff import data
from jaxdiff.data import base, hinted, hints, pipeline, transforms
from jaxdiff.data.hints import areas
from jaxdiff.errors import UserError


def take(batches, n):
  taken = list(itertools.islice(batches, n))
  batches.close()
  return taken


def told(function, *arguments, **keywords):
  with pytest.raises(UserError) as e:
    function(*arguments, **keywords)
  assert "\n" not in str(e.value)
  return str(e.value)


@dataclasses.dataclass(frozen=True)
class Mapped:
  """Reads images [N,H,W,C] with maps by name, each [N,H,W]; as many maps as there are."""

  images: np.ndarray
  maps: dict

  def __call__(self, rows):
    return [
      {"image": self.images[i], "label": int(i) % 3}
      | {"maps": {name: found[i] for name, found in self.maps.items() if i < len(found)}}
      for i in rows
    ]


def mapped(images, **maps):
  return base.Source(len(images), Mapped(images, maps), ("a", "b", "c"), "mapped")


def blobs(n=12, side=16, channels=1):
  """Smooth random images."""
  noise = np.random.default_rng(0).integers(0, 256, (n, side, side, channels), dtype=np.uint8)
  smooth = [cv2.GaussianBlur(image, (0, 0), 1.5).reshape(image.shape) for image in noise]
  return np.stack([cv2.normalize(s, None, 0, 255, cv2.NORM_MINMAX).reshape(s.shape) for s in smooth])


def labels_of(hint):
  """The labels that colours stand for."""
  codes = {tuple(colour): label for label, colour in enumerate(hints.palette().tolist())}
  return np.array([codes[tuple(c)] for c in hint.reshape(-1, 3).tolist()]).reshape(hint.shape[:-1])


def test_no_hint_is_asked_for_and_none_is_given(section):
  source = mapped(blobs(), depth=np.zeros((12, 16, 16), np.uint16))
  (batch,) = take(data.stream(source, section(image_size=16), batch_size=4, seed=0), 1)
  assert sorted(batch) == ["image", "index", "label"]


def test_configs_from_before_hints_are_read(section):
  s = section(image_size=16)
  del s["hint"], s["hint_maps"]
  (batch,) = take(data.stream(mapped(blobs()), s, batch_size=4, seed=0), 1)
  assert "hint" not in batch
  assert not hinted.fingerprint(mapped(blobs()), s)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spec", ["canny", "hough", "scribble", "segmentation"])
def test_a_hint_is_that_of_the_image_as_the_model_sees_it(section, spec, channels):
  images = blobs(side=24)
  s = section(image_size=16, channels=channels, random_crop=True, random_flip=True, hint=spec)
  for batch in take(data.stream(mapped(images), s, batch_size=6, seed=1), 4):
    assert batch["hint"].shape == (6, 16, 16, hints.CHANNELS[spec]) and batch["hint"].dtype == np.uint8
    seeds = (transforms.uniform(1, batch["index"], 4) * 2**32).astype(int)
    for image, hint, seed in zip(batch["image"], batch["hint"], seeds, strict=True):
      np.testing.assert_array_equal(hint, hints.detect(hints.parse(spec), image, int(seed)))


def test_a_flipped_images_hint_is_that_of_the_flipped_image(section):
  images = blobs()
  s = section(image_size=16, random_flip=True, hint="canny(low=20.0,high=60.0)")
  plain = {image.tobytes(): image for image in images}
  flips = 0
  for batch in take(data.stream(mapped(images), s, batch_size=12, seed=0), 2):
    for image, hint in zip(batch["image"], batch["hint"], strict=True):
      flips += image.tobytes() not in plain
      unflipped = plain.get(image.tobytes(), image[:, ::-1])
      assert unflipped.tobytes() in plain
      expected = hints.canny(np.ascontiguousarray(image), low=20.0, high=60.0)
      assert expected.any()
      np.testing.assert_array_equal(hint, expected)
  assert 4 < flips < 20


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_flipped_map_is_the_map_of_the_flipped_image(section, in_memory):
  """The image is its own label map and its own depth map."""
  images = blobs()
  source = mapped(images, segmentation=images[..., 0], depth=images[..., 0].astype(np.uint16) * 257)
  s = section(image_size=16, random_flip=True, in_memory=in_memory)
  flipped = 0
  for spec in ("segmentation", "depth", "depth(near=dark)"):
    s.hint = spec
    for batch in take(data.stream(source, s, batch_size=12, seed=0), 2):
      image = batch["image"][..., 0]
      flipped += sum(not (i == images[..., 0]).all(axis=(1, 2)).any() for i in image)
      if spec == "segmentation":
        np.testing.assert_array_equal(labels_of(batch["hint"]), image)
      else:  # blobs reach from 0 to 255
        np.testing.assert_array_equal(batch["hint"][..., 0], image if spec == "depth" else 255 - image)
  assert flipped > 12


@pytest.mark.parametrize("resize", ["auto", "pad"])
@pytest.mark.parametrize("axis", [0, 1])
def test_maps_are_cropped_as_their_images(section, axis, resize):
  """Ramps: what a pixel shows says where it comes from. Scaling may round to a neighbour, 4 away."""
  height, width = 46, 60
  ramp = np.broadcast_to(4 * np.indices((height, width))[axis], (12, height, width)).astype(np.uint8)
  source = mapped(ramp[..., None], segmentation=ramp, depth=ramp.astype(np.uint16) * 200 + 1000)
  s = section(image_size=32, resize=resize, random_crop=resize == "auto", random_flip=True)
  seen = set()
  for spec in ("segmentation", "depth"):
    s.hint = spec
    for batch in take(data.stream(source, s, batch_size=12, seed=0), 3):
      for image, hint in zip(batch["image"][..., 0].astype(int), batch["hint"], strict=True):
        seen.add(image.tobytes())
        if spec == "segmentation":
          assert np.abs(labels_of(hint) - image).max() <= 4
        else:
          low, high = image[image > 0].min() if resize == "pad" else image.min(), image.max()
          expected = 255 * (image - low) / (high - low)
          assert np.abs(hint[..., 0] - np.maximum(expected, 0)).max() <= 8
  assert len(seen) >= (7 if resize == "auto" else 1 + axis)  # crops, flips


def test_labels_stay_labels_at_any_size(section):
  """Between the labels 0 and 200 a mean would be a third one."""
  labels = np.where(np.random.default_rng(0).random((8, 21, 21)) < 0.5, 200, 0).astype(np.uint8)
  source = mapped(blobs(8, 21), segmentation=labels)
  for size in (8, 21, 50):
    s = section(image_size=size, random_crop=True, hint="segmentation")
    (batch,) = take(data.stream(source, s, batch_size=8, seed=0), 1)
    assert set(np.unique(labels_of(batch["hint"]))) == {0, 200}


def test_what_was_not_measured_does_not_mix_with_what_was(section):
  depth = np.full((4, 16, 16), 1000, np.uint16)
  depth[:, ::2], depth[:, :, :8] = 0, 2000
  s = section(image_size=11, hint="depth(near=distance)")
  (batch,) = take(data.stream(mapped(blobs(4), depth=depth), s, batch_size=4, seed=0), 1)
  assert set(np.unique(batch["hint"])) == {0, 128, 255}


def test_padding_is_as_far_as_the_farthest(section):
  """So that it does not squeeze the depths of the scene."""
  depth = np.random.default_rng(0).integers(3000, 6000, (4, 16, 16)).astype(np.uint16)
  for near in ("bright", "dark"):
    s = section(image_size=20, resize="pad", hint=f"depth(near={near})")
    (batch,) = take(data.stream(mapped(blobs(4), depth=depth), s, batch_size=4, seed=0, train=False), 1)
    for hint, one in zip(batch["hint"], depth, strict=True):
      np.testing.assert_array_equal(hint[2:-2, 2:-2], hints.depth_from_map(one, near))
      assert hint.sum() == hint[2:-2, 2:-2].sum(dtype=int)


def test_each_example_uses_its_own_map_if_it_has_one(section):
  images = blobs(side=32)
  labels = np.random.default_rng(0).integers(0, 5, (6, 32, 32)).astype(np.uint8)
  source = mapped(images, segmentation=labels)  # the last six images have none
  s = section(image_size=32, hint="segmentation")
  (batch,) = data.epoch(source, s, 12)
  np.testing.assert_array_equal(batch["hint"][:6], hints.palette()[labels])
  for image, hint in zip(images[6:], batch["hint"][6:], strict=True):
    np.testing.assert_array_equal(hint, hints.segmentation(image))
  assert "needs a depth map or a network" in told(
    data.stream, source, section(image_size=32, hint="depth"), batch_size=4, seed=0
  )


def test_a_network_that_is_asked_for_goes_before_the_sources_map(section, monkeypatch):
  images = blobs()
  source = mapped(images, segmentation=np.zeros((12, 16, 16), np.uint8))
  monkeypatch.setattr(areas.networks, "labels", lambda image, *_: (image[..., 0] > 99).astype(np.uint8))
  (batch,) = data.epoch(source, section(image_size=16, hint='segmentation(onnx="my.onnx")'), 12)
  np.testing.assert_array_equal(labels_of(batch["hint"]), images[..., 0] > 99)


def test_memory_batches_and_resuming_change_no_hint(section):
  images = blobs(side=30)
  labels = (images[..., 0] // 64).astype(np.uint8)
  for spec in ("segmentation", "scribble", "canny(spread=2.0)"):
    s = section(image_size=16, random_crop=True, random_flip=True, hint=spec)
    source = mapped(images, segmentation=labels)
    whole = np.concatenate([b["hint"] for b in take(data.stream(source, s, batch_size=4, seed=3), 9)])
    resumed = take(data.stream(source, s, batch_size=12, seed=3, start=2), 1)[0]["hint"]
    np.testing.assert_array_equal(resumed, whole[24:36])
    s.in_memory = True
    held = np.concatenate([b["hint"] for b in take(data.stream(source, s, batch_size=4, seed=3), 9)])
    np.testing.assert_array_equal(held, whole)
    shares = [
      take(data.stream(source, s, batch_size=4, seed=3, process_index=k, process_count=2), 9)
      for k in range(2)
    ]
    joined = np.concatenate([b["hint"] for pair in zip(*shares, strict=True) for b in pair])
    np.testing.assert_array_equal(joined, whole)


def test_memory_holds_maps_and_reads_no_more(section):
  reads = []
  images = blobs()
  source = mapped(images, depth=images[..., 0])
  counted = dataclasses.replace(source, read=lambda rows: reads.extend(rows) or source.read(rows))
  s = section(image_size=16, in_memory=True, hint="depth")
  batches = data.stream(counted, s, batch_size=4, seed=0)
  before = len(reads)
  next(batches)
  batches.close()
  assert len(reads) == before < 2 * len(images)


def test_random_hints_follow_seed_and_index(section):
  same = np.repeat(blobs(1, 32), 8, axis=0)
  s = section(image_size=32, hint="scribble")
  one, two, one_again = (
    take(data.stream(mapped(same), s, batch_size=8, seed=seed), 1)[0]["hint"] for seed in (0, 1, 0)
  )
  np.testing.assert_array_equal(one, one_again)
  assert len({hint.tobytes() for hint in np.concatenate([one, two])}) == 16


def test_without_training_hints_remain_but_their_augmentation_does_not(section):
  images = blobs()
  s = section(image_size=16, random_flip=True, hint="canny(low=20.0,high=60.0,spread=3.0)")
  expected = np.stack([hints.canny(image, low=20.0, high=60.0) for image in images])
  (batch,) = data.epoch(mapped(images), s, 12)
  np.testing.assert_array_equal(batch["image"], images)
  np.testing.assert_array_equal(batch["hint"], expected)
  (batch,) = take(data.stream(mapped(images), s, batch_size=12, seed=7, train=False), 1)
  np.testing.assert_array_equal(batch["hint"], expected)
  (batch,) = take(data.stream(mapped(images), s, batch_size=12, seed=7), 1)
  plain = [hints.canny(image, low=20.0, high=60.0) for image in batch["image"]]
  assert (batch["hint"] != np.stack(plain)).any()


def test_readers_travel_to_workers(section):
  images = blobs()
  source = mapped(images, depth=images[..., 0])
  s = section(image_size=16)
  for spec in ("depth", "scribble(width=0.05)"):
    hint = hints.parse(spec)
    reader = pipeline.BatchReader(source, transforms.view(s, train=True), hint, 0, True, 4, slice(0, 4))
    sent = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(sent(2)["hint"], reader(2)["hint"])


def test_a_fingerprint_tells_hints_but_is_as_before_without(section, photos):
  source = data.load(f"folder:{photos}")

  def mark(**overrides):
    return data.fingerprint(source, section(image_size=16, **overrides), batch_size=2, seed=0)

  assert set(mark()) == {"source", "seed", "batch_size", "first_rows"} | {
    f"view.{name}" for name in ("size", "channels", "resize", "random_crop", "random_flip")
  }
  specs = ["", "canny", "canny(low=51.0)", "scribble", "canny(spread=1.0)"]
  marks = [mark(hint=spec) for spec in specs]
  assert all(a != b for a, b in itertools.combinations(marks, 2))
  assert mark(hint="canny(low=50)") == mark(hint="canny")
  assert all(marks[0].items() <= other.items() for other in marks)


# files


@pytest.fixture
def pairs(photos, tmp_path):
  """Makes a folder of maps for the photos, [20,30] each, as `make(i)` gives them; its path."""

  def write(make):
    shutil.rmtree(tmp_path / "maps", ignore_errors=True)
    for i, path in enumerate(sorted(photos.rglob("*.*"))):
      file = (tmp_path / "maps" / path.relative_to(photos)).with_suffix(".png")
      file.parent.mkdir(parents=True, exist_ok=True)
      image = make(i)
      if isinstance(image, bytes):
        file.write_bytes(image)
      else:
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file)
    return tmp_path / "maps"

  return write


def numbered(dtype, *channels):
  return lambda i: np.random.default_rng(i).integers(0, np.iinfo(dtype).max + 1, (20, 30, *channels), dtype)


def hint_of(photos, section, where, **overrides):
  """The hints of all photos in order, with the maps in a folder, at their own size but for 5 columns a side."""
  s = section(image_size=20, channels=3, hint_maps=str(where), **overrides)
  (batch,) = data.epoch(data.load(f"folder:{photos}"), s, 6)
  return batch["hint"]


@pytest.mark.parametrize("name", ["canny", "hough", "scribble"])
@pytest.mark.parametrize("bits", [8, 16])
def test_ready_maps_of_files(section, photos, pairs, name, bits):
  made = [numbered(np.uint8 if bits == 8 else np.uint16)(i) for i in range(6)]
  found = hint_of(photos, section, pairs(made.__getitem__), hint=name)
  expected = np.stack(made)[:, :, 5:-5, None] >> (bits - 8)
  np.testing.assert_array_equal(found, expected)


def test_depths_of_files(section, photos, pairs):
  for dtype in (np.uint8, np.uint16):
    made = [numbered(dtype)(i) for i in range(6)]
    found = hint_of(photos, section, pairs(made.__getitem__), hint="depth(near=dark)")
    expected = [hints.depth_from_map(m[:, 5:-5], "dark") for m in made]
    np.testing.assert_array_equal(found, np.stack(expected))


def of_bits(labels, bits):
  """A gray PNG of so many bits a pixel, which PIL does not write but for 1."""
  height, width = labels.shape
  digits = [
    "".join(f"{label:0{bits}b}" for label in row).ljust(-(-width * bits // 8) * 8, "0") for row in labels
  ]
  rows = b"".join(b"\0" + int(row, 2).to_bytes(len(row) // 8, "big") for row in digits)
  chunk = lambda kind, content: (
    struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
  )
  head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
  return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_images_alone_need_no_maps(section, photos, tmp_path):
  s = section(image_size=20, channels=3, hint="segmentation", hint_maps=str(tmp_path / "none"))
  source = data.load(f"folder:{photos}")
  with pytest.raises(UserError, match="there is no directory"):
    next(data.epoch(source, s, 6))
  (batch,) = data.epoch(source, data.without_hints(s), 6)
  assert batch["image"].shape == (6, 20, 20, 3) and "hint" not in batch


def test_labels_and_colours_of_files(section, photos, pairs):
  labels = [numbered(np.uint8)(i) for i in range(6)]
  expected = hints.palette()[np.stack(labels)[:, :, 5:-5]]
  found = hint_of(photos, section, pairs(labels.__getitem__), hint="segmentation")
  np.testing.assert_array_equal(found, expected)

  def with_palette(i):
    image = Image.fromarray(labels[i]).convert("P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    return image

  found = hint_of(photos, section, pairs(with_palette), hint="segmentation")
  np.testing.assert_array_equal(found, expected)
  for bits in (1, 2, 4):
    few = [label % 2**bits for label in labels]
    found = hint_of(
      photos, section, pairs(lambda i, few=few, bits=bits: of_bits(few[i], bits)), hint="segmentation"
    )
    np.testing.assert_array_equal(found, hints.palette()[np.stack(few)[:, :, 5:-5]])
  colours = [numbered(np.uint8, 3)(i) for i in range(6)]
  found = hint_of(photos, section, pairs(colours.__getitem__), hint="segmentation")
  np.testing.assert_array_equal(found, np.stack(colours)[:, :, 5:-5])


def test_pairs_stay_pairs_in_shares_splits_and_memory(section, photos, pairs, tmp_path):
  where = pairs(lambda i: np.full((20, 30), i + 1, np.uint8))
  order = [p.relative_to(photos).with_suffix("").as_posix() for p in sorted(photos.rglob("*.*"))]
  whole = data.load(f"folder:{photos}")
  s = section(image_size=20, channels=3, hint="canny", hint_maps=str(where), in_memory=True, random_flip=True)
  images = {e["image"].tobytes(): i + 1 for i, e in enumerate(whole)}
  part = data.load(f"folder:{photos}", "train[:50%]")
  assert len(part) == 3
  for source in (whole, part):
    assert [f.rpartition(".")[0] in order for f in source.files] == [True] * len(source)
    paired = hinted.with_maps(source, s, hints.parse("canny"))
    for example in paired:
      assert (example["maps"]["canny"] == images[example["image"].tobytes()]).all()
  (batch,) = take(data.stream(part, s, batch_size=3, seed=0), 1)
  assert len(np.unique(batch["hint"])) == 3
  # below <dir>/<split> the maps lie below <maps>/<split>
  shutil.copytree(photos, tmp_path / "set" / "test")
  shutil.copytree(where, tmp_path / "set-maps" / "test")
  s.hint_maps = str(tmp_path / "set-maps")
  (batch,) = data.epoch(data.load(f"folder:{tmp_path / 'set'}", "test"), s, 6)
  np.testing.assert_array_equal(batch["hint"][:, 0, 0, 0], np.arange(1, 7))


def test_a_fingerprint_tells_files_of_maps(section, photos, pairs):
  source = data.load(f"folder:{photos}")
  marks = []
  for most in (1, 200, 1):
    where = pairs(lambda i, most=most: np.random.default_rng(i).integers(0, most, (20, 30)).astype(np.uint8))
    s = section(image_size=16, hint="canny", hint_maps=str(where))
    marks.append(data.fingerprint(source, s, batch_size=2, seed=0))
  assert marks[0] == marks[2] != marks[1]


def test_what_is_wrong_with_files_is_told_at_once(section, photos, pairs, tmp_path):
  source = data.load(f"folder:{photos}")

  def opening(where, hint="canny", source=source):
    return told(
      data.stream, source, section(image_size=16, hint=hint, hint_maps=str(where)), batch_size=2, seed=0
    )

  assert "there is no directory" in opening(tmp_path / "none")
  assert "is no folder of files: use folder:<dir>" in opening(tmp_path, source=mapped(blobs()))
  assert "set config.data.hint" in opening(tmp_path, hint="")
  assert "Choose one" in opening(tmp_path, hint='depth(onnx="a.onnx")')
  where = pairs(numbered(np.uint8))
  (where / "cat" / "b.png").unlink()
  (where / "dog" / "a.png").unlink()
  assert "2 of 6 images have no map in" in opening(where) and "the first 'cat/b.png'" in opening(where)
  where = pairs(lambda i: np.zeros((20, 30 - (i == 4)), np.uint8))
  assert "is 29x20 pixels, its image 30x20" in opening(where)
  where = pairs(numbered(np.uint8, 3))
  assert "it is coloured; a depth map is gray" in opening(where, "depth")
  where = pairs(numbered(np.uint16))
  assert "use labels 0 to 255" in opening(where, "segmentation")
  where = pairs(numbered(np.uint8))
  (where / "dog" / "b.png").write_text("no image")
  assert "cannot read the map" in opening(where)


def test_maps_of_a_source_that_do_not_suit(section):
  images = blobs()
  for maps, words in (
    (
      {"segmentation": np.zeros((12, 15, 16), np.uint8)},
      "the source's map for hint 'segmentation' is (15, 16)",
    ),
    ({"segmentation": np.zeros((12, 16, 16), np.float32)}, "use labels 0 to 255"),
    ({"depth": np.zeros((12, 16, 16), np.float32)}, "it is float32; use 8 or 16 bits"),
  ):
    (name,) = maps
    s = section(image_size=16, hint=name)
    assert words in told(data.stream, mapped(images, **maps), s, batch_size=4, seed=0)


# one file, for sampling


@pytest.fixture
def saved(tmp_path):
  def save(array, name="hint.png"):
    Image.fromarray(array.squeeze()).save(tmp_path / name)
    return str(tmp_path / name)

  return save


def test_a_hint_of_an_image_file(section, saved):
  image = blobs(1, 40, 3)[0]
  s = section(image_size=16, channels=3, hint="canny(spread=1.0)", random_flip=True, random_crop=True)
  expected = hints.canny(transforms.cover(image, 16))
  np.testing.assert_array_equal(data.read_hint(saved(image), s, False), expected)
  s.hint = "depth"
  assert "needs a depth map or a network" in told(data.read_hint, saved(image), s, False)
  s.hint = ""
  assert "follows no hints" in told(data.read_hint, saved(image), s, False)
  s.hint = "canny"
  assert "cannot read the image" in told(data.read_hint, "none.png", s, False)


@pytest.mark.parametrize("name", ["canny", "hough", "scribble"])
def test_a_coloured_map_of_edges_is_refused(name):
  coloured = blobs(1, 16, 3)[0]
  assert "it is coloured; a map of edges, lines or strokes is gray" in told(
    hints.maps.read, name, coloured, "it"
  )
  gray = coloured[..., :1].repeat(3, axis=-1)
  np.testing.assert_array_equal(hints.maps.read(name, gray, "it"), gray[..., :1])


@pytest.mark.parametrize("name", ["canny", "depth", "segmentation"])
def test_maps_that_say_nothing_are_refused(section, name):
  images = blobs(4, 16, 3)
  s = section(image_size=16, channels=3, hint=name)
  blank = mapped(images, **{name: np.full((4, 16, 16), 7, np.uint8)})
  assert f"the hints '{name}' (config.data.hint) of 4 images are all empty" in told(
    data.stream, blank, s, batch_size=4, seed=0
  )


def test_detectors_that_find_nothing_are_told(section, caplog):
  s = section(image_size=16, channels=3, hint="canny")
  data.stream(mapped(np.full((4, 16, 16, 3), 9, np.uint8)), s, batch_size=4, seed=0).close()
  assert "nothing could be learnt. Look at the detector's parameters" in caplog.text


def test_a_ready_map_of_a_file(section, saved):
  gray = numbered(np.uint8)(0)[:16, :16]
  s = section(image_size=16)
  for spec, expected in (
    ("canny", gray[..., None]),
    ("hough", gray[..., None]),
    ("segmentation", hints.palette()[gray]),
    ("depth", hints.depth_from_map(gray)),
  ):
    s.hint = spec
    np.testing.assert_array_equal(data.read_hint(saved(gray), s, True), expected)
  deep = numbered(np.uint16)(0)[:16, :16]
  np.testing.assert_array_equal(data.read_hint(saved(deep), s, True), hints.depth_from_map(deep))
  s.image_size = 20
  assert "is 16x16 pixels, the model's hints are 20x20" in told(data.read_hint, saved(gray), s, True)
  s.image_size = 16
  assert "is empty" in told(data.read_hint, saved(np.full((16, 16), 5, np.uint8)), s, True)
  assert "cannot read the map" in told(data.read_hint, "none.png", s, True)


@pytest.mark.parametrize(
  ("height", "width", "width_of_pen"), [(600, 600, 3), (64, 64, 5), (300, 500, 9), (16, 16, 1)]
)
def test_a_drawing_of_any_size_becomes_a_hint(section, saved, height, width, width_of_pen):
  """A circle around the middle, dark on light and light on dark."""
  page = np.zeros((height, width), np.uint8)
  radius = 0.3 * min(height, width)
  cv2.circle(page, (width // 2, height // 2), round(radius), 255, width_of_pen)
  s = section(image_size=32, hint="scribble")
  found = data.read_hint(saved(page), s, True)
  np.testing.assert_array_equal(data.read_hint(saved(255 - page), s, True), found)
  assert found.shape == (32, 32, 1) and set(np.unique(found)) == {0, 255}
  y, x = np.mgrid[:32, :32] - 15.5
  distance = np.hypot(x, y) - 0.3 * 32
  on = found[..., 0] > 0
  assert np.abs(distance[on]).max() < 3.5
  # closed: no ray from the middle passes
  turns = np.unique(np.round(np.degrees(np.arctan2(y[on], x[on])) / 20))
  assert len(turns) >= 18
  assert "is empty" in told(data.read_hint, saved(np.full((50, 50), 255, np.uint8)), s, True)
