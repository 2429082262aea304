"""Shares of a split."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from jaxdiff import data
from jaxdiff.errors import UserError


def pictures(source):
  return [(example["image"].tobytes(), example["label"]) for example in source.take(range(len(source)))]


def test_two_shares_are_the_whole_and_have_nothing_in_common():
  whole, first, rest = (data.load("digits", split) for split in ("train", "train[:80%]", "train[80%:]"))
  assert (len(first), len(rest)) == (1438, 359)
  assert sorted(pictures(first) + pictures(rest)) == sorted(pictures(whole))


def test_a_share_has_all_classes_alike():
  """Of 1,797 digits a fifth has 36 of each class, give or take four standard deviations."""
  labels = [label for _, label in pictures(data.load("digits", "train[80%:]"))]
  assert np.abs(np.bincount(labels, minlength=10) - 36).max() < 4 * 36**0.5


@pytest.mark.parametrize(
  ("split", "count"),
  [("train[:100]", 100), ("train[1700:]", 97), ("train[100:20%]", 259), ("train[:]", 1797)],
)
def test_bounds_are_numbers_or_shares(split, count):
  assert len(data.load("digits", split)) == count


def test_shares_have_fingerprints_of_their_own_and_survive_pickling():
  one, other = data.load("digits", "train[:50%]"), data.load("digits", "train[50%:]")
  assert len({one.fingerprint, other.fingerprint, data.load("digits").fingerprint}) == 3
  assert pictures(pickle.loads(pickle.dumps(one))) == pictures(one)


@pytest.mark.parametrize(
  ("split", "message"),
  [
    ("train[80:", "cannot read the split 'train[80:'. Write a share of one as train[:90%]"),
    ("train[-5:]", "cannot read the split"),
    ("train[100%:]", "has no examples: there are 1797 to take a share of."),
    ("test[:10%]", "has one split, 'train', and no 'test'"),
  ],
)
def test_what_cannot_be_a_share_is_told(split, message):
  with pytest.raises(UserError) as error:
    data.load("digits", split)
  assert message in str(error.value)
