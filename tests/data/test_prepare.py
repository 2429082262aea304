"""Writing TFDS ArrayRecord sets and reading them, all without TensorFlow."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxdiff import data
from jaxdiff.data import base, decode, prepare, records
from jaxdiff.errors import UserError

REPO = str(Path(data.__file__).parents[2])

# Python as on a machine without TensorFlow, also where it is installed.
WITHOUT_TENSORFLOW = """
import sys
from importlib.machinery import PathFinder
class Finder(PathFinder):
  @classmethod
  def find_spec(cls, name, path=None, target=None):
    return None if name.split(".")[0] == "tensorflow" else super().find_spec(name, path, target)
sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
"""


def told(call, *args, **options):
  with pytest.raises(UserError) as e:
    call(*args, **options)
  assert "\n" not in str(e.value)
  return str(e.value)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
  """The prepared digits: the folder of sets; the set is <it>/digits/1.0.0."""
  out = tmp_path_factory.mktemp("sets")
  assert prepare.prepare("digits", out, "digits") == out / "digits/1.0.0"
  return out


def assert_same(ours, theirs):
  assert len(ours) == len(theirs) and ours.label_names == theirs.label_names
  for i in range(len(theirs)):
    np.testing.assert_array_equal(ours[i]["image"], theirs[i]["image"])
    assert ours[i]["label"] == theirs[i]["label"]


def test_a_prepared_set_is_its_source(digits, monkeypatch):
  expected = data.load("digits")
  by_path = data.load(f"tfds:{digits}/digits/1.0.0")
  assert_same(by_path, expected)
  monkeypatch.setenv("TFDS_DATA_DIR", str(digits))
  for spec in (f"tfds:{digits}", f"tfds:{digits}/digits", "tfds:digits", f"tfds:digits?{digits}"):
    assert data.load(spec).fingerprint == by_path.fingerprint
  monkeypatch.setenv("TFDS_DATA_DIR", "/nowhere")
  assert len(data.load(f"tfds:digits?{digits}")) == 1797


def test_a_prepared_set_survives_pickling_and_moving(digits, tmp_path):
  shutil.copytree(digits, tmp_path / "moved")
  one, other = data.load(f"tfds:{digits}"), data.load(f"tfds:{tmp_path}/moved")
  assert one.fingerprint == other.fingerprint
  copy = pickle.loads(pickle.dumps(other))
  np.testing.assert_array_equal(copy[9]["image"], one[9]["image"])
  assert data.load(f"tfds:{digits}", "train[:100]").fingerprint != one.fingerprint


def test_fashion_mnist_prepared_is_fashion_mnist_by_idx(fashion_mnist, tmp_path):
  """The written set is read where TensorFlow cannot be imported, by us and by plain tfds.data_source."""
  prepare.prepare(f"idx:{fashion_mnist}", tmp_path, "fashion", splits=["test"])
  script = f"""
import numpy as np
import tensorflow_datasets as tfds
import jaxdiff.data as data
ours = data.load("tfds:{tmp_path}", "test")
theirs = tfds.data_source("fashion", data_dir="{tmp_path}", split="test")
assert len(ours) == len(theirs) == 10_000
for i in range(0, 10_000, 97):
  np.testing.assert_array_equal(ours[i]["image"], theirs[i]["image"])
  assert ours[i]["label"] == theirs[i]["label"]
