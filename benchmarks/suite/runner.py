"""What a contestant gives to be timed."""

from __future__ import annotations

import atexit
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Runner(NamedTuple):
  """One contestant, ready to run."""

  # does the work, and returns when it is done: seconds by name, where more than the whole call's counts
  run: Callable[[], dict[str, float]]
  facts: dict[str, Any]  # plain JSON values: parameters, compile_s, flops_compiled, flops_lowered
  memory: Callable[[], int]  # peak bytes until now
  matmul: Callable[[], float] | None = None  # FLOP/s of products of large matrices, measured when called
  warmup: int = 3  # runs before the first that counts


def resident_memory() -> int:
  """The most memory that this process has had, in bytes."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else 1024 * peak


def scratch() -> Path:
  """A folder that is removed when this process ends."""
  folder = Path(tempfile.mkdtemp(prefix="jaxdiff-suite-"))
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return folder
