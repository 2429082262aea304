"""What must be settled before JAX starts its backend: XLA's flags for a CPU, the compilation cache; and where caches lie.

Call `configure` first thing in a program. Importing jaxdiff never changes a process's settings.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from pathlib import Path

import jax

# XLA:CPU hands convolutions and small products of matrices to a library (YNNPACK) whose convolutions use one
# thread; without it they go to Eigen, which uses all.
FUSION_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
FUSION_TYPES = "-individual_convolution,-individual_dot"
FUSION_VERSIONS = (
  (0, 10, 2),
  (0, 13),
)  # jaxlib, from and below: XLA ends a process for a value it does not know
DEVICES_FLAG = "--xla_force_host_platform_device_count"
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