read = ours.take(range(len(ours)))
np.savez("{tmp_path}/read.npz", image=[e["image"] for e in read], label=[e["label"] for e in read])
assert not [name for name in sys.modules if name.split(".")[0] == "tensorflow"]
"""
  subprocess.run([sys.executable, "-c", WITHOUT_TENSORFLOW + script], check=True, env={"PYTHONPATH": REPO})
  read, source = np.load(tmp_path / "read.npz"), data.load(f"idx:{fashion_mnist}", "test")
  np.testing.assert_array_equal(read["image"], [example["image"] for example in source])
  np.testing.assert_array_equal(read["label"], [example["label"] for example in source])


def test_a_folder_is_prepared_with_its_splits_and_class_names(photos, tmp_path, capfd):
  both = tmp_path / "both"
  shutil.copytree(photos, both / "train")
  shutil.copytree(photos, both / "test")
  (both / "test/dog/a.png").unlink()
  path = prepare.prepare(f"folder:{both}", tmp_path / "out", "pets")
  for split in ("train", "test"):
    assert_same(data.load(f"tfds:{path}", split), data.load(f"folder:{both}", split))
  assert data.load(f"tfds:{path}").label_names == ("cat", "dog")
  out, err = capfd.readouterr()
  assert out == "" and "writing train: 100%" in err and "6/6" in err


def test_a_share_of_a_prepared_set_has_all_classes(photos, tmp_path):
  path = prepare.prepare(f"folder:{photos}", tmp_path, "pets")
  given, prepared = data.load(f"folder:{photos}", "train[:50%]"), data.load(f"tfds:{path}", "train[:50%]")
  assert_same(prepared, given)
  assert {example["label"] for example in prepared} == {0, 1}, "though it lies there sorted by class"
  assert prepared.fingerprint != data.load(f"tfds:{path}", "train[50%:]").fingerprint


def test_broken_files_stop_preparing_or_are_left_out(photos, tmp_path):
  (photos / "cat/a.png").write_bytes(b"")
  assert "skip_unreadable=True" in told(prepare.prepare, f"folder:{photos}", tmp_path / "out", "pets")
  assert not (tmp_path / "out").exists()
  path = prepare.prepare(f"folder:{photos}", tmp_path / "out", "pets", skip_unreadable=True)
  assert len(data.load(f"tfds:{path}")) == 5


@pytest.mark.parametrize(
  "stop", ["raise KeyboardInterrupt", "os._exit(9)", "raise OSError(28, 'No space left on device')"]
)
def test_what_an_interruption_leaves_is_no_set(tmp_path, stop):
  script = f"""
import os, sys
from jaxdiff.data import decode, prepare
encode = decode.encode_png
def interrupted(image, calls=[]):
  calls.append(0)
  if len(calls) == 900:
    {stop}
  return encode(image)
