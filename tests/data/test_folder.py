"""Folders of images: their classes and splits, all kinds of files, and broken ones."""

from __future__ import annotations

import io
import logging
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxdiff import data
from jaxdiff.data import decode, folder
from jaxdiff.errors import UserError


def told(spec, split="train", **options):
  with pytest.raises(UserError) as e:
    data.load(spec, split, **options)
  assert "\n" not in str(e.value)
  return str(e.value)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
  """A PNG of a few bytes whose header says that it is as large as that."""

  def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

  header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
  )


def test_classes_are_sorted_subfolders(photos):
  (photos / "dog/.hidden.png").write_bytes(b"")
  (photos / "dog/notes.txt").write_text("not an image")
  (photos / ".git").mkdir()
  (photos / "cat/more").mkdir()
  shutil.copy(photos / "cat/a.png", photos / "cat/more/z.png")
  source = data.load(f"folder:{photos}")
  assert source.label_names == ("cat", "dog")
  assert [example["label"] for example in source] == [0, 0, 0, 0, 1, 1, 1]
  expected = np.asarray(Image.open(photos / "cat/a.png"))
  np.testing.assert_array_equal(source[0]["image"], expected)  # RGB, and PNG loses nothing
  np.testing.assert_array_equal(source[3]["image"], expected)
  assert all(example["image"].shape == (20, 30, 3) for example in source)


def test_splits(photos, tmp_path):
  both = tmp_path / "both"
  shutil.copytree(photos, both / "train")
  shutil.copytree(photos / "dog", both / "test/dog")
  assert len(data.load(f"folder:{both}")) == 6
  assert len(data.load(f"folder:{both}", "test")) == 3
  test = data.load(f"folder:{both}", "test")
  assert test.label_names == ("cat", "dog") and {example["label"] for example in test} == {1}
  shutil.copytree(photos / "dog", both / "val/fox")
  assert "has a class 'fox', which" in told(f"folder:{both}", "val")
  shutil.rmtree(both / "val")
  assert f"{both} has no split 'val'" in told(f"folder:{both}", "val")
  assert f"{photos} has no split 'test'" in told(f"folder:{photos}", "test")
  # A class may be called train: it holds files, not subfolders.
  shutil.copytree(photos / "dog", photos / "train")
  assert data.load(f"folder:{photos}").label_names == ("cat", "dog", "train")


def test_fingerprint_knows_the_files_not_the_place(photos, tmp_path):
  mark = data.load(f"folder:{photos}").fingerprint
  shutil.copytree(photos, tmp_path / "elsewhere")
  assert data.load(f"folder:{tmp_path}/elsewhere").fingerprint == mark
  (tmp_path / "elsewhere/cat/a.png").rename(tmp_path / "elsewhere/dog/z.png")
  assert data.load(f"folder:{tmp_path}/elsewhere").fingerprint != mark


def test_missing_and_empty_folders_are_told(tmp_path):
  gone = tmp_path / "gone"
  assert told(f"folder:{gone}") == f"there is no directory {gone} (config.data.source=folder:{gone})."
  gone.mkdir()
  assert f"{gone} has no subfolders: folder: wants one subfolder a class" in told(f"folder:{gone}")
  (gone / "cat").mkdir()
  assert f"{gone} holds no images: none of its 1 subfolders has .jpeg, .jpg, .png, .webp" in told(
    f"folder:{gone}"
  )


def test_a_class_without_images_is_warned_of(photos, caplog):
  (photos / "eel").mkdir()
  with caplog.at_level(logging.WARNING, "jaxdiff"):
    assert data.load(f"folder:{photos}").num_classes == 3
  assert "class 'eel' has no images." in caplog.text


