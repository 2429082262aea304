"""Folders that cannot be written to, in a process that may not: each mode says so before it draws or scores anything."""

import os
import shutil
import subprocess
import sys

import pytest

from tests import small

PROGRAM = """
import sys
from jaxdiff import main
for line in sys.stdin:
  print("status", main.main(line.split()), file=sys.stderr, flush=True)
"""
# root writes where it likes, but for this
THROUGH = ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override") if not os.geteuid() else ()


@pytest.mark.skipif(bool(THROUGH) and not shutil.which("setpriv"), reason="root, and no setpriv (util-linux)")
def test_a_folder_that_cannot_be_written_to_is_told_in_a_line_before_anything_is_drawn_or_scored(tmp_path):
  run, full = tmp_path / "run", tmp_path / "full"
  run.mkdir()
  full.mkdir()
  small.run(run)
  config = " ".join(("--config configs/dit_cfg.py", *(f"--{line}" for line in small.arguments())))
  commands = (
    f"{config} --workdir {full}",
    f"{config} --workdir {full}/new",
    f"{config} --workdir {tmp_path}/new --config.train.checkpoint_dir={full}/new",
    f"--mode sample --workdir {run}",
    f"--mode evaluate --workdir {run} --config.eval.features=pixels",
    f"--mode prepare --config configs/dit_cfg.py --config.prepare.out={full}",
    f"--mode export --workdir {run} --config.export.out={full}/exported",
    f"--mode sample --workdir {run} --config.sample.num=4 --config.sample.folder={tmp_path}/drawn",
  )
  paths = [run, full, *run.rglob("*")]
  for path in paths:
    path.chmod(path.stat().st_mode & ~0o222)
  try:
    done = subprocess.run(
      [*THROUGH, sys.executable, "-c", PROGRAM],
      input="\n".join(commands), env=os.environ | {"PYTHONPATH": os.getcwd()}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
  finally:
    for path in reversed(paths):
      path.chmod(path.stat().st_mode | 0o200)
  said = done.stderr.split("status ")
  assert [text.splitlines()[0] for text in said[1:]] == ["2"] * (len(commands) - 1) + ["0"], done.stderr
  assert {path.name for path in (tmp_path / "drawn").iterdir()} == {"samples.png", "samples.npz"}
  folders = (full, full / "new", full / "new", run, run, full, full / "exported")
  for folder, text in zip(folders, said, strict=False):
    (line,) = [line for line in text.splitlines() if line.startswith("jaxdiff: ")]
    assert line.startswith(("jaxdiff: cannot write to ", "jaxdiff: cannot write ")) and str(folder) in line
    assert "sample " not in text and "features of" not in text and "draw " not in text, (
      "it has drawn or scored first"
    )
  assert sorted(full.iterdir()) == []
