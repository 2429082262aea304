"""The order of examples, its resumption, its division among processes, and who reads ahead."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdiff import data
from jaxdiff.data import pipeline, transforms
from jaxdiff.errors import UserError

KEYS = ["image", "index", "label"]


def take(batches, n):
  """The first n batches; the stream is closed."""
  taken = list(itertools.islice(batches, n))
  batches.close()
  return taken


def assert_equal(ours, theirs):
  assert len(ours) == len(theirs)
  for a, b in zip(ours, theirs, strict=True):
    assert sorted(a) == sorted(b) == KEYS
    for key in KEYS:
      np.testing.assert_array_equal(a[key], b[key])


def rows(batches):
  """Which examples of a numbered source these are, by their pixels."""
  image = np.concatenate([batch["image"] for batch in batches])
  return image[:, 0, 0, 0].astype(int) + 256 * image[:, 0, 1, 0].astype(int)


def test_shapes_types_and_positions(section, numbered):
  batches = take(data.stream(numbered(50), section(image_size=4), batch_size=8, seed=0), 15)
  for t, batch in enumerate(batches):
    assert batch["image"].shape == (8, 4, 4, 1) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (8,) and batch["label"].dtype == np.int32
    assert batch["index"].dtype == np.uint32
    np.testing.assert_array_equal(batch["index"], np.arange(8 * t, 8 * t + 8))
    np.testing.assert_array_equal(batch["label"], rows([batch]) % 10)  # the image's own label


def test_each_epoch_is_another_permutation(section, numbered):
  n, size = 300, 7  # batches lie across epochs
  seen = rows(take(data.stream(numbered(n), section(image_size=4), batch_size=size, seed=0), 130))
  first, second, third = seen[:n], seen[n : 2 * n], seen[2 * n : 3 * n]
  for one in (first, second, third):
    np.testing.assert_array_equal(np.sort(one), np.arange(n))
  assert min((first == second).mean(), (second == third).mean()) < 0.1
  other = rows(take(data.stream(numbered(n), section(image_size=4), batch_size=size, seed=1), 43))[:n]
  assert (first == other).mean() < 0.1
  # Seed 1 is not seed 0 an epoch later.
  assert (second == other).mean() < 0.1


def test_the_same_seed_gives_the_same_stream(section, numbered):
  s = section(image_size=4, random_flip=True)
  one, two = (take(data.stream(numbered(50), s, batch_size=8, seed=3), 10) for _ in range(2))
  assert_equal(one, two)


def test_a_stream_resumes_anywhere(section, numbered):
  s = section(image_size=4, random_flip=True)
  whole = take(data.stream(numbered(50), s, batch_size=8, seed=0), 20)
  for start in (1, 6, 13):
    assert_equal(
      take(data.stream(numbered(50), s, batch_size=8, seed=0, start=start), 20 - start), whole[start:]
    )


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_share_each_batch_and_their_number_may_change(section, numbered, count):
  s = section(image_size=4, random_flip=True)
  whole = take(data.stream(numbered(50), s, batch_size=8, seed=0), 12)
  shares = [
    take(data.stream(numbered(50), s, batch_size=8, seed=0, start=5, process_index=k, process_count=count), 7)
    for k in range(count)
  ]
  joined = [{key: np.concatenate([share[t][key] for share in shares]) for key in KEYS} for t in range(7)]
  assert shares[0][0]["label"].shape == (8 // count,)
  assert_equal(joined, whole[5:])


@settings(max_examples=40)
@given(
  st.integers(1, 60),
  st.integers(1, 12),
  st.sampled_from([1, 2, 3]),
  st.integers(0, 40),
  st.integers(0, 2**32 - 1),
)
def test_any_division_is_a_slice_of_one_sequence(numbered, size, share, count, start, seed):
  """The reader alone, without threads: rows of step t, process k are a slice of concatenated permutations."""
  batch = share * count
  if batch > size:
    return
  source = numbered(size)
  sequence = np.concatenate([pipeline.order(seed, e, size) for e in range((start + 1) * batch // size + 1)])
  view = transforms.View(4, 1, "auto", False, False)
  for k in range(count):
    reader = pipeline.BatchReader(source, view, None, seed, True, batch, slice(k * share, (k + 1) * share))
    first = start * batch + k * share
    np.testing.assert_array_equal(rows([reader(start)]), sequence[first : first + share])


def test_augmentation_is_that_of_the_example_not_of_the_batch(section):
  digits = data.load("digits")
  s = section(random_flip=True, random_crop=True)
  by_index = {}
  for size in (32, 96):
    for batch in take(data.stream(digits, s, batch_size=size, seed=0), 192 // size):
      for i, image in zip(batch["index"], batch["image"], strict=True):
        by_index.setdefault(int(i), []).append(image)
  assert len(by_index) == 192
  for one, other in by_index.values():
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("crop", [False, True])
def test_memory_changes_nothing(section, photos, crop):
  source = data.load(f"folder:{photos}")
  s = section(image_size=16, channels=3, random_crop=crop, random_flip=True)
  from_disk = take(data.stream(source, s, batch_size=4, seed=0), 6)
  s.in_memory = True
  assert_equal(take(data.stream(source, s, batch_size=4, seed=0), 6), from_disk)


def test_threads_change_nothing(section, numbered):
  one, many = (
    take(data.stream(numbered(50), section(image_size=4, threads=n, prefetch=9), batch_size=8, seed=0), 30)
    for n in (1, 8)
  )
  assert_equal(one, many)


def test_in_order_when_not_training(section, numbered):
  s = section(image_size=4, random_flip=True)
  seen = rows(take(data.stream(numbered(10), s, batch_size=5, seed=0, train=False), 4))
  np.testing.assert_array_equal(seen, np.tile(np.arange(10), 2))


def test_an_epoch_is_every_example_once_in_order(section, numbered):
  batches = list(data.epoch(numbered(10), section(image_size=4, random_flip=True), 4))
  assert [len(batch["label"]) for batch in batches] == [4, 4, 2]
  np.testing.assert_array_equal(rows(batches), np.arange(10))
  np.testing.assert_array_equal(np.concatenate([batch["index"] for batch in batches]), np.arange(10))


def test_closing_ends_the_threads_and_the_stream(section, numbered):
  before = set(threading.enumerate())
  batches = data.stream(numbered(50), section(image_size=4), batch_size=8, seed=0)
  next(batches)
  started = set(threading.enumerate()) - before
  assert started
  batches.close()
  for thread in started:
    thread.join(timeout=10)
    assert not thread.is_alive()
  assert next(batches, None) is None
  batches.close()


WORKERS = """
import os
import signal
import sys
import numpy as np
from ml_collections import ConfigDict
import jaxdiff.data as data
from jaxdiff.errors import UserError