def test_broken_files_are_listed_or_skipped(photos, caplog):
  whole = (photos / "cat/a.png").read_bytes()
  (photos / "cat/half.png").write_bytes(whole[: len(whole) // 2])
  (photos / "cat/empty.png").write_bytes(b"")
  (photos / "dog/half.jpg").write_bytes((photos / "dog/b.JPG").read_bytes()[:400])
  (photos / "dog/half.webp").write_bytes((photos / "dog/c.webp").read_bytes()[:400])
  (photos / "dog/text.jpg").write_text("no image")
  (photos / "dog/other.jpg").write_bytes(encoded(Image.new("RGB", (4, 4)), "BMP"))
  (photos / "dog/wrong.png").write_bytes(whole[:60] + bytes(60) + whole[120:])
  message = told(f"folder:{photos}")
  assert message.startswith(f"7 of 13 images below {photos} cannot be read: cat/empty.png (not an image), ")
  assert "cat/half.png (damaged or truncated)" in message and "dog/wrong.png (damaged" in message
  assert message.endswith("Repair or delete them, or drop them with --config.data.skip_unreadable=True.")
  with caplog.at_level(logging.WARNING, "jaxdiff"):
    source = data.load(f"folder:{photos}", skip_unreadable=True)
  assert [example["label"] for example in source] == [0, 0, 0, 1, 1, 1]
  assert len(caplog.records) == 1 and "dog/text.jpg (not an image)" in caplog.text
  assert "dog/other.jpg (not an image)" in caplog.text


def test_many_broken_files_are_counted_and_ten_are_named(tmp_path):
  (tmp_path / "cat").mkdir()
  for i in range(14):
    (tmp_path / f"cat/{i:02}.png").write_bytes(b"")
  message = told(f"folder:{tmp_path}")
  assert "cat/09.png (not an image) and 4 more." in message and "cat/10.png" not in message
  assert told(f"folder:{tmp_path}", skip_unreadable=True).endswith("and 4 more. None is left.")


def test_in_a_huge_folder_damage_is_found_when_it_is_read(photos, monkeypatch):
  """Only headers are checked there at first, unless broken files are to be skipped."""
  monkeypatch.setattr(folder, "FULL_CHECK", 3)
  whole = (photos / "cat/a.png").read_bytes()
  (photos / "cat/a.png").write_bytes(whole[: len(whole) // 2])
  source = data.load(f"folder:{photos}")
  with pytest.raises(UserError, match=r"cat/a.png is no readable image.*skip_unreadable=True"):
    source[0]
  assert len(data.load(f"folder:{photos}", skip_unreadable=True)) == 5
  (photos / "cat/empty.png").write_bytes(b"")
  assert "1 of 7 images" in told(f"folder:{photos}")


@pytest.mark.parametrize(("width", "height"), [(8193, 8192), (60_000, 60_000)])
def test_decompression_bombs_are_not_decoded(photos, monkeypatch, width, height):
  (photos / "cat/bomb.png").write_bytes(bomb(width, height))
  decoded = []
  monkeypatch.setattr(folder.decode, "decode", lambda data: decoded.append(len(data)) or data)
  message = told(f"folder:{photos}")
  assert "1 of 7 images" in message and "67108864 pixels)" in message
  assert len(decoded) == 6


colours = np.array(
  [[[250, 10, 20], [10, 250, 20]], [[20, 10, 250], [90, 90, 90]], [[0, 0, 0], [255, 255, 255]]], np.uint8
)


@pytest.mark.parametrize(
  ("values", "key", "expected"),
  [
    (np.array([[0, 1, 2, 255]], np.uint8), 1, [0, 255, 2, 255]),
    (np.array([[0, 1, 0, 1]], bool), 0, [255, 255, 255, 255]),
    (np.array([[0, 256, 512, 65535]], np.uint16), 512, [0, 1, 255, 255]),
  ],
)
def test_a_gray_that_a_png_calls_transparent_lies_on_white(values, key, expected):
  file = io.BytesIO()
  Image.fromarray(values).save(file, "PNG", transparency=key)
  assert b"tRNS" in file.getvalue()
  for channels in (1, 3):
    image = decode.decode(file.getvalue(), channels)
    assert image.shape == (1, 4, channels) and (image == np.reshape(expected, (1, 4, 1))).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_rgb_is_not_bgr(kind):
  image = decode.decode(encoded(Image.fromarray(colours), kind, lossless=True))
  np.testing.assert_array_equal(image, colours)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparent_pixels_lie_on_white(kind):
  alpha = np.array([[255, 0], [128, 255], [255, 0]], np.uint8)
  image = Image.fromarray(np.dstack([colours, alpha]))
  seen = decode.decode(encoded(image, kind, lossless=True, exact=True))
  white = Image.new("RGBA", image.size, "white")
  expected = np.asarray(Image.alpha_composite(white, image).convert("RGB"))
  np.testing.assert_allclose(seen.astype(int), expected, atol=1)
  assert (seen[0, 1] == 255).all() and (seen[1, 0] > colours[1, 0]).all()


def test_palettes_are_looked_up():
  palette = Image.fromarray(colours).quantize(6)
  np.testing.assert_array_equal(decode.decode(encoded(palette)), np.asarray(palette.convert("RGB")))
  first = palette.getpixel((0, 0))
  see_through = decode.decode(encoded(palette, transparency=first))
  assert (see_through[0, 0] == 255).all()
  np.testing.assert_array_equal(see_through[1:], np.asarray(palette.convert("RGB"))[1:])


def test_gray_becomes_three_equal_channels_or_one():
  gray = np.arange(0, 240, 20, dtype=np.uint8).reshape(3, 4)
  for kind in ("PNG", "JPEG"):
    raw = encoded(Image.fromarray(gray), kind)
    rgb, one = decode.decode(raw), decode.decode(raw, 1)
    assert rgb.shape == (3, 4, 3) and one.shape == (3, 4, 1) and (rgb == one).all()
  np.testing.assert_array_equal(decode.decode(encoded(Image.fromarray(gray)), 1)[..., 0], gray)
  see_through = Image.fromarray(np.dstack([gray, np.full_like(gray, 255)]), "LA")
  np.testing.assert_array_equal(decode.decode(encoded(see_through), 1)[..., 0], gray)


def test_sixteen_bits_are_reduced_to_eight():
  deep = Image.fromarray((np.arange(12, dtype=np.uint16) * 5000).reshape(3, 4))
  expected = np.arange(12).reshape(3, 4) * 5000 / 257
  np.testing.assert_allclose(decode.decode(encoded(deep), 1)[..., 0], expected, atol=1.01)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_photos_are_turned_as_their_exif_tag_says(kind):
  exif = Image.Exif()
  exif[0x0112] = 6  # turn by 90 degrees, clockwise
  wide = np.zeros((20, 40, 3), np.uint8)
  wide[:, :20] = 255  # white on the left
  image = decode.decode(encoded(Image.fromarray(wide), kind, exif=exif))
  assert image.shape == (40, 20, 3)
  assert image[:18].min() > 240 and image[22:].max() < 15  # white on top


@pytest.mark.parametrize("channels", [1, 3])
def test_png_of_ours_loses_nothing(channels):
  image = np.random.default_rng(0).integers(0, 256, (7, 5, channels), dtype=np.uint8)
  np.testing.assert_array_equal(decode.decode(decode.encode_png(image), channels), image)
  theirs = np.asarray(Image.open(io.BytesIO(decode.encode_png(image)))).reshape(7, 5, channels)
  np.testing.assert_array_equal(theirs, image)


@pytest.mark.parametrize(
  "raw", [b"", b"\x89PNG", b"RIFF....WEBPVP8X", b"RIFF....WEBPVP8L", b"\xff\xd8", b"x" * 100]
)
def test_bytes_that_are_no_image_decode_to_none(raw):
  assert decode.decode(raw) is None
