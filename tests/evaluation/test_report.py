import json
import re

import numpy as np
import pytest

from jaxdiff import pictures
from jaxdiff.errors import UserError
from jaxdiff.evaluation import report
from jaxdiff.reporting import open_log

FIGURES = {"frechet": 2.0, "precision": 0.8, "recall": 0.7, "coverage": 0.6, "accuracy": 0.9}


def settings(**changed):
  return {"step": 10, "sample.guidance": 1.5, "sample.steps": 50, "sample.interval": (0.0, 2.0)} | changed


def add(workdir, **changed):
  return report.add(workdir, settings(**changed), FIGURES, {"0": 0.5, "1": 1.0})


def test_a_row_replaces_the_one_with_its_settings_and_comes_last(tmp_path):
  add(tmp_path)
  add(tmp_path, step=20)
  rows = report.add(tmp_path, settings(), FIGURES | {"frechet": 1.0}, {})
  assert [row["settings"]["step"] for row in rows] == [20, 10]
  assert rows[-1]["figures"]["frechet"] == 1.0
  assert rows == report.read(tmp_path) == json.loads((tmp_path / "evaluation.json").read_text())["rows"]


def test_curves_are_drawn_over_what_alone_differs_from_the_last_row(tmp_path):
  for changed in (
    {"step": 20},
    {"step": 30},
    {"step": 40, "sample.guidance": 3.0},
    {"sample.guidance": 3.0},
    {},
  ):
    rows = add(tmp_path, **changed)
  assert sorted(row["settings"]["step"] for row in report.alike(rows, "step")) == [10, 20, 30]
  assert [row["settings"]["sample.guidance"] for row in report.alike(rows, "sample.guidance")] == [3.0, 1.5]
  names = [path.name for path, _ in report.curves(tmp_path, rows)]
  assert names == ["over_step.png", "over_guidance.png"]
  assert all((tmp_path / "evaluation" / name).stat().st_size > 0 for name in names)


def test_the_page_holds_figures_pictures_and_all_rows_in_one_file(tmp_path):
  pictures.save_png(tmp_path / "evaluation" / "grid.png", np.zeros((4, 4, 3), np.uint8))
  with open_log(tmp_path) as log:
    log.scalars(5, {"loss": 1.0})
    log.scalars(10, {f"eval/{name}": value for name, value in FIGURES.items()})
  add(tmp_path, step=5, classifier="<b>&")
  report.write(tmp_path, add(tmp_path, classifier="<b>&"))
  text = (tmp_path / "report.html").read_text()
  assert "Frechet distance" in text and "&lt;b&gt;&amp;" in text and "<b>" not in text
  assert (
    len(re.findall(r"<img [^>]*src=\"data:image/png;base64,", text)) == 3
  )  # grid, over steps, while training
  assert "http" not in text and text.count("<tr>") > 8


def test_a_file_that_is_no_evaluation_is_told(tmp_path):
  for text in ("[]", "{", '{"rows": [1]}'):
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(UserError, match="is not what an evaluation wrote"):
      add(tmp_path)