if __name__ == "__main__":
  source = data.load("digits")
  s = ConfigDict(dict(image_size=8, channels=1, resize="auto", random_crop=True, random_flip=True,
                      in_memory=False, workers=0, threads=1, prefetch=2,
                      hint="scribble", hint_maps=""))
  streams = {}
  for workers in (0, 2):
    s.workers = workers
    streams[workers] = data.stream(source, s, batch_size=64, seed=1, start=3)
  for t in range(40):
    one, other = next(streams[0]), next(streams[2])
    for key in ("hint", "image", "index", "label"):
      np.testing.assert_array_equal(one[key], other[key])
      assert type(other[key]) is np.ndarray, "memory that Grain may take back"
  # Ctrl-C reaches all processes of a terminal; the run decides when to stop, and until then it needs batches.
  signal.signal(signal.SIGINT, lambda *_: None)
  os.killpg(0, signal.SIGINT)
  for t in range(40):
    next(streams[2])
  # streams[2] is left open: at exit its workers must end without a word.

  import pathlib
  folder = data.load("folder:" + sys.argv[1])
  for path in pathlib.Path(sys.argv[1]).glob("cat/*"):
    path.unlink()
  s.channels, s.workers, s.hint = 3, 1, ""
  broken = data.stream(folder, s, batch_size=6, seed=0)
  try:
    next(broken)
  except UserError as e:
    assert "cannot read" in str(e)
    print("told", flush=True)
  broken.close()
