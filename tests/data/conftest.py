"""Small settings and small data, made here or taken from this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pytest
from PIL import Image

from jaxdiff.data import base


@pytest.fixture(scope="session")
def section() -> Callable[..., ml_collections.ConfigDict]:
  """Makes a config's data section: that of digits, with overrides."""

  def make(**overrides: Any) -> ml_collections.ConfigDict:
    data = ml_collections.ConfigDict(
      {
        "image_size": 8,
        "channels": 1,
        "resize": "auto",
        "random_crop": False,
        "random_flip": False,
        "hint": "",
        "hint_maps": "",
        "in_memory": False,
        "workers": 0,
        "threads": 2,
        "prefetch": 2,
      }
    )
    data.update(overrides)
    return data

  return make


@pytest.fixture(scope="session")
def numbered() -> Callable[..., base.Source]:
  """Makes a source of n images 4x4: of example i, the first pixels are the bytes of i; its label is i % 10."""

  def make(n: int) -> base.Source:
    images = np.zeros((n, 4, 4, 1), np.uint8)
    images[:, 0, :2, 0] = np.stack([np.arange(n) % 256, np.arange(n) // 256], axis=1)
    return base.from_arrays("numbered", images, np.arange(n) % 10, tuple("abcdefghij"))

  return make


@pytest.fixture(scope="session")
def fashion_mnist() -> Path:
  """Where the IDX files of Fashion-MNIST lie."""
  path = Path(os.environ.get("JAXDIFF_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
  if not (path / "t10k-images-idx3-ubyte.gz").is_file():
    pytest.skip(
      f"no Fashion-MNIST in {path}: apt-get install dataset-fashion-mnist, or set JAXDIFF_FASHION_MNIST"
    )
  return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
  """A folder with the classes cat and dog, three noisy 20x30 RGB images each, in three formats."""
  rng = np.random.default_rng(0)
  for name in ("dog", "cat"):
    (tmp_path / "photos" / name).mkdir(parents=True)
    for file in ("a.png", "b.JPG", "c.webp"):
      pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
      Image.fromarray(pixels).save(tmp_path / "photos" / name / file)
  return tmp_path / "photos"
