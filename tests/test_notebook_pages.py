"""docs.notebooks: what a page keeps of a notebook that has run."""

import base64

import pytest
from nbformat import v4

from docs import notebooks
from jaxdiff import pictures

BAR = "\rtrain:  50%|#####     | 3/6 [00:01<00:01,  2.00it/s]"


def test_a_log_keeps_its_last_lines_without_bars_and_without_folders_of_this_machine():
  told = "\n".join(
    [*map(str, range(40)), BAR, "", f"Wrote {notebooks.ROOT}/checkpoints/digits in {notebooks.ROOT}"]
  )
  lines = notebooks.log(told).splitlines()
  assert len(lines) == notebooks.LINES + 1
  assert (lines[0], lines[-2:]) == ("...", ["39", "Wrote checkpoints/digits in ."])


def test_a_short_log_is_kept_whole():
  assert notebooks.log("one\ntwo\n") == "one\ntwo\n"


def test_a_page_has_the_text_the_code_and_the_pictures(tmp_path):
  pytest.importorskip("nbconvert")
  import numpy as np

  picture = tmp_path / "red.png"
  pictures.save_png(picture, np.full((4, 4, 3), 255, np.uint8))
  encoded = base64.b64encode(picture.read_bytes()).decode()
  shown = v4.new_output("display_data", {"image/png": encoded, "image/jpeg": encoded})
  told = [v4.new_output("stream", name="stderr", text=text) for text in (f"{BAR}\n", "Do", "ne.\n")]
  cells = [v4.new_markdown_cell("# A title"), v4.new_code_cell("draw()", outputs=[*told, shown])]
  (tmp_path / "pages").mkdir()
  (tmp_path / "pages" / "a_9_9.png").touch()
  page = notebooks.write("a", v4.new_notebook(cells=cells), tmp_path / "pages")
  text = page.read_text()
  assert (
    all(part in text for part in ("notebooks/a.ipynb", "# A title", "draw()", "Done.")) and "%|" not in text
  )
  (kept,) = page.parent.glob("a_*")
  assert kept.name in text and kept.read_bytes() == picture.read_bytes()
