"""XLA's flags and glibc's tunables: set where they are understood, never over the user's."""

import os
import platform as host
import subprocess
import sys

import pytest

from jaxdiff import platform

FLAG = f"{platform.FUSION_FLAG}={platform.FUSION_TYPES}"


@pytest.mark.parametrize(
  ("given", "version", "on_cpu", "expected"),
  [
    ("", (0, 10, 2), True, FLAG),
    ("--xla_a=1", (0, 12, 0, 1), True, f"--xla_a=1 {FLAG}"),
    ("", (0, 10, 1), True, ""),
    ("", (0, 13), True, ""),
    ("", (0, 12), False, ""),
    (f"{platform.FUSION_FLAG}=", (0, 12), True, f"{platform.FUSION_FLAG}="),
  ],
)
def test_flags(given, version, on_cpu, expected):
  assert platform.xla_flags(given, version, on_cpu) == expected


def test_version_and_platforms(monkeypatch):
  assert platform.jaxlib_version() >= (0, 10)
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  assert platform.cpu_only()
  monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
  assert not platform.cpu_only()


GLIBC = ("glibc", "2.36")
ASKED = "glibc.malloc.hugetlb=1"


@pytest.mark.parametrize(
  ("given", "libc", "setting", "on_cpu", "expected"),
  [
    ("", GLIBC, "madvise", True, ASKED),
    ("", ("glibc", "2.35"), "madvise", True, ASKED),
    ("glibc.malloc.check=1", GLIBC, "madvise", True, f"glibc.malloc.check=1:{ASKED}"),
    (f"{platform.TUNABLE}=0", GLIBC, "madvise", True, f"{platform.TUNABLE}=0"),
    ("", GLIBC, "madvise", False, ""),
    ("", GLIBC, "always", True, ""),
    ("", GLIBC, "never", True, ""),
    ("", GLIBC, "", True, ""),
    ("", ("glibc", "2.34"), "madvise", True, ""),
    ("", ("", ""), "madvise", True, ""),
  ],
)
def test_huge_pages_are_asked_for_where_that_changes_anything(given, libc, setting, on_cpu, expected):
  assert platform.huge_page_tunables(given, libc, setting, on_cpu) == expected


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("always [madvise] never\n", "madvise"),
    ("[always] madvise never\n", "always"),
    ("always madvise [never]\n", "never"),
    ("", ""),
  ],
)
def test_the_kernels_setting_is_the_word_in_brackets(text, expected, tmp_path, monkeypatch):
  monkeypatch.setattr(platform, "HUGE_PAGES", tmp_path / "enabled")
  assert platform.huge_pages_setting() == ""
  (tmp_path / "enabled").write_text(text)
  assert platform.huge_pages_setting() == expected


PROGRAM = """
import os, pathlib, sys
from jaxdiff import platform
platform.HUGE_PAGES = pathlib.Path(sys.argv[1])
print("started", os.getpid(), flush=True)
platform.with_huge_pages()
print(os.environ.get("GLIBC_TUNABLES", ""), *sys.argv[2:])
"""


@pytest.mark.skipif(host.libc_ver()[0] != "glibc", reason="glibc's")
@pytest.mark.parametrize(("setting", "starts", "tunables"), [("[madvise]", 2, ASKED), ("[never]", 1, "")])
def test_a_program_starts_anew_once_as_the_same_process(setting, starts, tunables, tmp_path):
  """With the arguments that it had, and no more often than it takes."""
  (tmp_path / "enabled").write_text(f"always {setting} never")
  (tmp_path / "program.py").write_text(PROGRAM)
  command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "enabled"), "--a=b c", ""]
  environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
  with subprocess.Popen(
    command, env=environment | {"PYTHONPATH": os.getcwd()}, stdout=subprocess.PIPE, text=True
  ) as process:
    said = process.communicate()[0]
  assert said.splitlines() == [f"started {process.pid}"] * starts + [f"{tunables} --a=b c "]
