import numpy as np
import pytest

from jaxdiff.scores import features

GOOD = np.ones((3, 2))


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    (np.ones(3), r"fake: shape \(3,\), but it must be \[N, D\]"),
    (np.ones((3, 2, 2)), r"fake: shape \(3, 2, 2\)"),
    (np.ones((3, 0)), r"fake: shape \(3, 0\)"),
    (np.ones((3, 2), complex), "fake: values of type complex128"),
    (np.array([["a", "b"]]), "fake: values of type <U1"),
    (np.ones((1, 2)), "fake: 1 images, but at least 2 are needed"),
    (np.ones((3, 4)), r"different lengths, \{'real': 2, 'fake': 4\}"),
    (np.array([[0, 1], [2, np.nan]]), r"fake: nan at \[1, 1\]"),
    (np.array([[0, 1], [-np.inf, 0]], np.float32), r"fake: -inf at \[1, 0\]"),
  ],
)
def test_what_cannot_be_compared_is_told_by_name(wrong, message):
  with pytest.raises(ValueError, match=message):
    features.checked({"real": GOOD, "fake": wrong}, at_least=2)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float32])
def test_sets_keep_their_type(dtype):
  (same,) = features.checked({"real": GOOD.astype(dtype)})
  assert same.dtype == dtype


def test_a_place_is_counted_over_all_blocks(monkeypatch):
  monkeypatch.setattr(features, "BLOCK", 4)
  values = np.ones((7, 2))
  values[5, 1] = np.inf
  with pytest.raises(ValueError, match=r"mine: inf at \[5, 1\]"):
    features.check_finite("mine", values)


@pytest.mark.parametrize(("rows", "width", "sizes"), [(7, 3, [3, 3, 1]), (2, 100, [1, 1]), (0, 3, [])])
def test_blocks_cover_all_rows_once(rows, width, sizes, monkeypatch):
  monkeypatch.setattr(features, "BLOCK", 10)
  found = list(features.blocks(rows, width))
  assert [s.stop - s.start for s in found] == sizes
  assert [i for s in found for i in range(rows)[s]] == list(range(rows))
