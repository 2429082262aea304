"""Digits and IDX files, and how sources are named."""

from __future__ import annotations

import gzip
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from jaxdiff import data
from jaxdiff.errors import UserError


def told(spec, split="train"):
  """The message of the UserError that loading raises; always one line."""
  with pytest.raises(UserError) as e:
    data.load(spec, split)
  assert "\n" not in str(e.value)
  return str(e.value)


def write_idx(path: Path, array: np.ndarray, magic: int = 8, keep: int | None = None) -> None:
  """An IDX file, gzipped if it is named so, cut after `keep` bytes."""
  raw = struct.pack(f">HBB{array.ndim}I", 0, magic, array.ndim, *array.shape) + array.tobytes()
  raw = gzip.compress(raw) if path.suffix == ".gz" else raw
  path.write_bytes(raw[:keep])


@pytest.fixture
def idx(tmp_path: Path) -> Path:
  """Six images 5x4 with labels 0..2, plain for train, gzipped for test."""
  for stem, end in (("train", ""), ("t10k", ".gz")):
    images = np.arange(120, dtype=np.uint8).reshape(6, 5, 4)
    write_idx(tmp_path / f"{stem}-images-idx3-ubyte{end}", images)
    write_idx(tmp_path / f"{stem}-labels-idx1-ubyte{end}", np.array([0, 1, 2, 2, 1, 0], np.uint8))
  return tmp_path


def test_digits_are_those_of_scikit_learn():
  from sklearn.datasets import load_digits

  source, digits = data.load("digits"), load_digits()
  assert len(source) == 1797 and source.num_classes == 10 and source.label_names == tuple("0123456789")
  for i in (0, 5, 1796):
    assert source[i]["image"].shape == (8, 8, 1) and source[i]["image"].dtype == np.uint8
    np.testing.assert_array_equal(source[i]["image"][..., 0], np.round(digits.images[i] * 255 / 16))
    assert source[i]["label"] == digits.target[i]
  assert max(example["image"].max() for example in source) == 255


def test_a_source_is_a_sequence_that_survives_pickling(idx):
  source = data.load(f"idx:{idx}")
  copy = pickle.loads(pickle.dumps(source))
  assert copy.fingerprint == source.fingerprint and len(copy) == len(list(copy)) == 6
  for one, other in zip(source, copy, strict=True):
    np.testing.assert_array_equal(one["image"], other["image"])
    assert one["label"] == other["label"]
  for i in (6, -1):
    with pytest.raises(IndexError):
      source[i]


def test_idx_plain_and_gzipped(idx):
  for split in ("train", "test"):
    source = data.load(f"idx:{idx}", split)
    assert [example["label"] for example in source] == [0, 1, 2, 2, 1, 0]
    assert source.label_names == ("0", "1", "2")
    np.testing.assert_array_equal(source[5]["image"][..., 0], np.arange(100, 120).reshape(5, 4))


def test_fingerprints_know_the_data_not_the_place(idx, tmp_path):
  mark = data.load(f"idx:{idx}").fingerprint
  shutil.copytree(idx, tmp_path / "elsewhere")
  assert data.load(f"idx:{tmp_path}/elsewhere").fingerprint == mark
  write_idx(tmp_path / "elsewhere/train-labels-idx1-ubyte", np.array([0, 1, 2, 2, 1, 1], np.uint8))
  assert data.load(f"idx:{tmp_path}/elsewhere").fingerprint != mark


def test_fashion_mnist_by_idx(fashion_mnist):
  train, test = data.load(f"idx:{fashion_mnist}"), data.load(f"idx:{fashion_mnist}", "test")
  assert (len(train), len(test)) == (60_000, 10_000)
  assert [train[i]["label"] for i in range(5)] == [
    9,
    0,
    0,
    3,
    0,
  ]  # ankle boot, t-shirt, t-shirt, dress, t-shirt
  assert train[0]["image"].shape == (28, 28, 1) and train[0]["image"].sum() == 76247
  counts = np.bincount([example["label"] for example in train])
  np.testing.assert_array_equal(counts, [6000] * 10)


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("keep", [0, 2, 10, 40, -1])
def test_truncated_idx_files_are_told(idx, end, keep):
  name = f"train-images-idx3-ubyte{end}"
  (idx / "train-images-idx3-ubyte").unlink()
  write_idx(idx / name, np.arange(120, dtype=np.uint8).reshape(6, 5, 4), keep=keep)
  assert str(idx / name) in told(f"idx:{idx}")


def test_wrong_idx_files_are_told(idx):
  images, labels = idx / "train-images-idx3-ubyte", idx / "train-labels-idx1-ubyte"
  write_idx(labels, np.zeros(5, np.uint8))
  assert f"{images} holds 6 images, but {labels} 5 labels." in told(f"idx:{idx}")
  write_idx(labels, np.zeros(6, np.uint8), magic=13)
  assert "is no IDX file of 1 dimensions: it starts with 00000d01, not 00000801." in told(f"idx:{idx}")
  write_idx(images, np.zeros((0, 5, 4), np.uint8))
  write_idx(labels, np.zeros(0, np.uint8))
  assert f"{images} holds no images." in told(f"idx:{idx}")
  images.write_bytes(struct.pack(">HBB3I", 0, 8, 3, 6, 5, 4) + bytes(121))
  assert "should hold 6x5x4 bytes after its header, but has 121" in told(f"idx:{idx}")
  images.unlink()
  assert f"{idx} has no train-images-idx3-ubyte (or train-images-idx3-ubyte.gz)" in told(f"idx:{idx}")
  gone = idx / "gone"
  assert told(f"idx:{gone}").startswith(
    f"there is no directory {gone} (config.data.source=idx:{gone}). Give "
  )
  assert "have the splits 'train' and 'test', not 'val' (config.data.split)" in told(f"idx:{idx}", "val")


def test_wrong_names_are_told():
  known = "Known: digits, folder, idx, shapes, tfds."
  assert told("digit") == f"unknown data source 'digit'. Did you mean 'digits'? {known}"
  assert told("/some/dir").startswith("unknown data source '/some/dir'.")
  assert told("idx") == "data source 'idx' does not say where: write idx:<directory> (config.data.source)."
  assert "write tfds:<name or directory>" in told("tfds:")
  assert told("digits", "test").startswith("data source 'digits' has one split, 'train', and no 'test'")
  assert "takes no argument, found 'x'" in told("digits:x")


def test_a_missing_package_is_named(monkeypatch):
  import sys

  monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
  assert told("digits").endswith("pip install scikit-learn")
