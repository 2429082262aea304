"""Sums of the files in a folder: every change of one is noticed and named."""

import shutil
import subprocess

import numpy as np
import pytest

from jaxdiff import sums


@pytest.fixture
def folder(tmp_path):
  rng = np.random.default_rng(0)
  for name, size in (
    ("state/d/array", 3000),
    ("state/manifest", 50),
    ("run/metadata", 400),
    ("own notes", 1),
  ):
    path = tmp_path / "4" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(rng.bytes(size))
  (tmp_path / "4" / "empty").touch()
  (tmp_path / "4" / "left_out").write_text("changes later")
  sums.write(tmp_path / "4", leave_out=["left_out"])
  return tmp_path / "4"


def flip(path, bit):
  data = bytearray(path.read_bytes())
  data[bit // 8] ^= 1 << bit % 8
  path.write_bytes(data)


def test_what_has_not_changed_passes(folder):
  (folder / "left_out").write_text("changed")
  (folder / "state" / "new").write_text("has no sum")
  sums.check(folder)
  sums.check(folder, "run/")


def test_a_flipped_bit_is_noticed_wherever_it_is(folder):
  """In any file with a sum, and in the list itself: 300 bits at random, and each of 300 in the list."""
  rng = np.random.default_rng(1)
  named = ["state/d/array", "state/manifest", "run/metadata", "own notes"]
  sizes = np.array([(folder / name).stat().st_size for name in named])
  flips = [(named[i], rng.integers(8 * sizes[i])) for i in rng.choice(4, 300, p=sizes / sizes.sum())]
  of_list = rng.choice(8 * (folder / sums.NAME).stat().st_size, 300, replace=False)
  for name, bit in flips + [(sums.NAME, bit) for bit in of_list]:
    flip(folder / name, bit)
    with pytest.raises(sums.Damaged) as error:
      sums.check(folder)
    assert name == sums.NAME or str(error.value).startswith(f"{name} has changed")
    flip(folder / name, bit)
  sums.check(folder)


@pytest.mark.parametrize("name", ["state/d/array", "own notes", sums.NAME])
def test_a_truncated_file_is_noticed_at_every_length(folder, name):
  data = (folder / name).read_bytes()
  for length in range(0, len(data), 7):
    (folder / name).write_bytes(data[:length])
    with pytest.raises(sums.Damaged, match=name):
      sums.check(folder)


def test_a_missing_file_is_noticed(folder):
  (folder / "empty").unlink()
  with pytest.raises(sums.Damaged, match="^empty is missing$"):
    sums.check(folder)
  (folder / "run" / "metadata").unlink()
  with pytest.raises(sums.Damaged, match="^run/metadata is missing$"):
    sums.check(folder, "run/")


def test_a_list_without_its_last_lines_is_not_taken_for_a_whole_one(folder):
  listed = (folder / sums.NAME).read_text().splitlines(keepends=True)
  for count in range(len(listed)):
    (folder / sums.NAME).write_text("".join(listed[:count]))
    with pytest.raises(sums.Damaged, match="^SHA256SUMS is damaged$"):
      sums.check(folder)


def test_a_part_is_checked_alone(folder):
  flip(folder / "state" / "d" / "array", 5)
  sums.check(folder, "run/")
  with pytest.raises(sums.Damaged):
    sums.check(folder, "state/")


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs coreutils")
def test_coreutils_reads_the_list(folder):
  command = ["sha256sum", "--check", "--strict", "--quiet", sums.NAME]
  assert subprocess.run(command, cwd=folder, check=False).returncode == 0
  flip(folder / "run" / "metadata", 0)
  assert subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 1
