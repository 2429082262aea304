"""Evaluations while a model is trained."""

import json

import numpy as np
import pytest

from jaxdiff import previews
from jaxdiff.evaluation import figures, report
from jaxdiff.main import main
from jaxdiff.reporting import Shown
from tests import small
from tests.test_main import train

QUICK = ("--config.eval.every=2", "--config.eval.quick_num=30", "--config.eval.features=pixels")


@pytest.fixture(autouse=True)
def _few_subsets(monkeypatch):
  monkeypatch.setattr(figures, "KID_SUBSETS", 5)


def rows_of(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return {row["step"]: row for row in map(json.loads, lines) if "eval/frechet" in row}


@pytest.mark.slow
def test_evaluations_are_on_the_curves_and_those_of_the_last_step_can_be_repeated(tmp_path):
  assert train(tmp_path, *QUICK, "--config.data.split=train[:100]")[0] == 0
  rows = rows_of(tmp_path)
  assert sorted(rows) == [2, 4, 6]
  assert {"eval/frechet", "eval/kid", "eval/precision", "eval/near_copies"} <= set(rows[2])
  assert main(["--mode", "evaluate", "--workdir", str(tmp_path), "--config.eval.num=30"]) == 0
  (row,) = report.read(tmp_path)
  assert row["figures"]["frechet"] == pytest.approx(rows[6]["eval/frechet"], rel=0.01)
  assert (tmp_path / "evaluation" / "while_training.png").stat().st_size > 0


def test_each_part_of_a_preview_has_its_own_period(monkeypatch):
  calls = []

  def part(name, every):
    def make(*arguments):
      def show(state, step, is_last):
        calls.append((name, step, is_last))
        return Shown({name: np.zeros((2, 2, 3), np.uint8)}, {name: 1.0})

      return show

    return previews.Part(make, lambda config, task, step: bool(every) and step % every == 0)

  monkeypatch.setitem(previews.PREVIEWS, "denoise", (part("a", 2), part("b", 3), part("end", 0)))
  config = small.config("dit", "train.steps=7")
  preview = previews.make(config, None, None, None, None)
  assert [step for step in range(1, 8) if preview.due(step)] == [2, 3, 4, 6, 7]
  assert set(preview.show(None, 6).pictures) == {"a", "b"}
  assert set(preview.show(None, 7).numbers) == {"a", "b", "end"}
  assert calls == [("a", 6, False), ("b", 6, False), ("a", 7, True), ("b", 7, True), ("end", 7, True)]


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--config.eval.every=-1", "config.eval.every is -1; give a number of steps"),
    ("--config.eval.quick_num=3", "config.eval.quick_num is 3; scores need at least 10 images."),
    ("--config.eval.features=inseption", "Did you mean 'inception'?"),
  ],
)
def test_a_run_that_could_not_be_evaluated_is_told_before_it_starts(tmp_path, capsys, argument, message):
  status, text = train(tmp_path, *QUICK, argument, capsys=capsys)
  assert status == 2 and message in text
  assert not (tmp_path / "config.json").exists()