"""


@pytest.mark.slow
def test_worker_processes_give_the_same_stream_and_end_quietly(tmp_path, photos):
  script = tmp_path / "workers.py"
  script.write_text(WORKERS)
  command = [sys.executable, str(script), str(photos)]
  repo = Path(data.__file__).parents[2]
  done = subprocess.run(
    command,
    capture_output=True,
    text=True,
    timeout=400,
    env={"PYTHONPATH": str(repo)},
    start_new_session=True,
    check=False,
  )
  assert (done.returncode, done.stdout, done.stderr) == (0, "told\n", "")


def test_importing_is_light():
  heavy = {"grain", "jax", "sklearn", "tensorflow", "tensorflow_datasets"}
  code = f"import sys, jaxdiff.data; sys.exit(', '.join({heavy!r} & set(sys.modules)) or 0)"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  assert (done.returncode, done.stderr) == (0, "")


def test_device_prefetch_places_ahead_and_loses_nothing():
  placed, got = [], []
  source = (n for n in range(7))
  ahead = data.device_prefetch(source, lambda n: placed.append(n) or n, depth=2)
  for n in ahead:
    got.append(n)
    assert placed == list(range(min(n + 3, 7)))  # two more than was asked for
  assert got == list(range(7))


def test_closing_device_prefetch_closes_the_stream(section, numbered):
  batches = data.stream(numbered(50), section(image_size=4), batch_size=8, seed=0)
  ahead = data.device_prefetch(batches, lambda batch: batch)
  assert next(ahead)["index"][0] == 0
  ahead.close()
  assert next(batches, None) is None


def test_fingerprint_tells_what_changes_the_stream(section, numbered):
  def mark(source=None, batch_size=8, seed=0, **overrides):
    s = section(image_size=4, **overrides)
    return data.fingerprint(source or numbered(50), s, batch_size=batch_size, seed=seed)

  import json

  assert json.loads(json.dumps(mark())) == mark()
  same = [mark(in_memory=True), mark(workers=2), mark(threads=9), mark(prefetch=9)]
  assert all(other == mark() for other in same)
  changed = [
    mark(numbered(51)),
    mark(batch_size=4),
    mark(seed=1),
    mark(random_flip=True),
    mark(channels=3),
    mark(resize="pad"),
  ]
  assert all(other != mark() for other in changed)


@pytest.mark.parametrize(
  ("arguments", "overrides", "message"),
  [
    ({"process_count": 60}, {}, "60 processes, but only 50 examples"),
    (
      {"process_count": 3},
      {},
      "batch size 8 does not divide among 3 processes (config.train.batch_size). Use 9.",
    ),
    (
      {"batch_size": 0},
      {},
      "batch size 0 does not divide among 1 processes (config.train.batch_size). Use 1.",
    ),
    (
      {"batch_size": 51},
      {},
      "batch size 51 is more than the 50 examples there are (config.train.batch_size). Use 50 or less.",
    ),
    ({"seed": -1}, {}, "seed -1 is outside"),
    ({}, {"threads": 0}, "config.data.threads is 0. Use at least 1."),
    ({}, {"prefetch": 0}, "config.data.prefetch is 0. Use at least 1."),
    ({}, {"workers": -1}, "config.data.workers is -1. Use at least 0."),
    ({}, {"workers": 2, "in_memory": True}, "--config.data.workers=0 and --config.data.in_memory=False"),
    ({}, {"image_size": 10**6, "in_memory": True}, "read them from disk with --config.data.in_memory=False"),
  ],
)
def test_what_cannot_work_is_told_at_once(section, numbered, arguments, overrides, message):
  with pytest.raises(UserError) as e:  # at the call, not at the first batch
    data.stream(
      numbered(50), section(**{"image_size": 4} | overrides), **{"batch_size": 8, "seed": 0} | arguments
    )
  assert message in str(e.value) and "\n" not in str(e.value)


def test_splits_whose_labels_stand_for_other_classes_are_told(numbered):
  source = numbered(20)
  other = dataclasses.replace(source, label_names=tuple(reversed(source.label_names)))
  fewer = dataclasses.replace(source, label_names=source.label_names[:4])
  for same in (source, fewer):
    data.check_same_classes(source, same, "'test'")
  with pytest.raises(UserError, match="'test' has the classes j, i, .* the training data a, b, "):
    data.check_same_classes(source, other, "'test'")


def test_classes_that_the_data_lacks_are_told(numbered, caplog):
  data.check_labels(numbered(20), 11)
  assert "the data has 10 classes, config.model.num_classes is 11" in caplog.text
  assert "Use --config.model.num_classes=10." in caplog.text


def test_labels_outside_the_model_are_told(numbered):
  data.check_labels(numbered(20), 10)
  data.check_labels(numbered(20), 0)  # a model that knows none
  with pytest.raises(UserError) as e:
    data.check_labels(numbered(20), 9)
  assert "label 9 ('j'), outside config.model.num_classes=9. Use --config.model.num_classes=10." in str(
    e.value
  )
