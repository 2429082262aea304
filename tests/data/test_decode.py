"""The bound on the pixels of an image: judged by its header, before anything is decoded."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import base
from jaxdiff.data import decode, files, folder, pairs, records
from jaxdiff.errors import UserError
from jaxdiff.evaluation import images
from tests.data.test_folder import bomb, encoded

HUGE = bomb(100_000, 100_000)
TOLD = "has 100000x100000 pixels, more than the 67108864 that are decoded. Make it smaller."
KINDS = {
  "png": ("PNG", {}),
  "jpeg": ("JPEG", {}),
  "progressive jpeg": ("JPEG", {"progressive": True}),
  "jpeg with comments": ("JPEG", {"comment": b"\xff\xc0 no frame \xff\xd8" * 9, "icc_profile": b"\xff\xc2" * 70_000}),
  "webp": ("WEBP", {}),
  "lossless webp": ("WEBP", {"lossless": True}),
  "webp with more": ("WEBP", {"icc_profile": b"no profile"}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def undecoded(monkeypatch):
  """The huge image never reaches OpenCV, nor PIL's pixels."""
  imdecode = cv2.imdecode

  def decoded(data, flags):
    assert data.tobytes() != HUGE
    return imdecode(data, flags)

  monkeypatch.setattr(cv2, "imdecode", decoded)
  monkeypatch.setattr(pairs, "_converted", lambda image, name: 1 / 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_the_size_is_read_as_decoders_read_it(kind, mode):
  name, options = KINDS[kind]
  if name == "JPEG" and mode == "RGBA":
    mode = "CMYK"
  for shape in ((1, 1), (1, 300), (257, 1), (123, 456)):
    assert decode.size(encoded(Image.new(mode, shape), name, **options)) == shape


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_header_has_no_size_or_the_right_one(kind):
  name, options = KINDS[kind]
  raw = encoded(Image.new("RGB", (12, 34)), name, **options)
  for length in [*range(min(len(raw), 700)), *range(700, len(raw), 997)]:
    assert decode.size(raw[:length]) in (None, (12, 34))


def test_other_kinds_are_no_images():
  for kind in ("BMP", "TIFF", "GIF", "PPM"):
    raw = encoded(Image.new("RGB", (5, 4)), kind)
    assert decode.size(raw) is None and decode.decode(raw) is None


def test_a_huge_image_costs_no_memory():
  tracemalloc.start()
  with pytest.raises(UserError, match=f"^the image 'a.png' {TOLD}$"):
    decode.decode(HUGE, 3, "the image 'a.png'")
  assert tracemalloc.get_traced_memory()[1] < 2**16
  tracemalloc.stop()


def test_the_bound_is_exact(monkeypatch):
  monkeypatch.setattr(decode, "MAX_PIXELS", 12)
  assert decode.decode(encoded(Image.new("RGB", (3, 4)))).shape == (4, 3, 3)
  with pytest.raises(UserError, match="^an image has 13x1 pixels, more than the 12 that are decoded"):
    decode.decode(encoded(Image.new("RGB", (13, 1))))


def settings():
  return ConfigDict(base.get_config().data)


def hinted(name):
  data = settings()
  data.hint = name
  return data


READS = {
  "sample.image": lambda path: files.read_image(path, "", settings()),
  "sample.hint": lambda path: files.read_hint(path, hinted("canny"), is_map=False),
  "a drawing": lambda path: files.read_hint(path, hinted("scribble"), is_map=True),
  "a ready map": lambda path: files.read_hint(path, hinted("depth"), is_map=True),
  "a map beside an image": lambda path: pairs.read(path, "segmentation"),
  "a folder": lambda path: folder.FileReader(path.parent, (path.name,), np.zeros(1))([0]),
  "eval.images": lambda path: list(images.of_folder(path.parent, settings(), 10).batches()),
}


@pytest.mark.parametrize("way", READS)
def test_every_way_in_names_the_file_and_its_size(way, tmp_path):
  path = tmp_path / "bomb.png"
  path.write_bytes(HUGE)
  with pytest.raises(UserError) as error:
    READS[way](path)
  assert TOLD in str(error.value) and str(path) in str(error.value)


def test_a_mask_is_bounded_too(tmp_path):
  (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (8, 8))))
  (tmp_path / "bomb.png").write_bytes(HUGE)
  with pytest.raises(UserError, match=f"bomb.png' {TOLD}"):
    files.read_image(str(tmp_path / "a.png"), str(tmp_path / "bomb.png"), settings())


def test_a_record_is_named_by_its_number():
  class Records:
    def __getitems__(self, rows):
      return [{"image": HUGE, "label": 0} for _ in rows]

  with pytest.raises(UserError, match=f"^record 7 of a set {TOLD}$"):
    records.RecordReader(Records(), "image", "label", 3, "a set")([7])
