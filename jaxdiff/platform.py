"""What must be settled before JAX starts its backend: memory and XLA's flags for a CPU, the compilation cache; and where caches lie.

Call `with_huge_pages`, where a program may start anew, and `configure` first thing in it. Importing jaxdiff never changes a
process's settings.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform as host
import re
import sys
from pathlib import Path

import jax

# XLA:CPU hands convolutions and products of matrices to a library (YNNPACK) whose convolutions use one thread; without it
# they go to Eigen, which uses all.  Products stay with the library.
FUSION_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
FUSION_TYPES = "-individual_convolution"
FUSION_VERSIONS = (
  (0, 10, 2),
  (0, 13),
)  # jaxlib, from and below: XLA ends a process for a value it does not know
DEVICES_FLAG = "--xla_force_host_platform_device_count"
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # who gets them: always [madvise] never
TUNABLE = "glibc.malloc.hugetlb"
ASKING = f"{TUNABLE}=1"
TUNABLE_SINCE = (2, 35)  # glibc
ACCELERATORS = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "jax_rocm60_plugin")


def configure(cache_dir: str | os.PathLike[str] | None = None) -> None:
  """Sets XLA_FLAGS for this machine and, given a directory, keeps compiled programs there across runs.

  Has to run before the first JAX array. A flag that the user has set stays as it is.
  """
  flags = xla_flags(os.environ.get("XLA_FLAGS", ""), jaxlib_version(), cpu_only())
  if flags:
    os.environ["XLA_FLAGS"] = flags
  if cache_dir is not None:
    jax.config.update("jax_compilation_cache_dir", str(Path(cache_dir).expanduser().absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def with_huge_pages() -> None:
  """Starts this program anew with memory in pages of 2 MiB, where it would otherwise get pages of 4 KiB; else returns.

  XLA:CPU takes the memory that a step works in from malloc and gives it back, every time. The kernel then clears it page by page,
  which takes a fifth of a train step; with large pages little of that is left. glibc asks for them where GLIBC_TUNABLES say so,
  and reads these only when a process starts. The process keeps its number, arguments and open files.

  Source: glibc's manual, "Memory Allocation Tunables"; Linux, admin-guide/mm/transhuge.
  """
  given = os.environ.get("GLIBC_TUNABLES", "")
  tunables = huge_page_tunables(given, host.libc_ver(), huge_pages_setting(), cpu_only())
  if tunables != given and sys.executable:
    with contextlib.suppress(OSError):  # a system that forbids it: slower, that is all
      os.execve(
        sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "GLIBC_TUNABLES": tunables}
      )


def huge_pages_setting() -> str:
  """Who gets huge pages from the kernel: "always", "madvise" (who asks) or "never"; "" where there is no such setting."""
  chosen = re.search(r"\[(\w+)\]", HUGE_PAGES.read_text()) if HUGE_PAGES.is_file() else None
  return chosen[1] if chosen else ""


def huge_page_tunables(given: str, libc: tuple[str, str], setting: str, on_cpu: bool) -> str:
  """GLIBC_TUNABLES to run with: what the user gave, and huge pages where asking for them changes anything.

  Shapes: libc as platform.libc_ver() has it, ("glibc", "2.36"); setting as huge_pages_setting().
  """
  name, version = libc
  numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
  is_known = name == "glibc" and numbers >= TUNABLE_SINCE
  if TUNABLE in given or not on_cpu or not is_known or setting != "madvise":
    return given
  return f"{given}:{ASKING}".lstrip(":")


def cache_dir() -> Path:
  """Where what is downloaded or compiled is kept from run to run: $XDG_CACHE_HOME/jaxdiff, else ~/.cache/jaxdiff."""
  return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxdiff"


def xla_flags(given: str, version: tuple[int, ...], on_cpu: bool) -> str:
  """XLA_FLAGS to run with: what the user gave, and the fusion flag where it is known to be understood."""
  oldest, newest = FUSION_VERSIONS
  if FUSION_FLAG in given or not on_cpu or not oldest <= version < newest:
    return given
  return f"{given} {FUSION_FLAG}={FUSION_TYPES}".strip()


def simulate(devices: int) -> None:
  """Lets the CPU pass for so many devices, unless XLA_FLAGS say already for how many.  Has to run before the first JAX array."""
  given = os.environ.get("XLA_FLAGS", "")
  if DEVICES_FLAG not in given:
    os.environ["XLA_FLAGS"] = f"{given} {DEVICES_FLAG}={devices}".strip()


def jaxlib_version() -> tuple[int, ...]:
  """(0, 10, 2) for jaxlib 0.10.2; what follows the numbers (rc1, .dev0) is dropped."""
  numbers = []
  for part in importlib.metadata.version("jaxlib").split("."):
    if not part.isdigit():
      break
    numbers.append(int(part))
  return tuple(numbers)


def cpu_only() -> bool:
  """Whether only the CPU backend can start. An accelerator's plugin reads XLA_FLAGS too, with flags of its own."""
  platforms = os.environ.get("JAX_PLATFORMS", "")
  if platforms:
    return platforms == "cpu"
  return not any(importlib.util.find_spec(name) for name in ACCELERATORS)