decode.encode_png = interrupted
prepare.prepare("digits", {str(tmp_path)!r}, "digits")
"""
  done = subprocess.run(
    [sys.executable, "-c", script], check=False, env={"PYTHONPATH": REPO}, stderr=subprocess.PIPE, text=True
  )
  assert done.returncode != 0
  if "OSError" in stop:
    assert (
      f"UserError: cannot write to {tmp_path} (config.prepare.out): No space left on device." in done.stderr
    )
  assert f"no finished TFDS set (a dataset_info.json) in {tmp_path}" in told(data.load, f"tfds:{tmp_path}")
  prepare.prepare("digits", tmp_path, "digits")  # starting again works
  assert_same(data.load(f"tfds:{tmp_path}"), data.load("digits"))


def test_wrong_preparations_are_told(digits, tmp_path):
  assert f"{digits / 'digits/1.0.0'} is already there." in told(prepare.prepare, "digits", digits, "digits")
  assert "'My set' is no name for a TFDS set (config.prepare.name)" in told(
    prepare.prepare, "digits", tmp_path, "My set"
  )
  assert "no 'test'" in told(prepare.prepare, "digits", tmp_path, "x", splits=["train", "test"])
  (tmp_path / "file").write_text("")
  assert f"cannot write to {tmp_path / 'file'} (config.prepare.out)" in told(
    prepare.prepare, "digits", tmp_path / "file", "x"
  )


def test_splits_must_have_the_same_classes(photos, tmp_path):
  shutil.copytree(photos, tmp_path / "both/train")
  shutil.copytree(photos / "dog", tmp_path / "both/test/fox")
  assert "has a class 'fox'" in told(prepare.prepare, f"folder:{tmp_path}/both", tmp_path, "pets")


def test_an_unprepared_set_is_told_at_once(monkeypatch, tmp_path):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  monkeypatch.setattr(records.importlib.util, "find_spec", lambda name: None)
  asked = []
  monkeypatch.setattr(socket.socket, "connect", lambda self, address: asked.append(address))
  message = told(data.load, "tfds:cifar10")
  assert not asked  # TFDS itself would ask the network first
  assert message.startswith(f"tfds:cifar10 is not prepared in {tmp_path}, and preparing it needs TensorFlow")
  assert "pip install tensorflow" in message and "--mode prepare" in message


def test_with_tensorflow_an_unprepared_set_is_prepared(monkeypatch, digits, tmp_path):
  """By a stand-in for tfds.builder: the download itself needs the network."""
  import tensorflow_datasets as tfds

  class Builder:
    data_dir = str(tmp_path / "digits/1.0.0")

    def download_and_prepare(self, file_format):
      assert file_format == "array_record"
      shutil.copytree(digits, tmp_path, dirs_exist_ok=True)

  def builder(name, data_dir, file_format):
    assert (data_dir, file_format) == (str(tmp_path), "array_record")
    if name != "digits/small":
      raise tfds.core.DatasetNotFoundError(name)
    return Builder()

  def by_hand(self, file_format):
    raise AssertionError(f"put the files of {self.data_dir} there\nand there")

  find_spec = records.importlib.util.find_spec
  there = lambda name, *rest: "there" if name == "tensorflow" else find_spec(name, *rest)
  monkeypatch.setattr(
    records, "importlib", type("importlib", (), {"util": type("util", (), {"find_spec": there})})
  )
  monkeypatch.setattr(tfds, "builder", builder)
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  assert told(data.load, "tfds:digitz").startswith(
    "TFDS knows no set 'digitz' (config.data.source=tfds:digitz)."
  )
  assert len(data.load("tfds:digits:small")) == 1797
  monkeypatch.setattr(Builder, "download_and_prepare", by_hand)
  shutil.rmtree(tmp_path / "digits")
  assert told(data.load, "tfds:digits:small") == (
    f"TFDS could not prepare tfds:digits:small (config.data.source) in {tmp_path}: AssertionError: put the files of "
    f"{tmp_path}/digits/1.0.0 there"
  )


def test_wrong_sets_are_told(digits, tmp_path):
  assert f"{digits}/digits/1.0.0 has no split 'test' (config.data.split). Known: train." in told(
    data.load, f"tfds:{digits}", "test"
  )
  assert "no finished TFDS set" in told(data.load, f"tfds:{tmp_path}/nothing")
  several = tmp_path / "several"
  for name in ("one", "two"):
    shutil.copytree(digits / "digits", several / name)
  assert "holds several TFDS sets" in told(data.load, f"tfds:{several}")
  assert "Name one of: one, two." in told(data.load, f"tfds:{several}")
  info = several / "one/1.0.0/dataset_info.json"
  info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
  assert "was prepared as tfrecord files, which cannot be read at random" in told(
    data.load, f"tfds:{several}/one"
  )


def test_the_highest_version_is_read_and_unfinished_ones_are_not(digits, tmp_path):
  for version in ("1.0.0", "9.0.0", "10.0.0", "incomplete.ABC_11.0.0"):
    shutil.copytree(digits / "digits/1.0.0", tmp_path / "digits" / version)
  assert records.find(str(tmp_path)) == tmp_path / "digits/10.0.0"
  assert records.find(f"digits:10.0.0?{tmp_path}") == tmp_path / "digits/10.0.0"


def test_a_damaged_record_is_told(digits):
  source = data.load(f"tfds:{digits}")

  class Damaged:
    def __getitems__(self, rows):
      return [{"image": b"\x89PNG damaged", "label": 3} for _ in rows]

  reader = records.RecordReader(Damaged(), "image", "label", 1, "the/set")
  assert (
    told(reader, [7]) == "record 7 of the/set holds no readable image: the set is damaged, prepare it again."
  )
  assert source.num_classes == 10 and isinstance(source, base.Source)


@pytest.mark.parametrize(
  ("label", "names"),
  [
    (lambda features: features.ClassLabel(num_classes=4), ("0", "1", "2", "3")),
    (lambda features: features.Scalar(dtype=np.int64), ("0", "1", "2")),
    (lambda features: features.Text(), None),
  ],
)
def test_sets_made_by_others(tmp_path, label, names):
  """Without supervised keys, class names or a fixed number of channels."""
  import tensorflow_datasets as tfds

  pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
  examples = [
    (i, {"image": decode.encode_png(image), "label": "text" if names is None else i % 3, "id": f"{i}"})
    for i, image in enumerate(pixels)
  ]

  class Theirs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("2.1.0")
    name = "theirs"

    def _info(self):
      features = {"id": tfds.features.Text(), "label": label(tfds.features), "image": tfds.features.Image()}
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
      )

    def _split_generators(self, dl_manager):
      return {"train": iter(examples)}

    def _generate_examples(self):
      raise NotImplementedError

  Theirs(data_dir=str(tmp_path), file_format="array_record").download_and_prepare(
    file_format="array_record", download_dir=str(tmp_path / "downloads")
  )
  if names is None:
    assert "has no integer label 'label'. Its features: id, image, label." in told(
      data.load, f"tfds:{tmp_path}"
    )
    return
  source = data.load(f"tfds:{tmp_path}")
  assert source.label_names == names
  assert [example["label"] for example in source] == [0, 1, 2, 0, 1, 2]
  np.testing.assert_array_equal([example["image"] for example in source], pixels)
