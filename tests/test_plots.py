from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from jaxdiff import plots


def write_metrics(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_loss_curve(tmp_path):
  import matplotlib

  before = dict(matplotlib.rcParams)
  source, target = tmp_path / "metrics.jsonl", tmp_path / "loss.png"
  heights = []
  for extra in ({}, {"grad_norm": 1.0}, {"grad_norm": 1.0, "learning_rate": 1e-3}):
    write_metrics(source, [{"step": step, "loss": 1 / step, **extra} for step in range(1, 60)])
    assert plots.loss_curve(source, target)
    heights.append(Image.open(target).height)
  assert heights[0] < heights[1] < heights[2]  # a panel for each
  assert dict(matplotlib.rcParams) == before
  assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


@pytest.mark.parametrize(
  "losses", [[1.0], [0.0, 1.0], [-1.0, 1.0], [None], [1.0, 0.5, None], [3.0] * 30, [1e-30, 1e30] * 20]
)
def test_loss_curve_of_odd_runs(tmp_path, losses):
  source, target = tmp_path / "metrics.jsonl", tmp_path / "loss.png"
  write_metrics(source, [{"step": step, "loss": loss} for step, loss in enumerate(losses)])
  assert plots.loss_curve(source, target)
  assert np.asarray(Image.open(target)).std() > 0


def test_no_loss_no_curve(tmp_path):
  write_metrics(tmp_path / "metrics.jsonl", [{"step": 1, "accuracy": 0.5}])
  assert not plots.loss_curve(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
  assert not (tmp_path / "loss.png").exists()


def test_accuracy_by_noise_draws_every_curve_and_gives_what_it_saves(tmp_path):
  levels, path = [0.0, 0.5, 1.0], tmp_path / "accuracy.png"
  flat = plots.accuracy_by_noise(levels, {"top1": [0.5, 0.5, 0.5]}, 10, path)
  falling = plots.accuracy_by_noise(levels, {"top1": [1.0, 0.5, 0.1]}, 10, path)
  both = plots.accuracy_by_noise(levels, {"top1": [1.0, 0.5, 0.1], "top5": [1.0, 1.0, 0.5]}, 10, path)
  assert flat.dtype == np.uint8 and flat.shape == falling.shape == both.shape
  assert (flat != falling).any() and (falling != both).any()
  np.testing.assert_array_equal(both, np.asarray(Image.open(path).convert("RGB")))
