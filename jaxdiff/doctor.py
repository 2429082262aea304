"""`--mode doctor`: what this machine has for training, how fast it is, and what to mend.

Each finding is a line, with a line of advice where something can be better.  What needs further packages is imported where it
is used: one that is missing is a finding too.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import platform as host
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import platform
from jaxdiff.errors import UserError, first_line

logger = logging.getLogger("jaxdiff")

PYTHONS = ((3, 11), (3, 14))  # from, and below
REQUIRED = {  # module -> package
  "flax": "flax",
  "optax": "optax",
  "einops": "einops",
  "scipy": "scipy",
  "orbax.checkpoint": "orbax-checkpoint",
  "grain": "grain",
  "cv2": "opencv-python-headless",
  "sklearn": "scikit-learn",
  "PIL": "pillow",
  "matplotlib": "matplotlib",
  "safetensors": "safetensors",
  "tensorboardX": "tensorboardX",
  "tensorflow_datasets": "tensorflow-datasets",
}
OPTIONAL = {  # package -> what it is for
  "onnxruntime": "hints and scores by networks in ONNX files",
  "tensorflow": "preparing named TFDS sets",
  "torch": "tests that compare with PyTorch",
  "diffusers": "tests that compare with its schedulers",
  "jupyterlab": "the notebooks on this machine",
}
FASHION_MNIST = "/usr/share/datasets/fashion-mnist"  # where Debian's and Ubuntu's package puts it
OLDEST_DRIVER = (525, 60)  # NVIDIA's, on Linux, for CUDA 12: JAX's page on installation
HEADS = (64, 72)  # channels of a head: of DiT-S, B and L; of DiT-XL
CACHE = "jax_compilation_cache_dir"  # of jax.config
TPU_VENDOR = "0x1ae0"
# Chips, not the other devices of that vendor; as the Makefile looks for them.
TPU_DEVICES = ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076", "0x007c", "0x0083")


class Finding(NamedTuple):
  """One line of the report."""

  name: str
  text: str  # what was found
  advice: str = ""  # what to do about it, in one line; "" where nothing is to be done
  stops: bool = False  # training cannot work until that is done


class Sizes(NamedTuple):
  """What is computed to measure speed."""

  matmul: int  # rows and columns of both matrices
  batch: int  # of a convolution 3x3: images, ...
  side: int  # ... pixels, ...
  channels: int  # ... channels in and out
  dtype: str


SIZES = {  # by platform: some hundredths of a second each
  "cpu": Sizes(matmul=1024, batch=16, side=32, channels=64, dtype="float32"),
  "gpu": Sizes(matmul=8192, batch=64, side=64, channels=256, dtype="bfloat16"),
  "tpu": Sizes(matmul=8192, batch=64, side=64, channels=256, dtype="bfloat16"),
}


def run() -> int:
  """Tells what was found.  Returns the exit status: 0 where training can work, 1 where it cannot."""
  found = findings()
  for line in lines(found):
    logger.info(line)
  stopping = [finding for finding in found if finding.stops]
  if not stopping:
    logger.info("Training can work here.")
    return 0
  for finding in stopping:
    logger.error("jaxdiff: training cannot work here yet: %s: %s. %s", *finding[:3])
  return 1


def lines(found: Sequence[Finding]) -> list[str]:
  """The report: a mark, a name and what was found; the advice below it."""
  text = []
  for finding in found:
    mark = "FIX" if finding.stops else "see" if finding.advice else "ok"
    text.append(f"{mark:<4} {finding.name:<15} {finding.text}")
    if finding.advice:
      text.append(f"{'':<20} -> {finding.advice}")
  return text


def findings(sizes: Sizes | None = None) -> list[Finding]:
  """Everything that is looked at, in the order of what needs what."""
  found = [python(sys.version_info[:2]), *packages()]
  seen, devices = accelerators(os.environ), backend()
  found += [jax_version(), *seen.found, devices]
  if any(finding.stops for finding in found):
    return found  # what follows needs them
  kind = jax.default_backend()
  found += unused(seen, kind, os.environ)
  found += [memory(), *huge_pages(kind, platform.huge_pages_setting(), os.environ), disk(Path.cwd())]
  found += speeds(sizes or SIZES.get(kind, SIZES["gpu"]))
  return [*found, cudnn_attention(kind), *data_sources(os.environ), *optional()]


# Python and packages


def python(version: tuple[int, ...]) -> Finding:
  first, below = PYTHONS
  text = f"{'.'.join(map(str, sys.version_info[:3]))}, {host.system()} {host.machine()}"
  wanted = f"{'.'.join(map(str, first))} to {below[0]}.{below[1] - 1}"
  if version < first:
    return Finding("Python", text, f"install Python {wanted}, and make a new .venv with it", stops=True)
  if version >= below:
    return Finding("Python", text, f"the pinned packages are for Python {wanted}")
  return Finding("Python", text)


def packages() -> list[Finding]:
  """The packages that the library imports: one line, or one for each that is missing or broken."""
  wrong = [f"{package} {reason}" for module, package in REQUIRED.items() if (reason := _why_not(module))]
  if not wrong:
    return [Finding("packages", f"{len(REQUIRED)} of {len(REQUIRED)} required ones")]
  advice = "pip install -r requirements-cpu.txt, in the environment of this Python"
  return [Finding("packages", text, advice, stops=True) for text in wrong]


def optional() -> list[Finding]:
  """Packages that one can do without, and what for."""
  return [
    Finding(package, f"{version} ({purpose})")
    if (version := _version(package))
    else Finding(package, f"not installed: {purpose}", f"if you want that: pip install {package}")
    for package, purpose in OPTIONAL.items()
  ]


def _why_not(module: str) -> str:
  """Why a module cannot be imported; "" where it can."""
  try:
    importlib.import_module(module)
  except Exception as error:  # noqa: BLE001 - a broken package may raise anything, and each is the answer
    is_missing = isinstance(error, ModuleNotFoundError) and module.startswith(error.name or "?")
    return "is missing" if is_missing else f"cannot be imported: {first_line(error)}"
  return ""


def _is_there(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # of the package that it is in
    return False


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except ModuleNotFoundError:
    return ""


# Devices


class Seen(NamedTuple):
  """Accelerators that the machine has, whatever JAX makes of them."""

  gpus: tuple[str, ...] = ()
  tpus: int = 0
  plugin: str = ""  # JAX's for CUDA, "" where there is none
  found: tuple[Finding, ...] = ()


def accelerators(environment: Mapping[str, str], root: Path = Path("/")) -> Seen:
  """Looks for NVIDIA GPUs in what their driver writes to /proc, and for TPU chips on the PCI bus; `root` is for tests."""
  gpus, driver = nvidia(root)
  found = [Finding("NVIDIA GPU", f"{name}, driver {driver}", driver_advice(driver)) for name in gpus]
  if not gpus and (root / "dev/nvidia0").exists():
    gpus = ("NVIDIA GPU",)
    advice = "install or repair NVIDIA's driver: docs/gpu.md"
    found.append(Finding("NVIDIA GPU", "/dev/nvidia0 is there, but its driver is not", advice))
  plugin = next((name for name in platform.ACCELERATORS if "cuda" in name and _is_there(name)), "")
  if gpus and plugin:
    found.append(_plugin(plugin))
  if gpus and environment.get("LD_LIBRARY_PATH"):
    advice = "unset it if JAX finds no GPU: it comes before the CUDA libraries in JAX's own packages"
    found.append(Finding("LD_LIBRARY_PATH", environment["LD_LIBRARY_PATH"], advice))
  return Seen(gpus, _tpu_chips(root / "sys/bus/pci/devices"), plugin, tuple(found))


def nvidia(root: Path) -> tuple[tuple[str, ...], str]:
  """(names of the GPUs, version of the driver) as the driver tells them; under WSL, where it tells nothing, that there is one."""
  version = re.search(r"\b\d{3,}(\.\d+)+", _read(root / "proc/driver/nvidia/version"))
  told = [_read(path) for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))]
  names = [match[1].strip() for text in told if (match := re.search(r"^Model:(.*)$", text, re.MULTILINE))]
  if not names and (root / "dev/dxg").exists() and (root / "usr/lib/wsl/lib/nvidia-smi").exists():
    names = ["NVIDIA GPU of Windows"]
  return tuple(names), version[0] if version else "unknown"


def _read(path: Path) -> str:
  try:
    return path.read_text()
  except OSError:
    return ""


def driver_advice(driver: str) -> str:
  parts = [int(part) for part in driver.split(".")[:2] if part.isdigit()]
  if parts and tuple(parts) < OLDEST_DRIVER:
    return (
      f"CUDA 12 needs driver {'.'.join(map(str, OLDEST_DRIVER))} or newer: install a newer one, docs/gpu.md"
    )
  return ""


def _plugin(module: str) -> Finding:
  """JAX leaves out, with a warning, a plugin of another release than its own."""
  plugin, jaxlib = _version(module.replace("_", "-")), _version("jaxlib")
  text = f"{module} {plugin}"
  if plugin != jaxlib:
    return Finding("CUDA plugin", f"{text}, but jaxlib {jaxlib}", "pip install -r requirements.txt")
  return Finding("CUDA plugin", text)


def _tpu_chips(bus: Path) -> int:
  def told(path: Path) -> str:
    return _read(path).strip().lower()

  return sum(told(d / "vendor") == TPU_VENDOR and told(d / "device") in TPU_DEVICES for d in bus.glob("*"))


def jax_version() -> Finding:
  cache = getattr(jax.config, CACHE, "")
  text = f"{_version('jax')}, jaxlib {_version('jaxlib')}, compiled programs kept in {cache or 'no folder'}"
  return Finding("JAX", text)


def backend() -> Finding:
  """Starts JAX's backend and tells its devices."""
  try:
    devices = jax.devices()
  except RuntimeError as error:
    reason = first_line(error)
    asked = os.environ.get("JAX_PLATFORMS", "")
    advice = (
      f"JAX_PLATFORMS={asked}: unset it" if asked else "end other programs that use it, and see docs/gpu.md"
    )
    return Finding("devices", f"JAX starts none: {reason}", advice, stops=True)
  first = devices[0]
  text = f"{len(devices)} x {first.device_kind} ({first.platform}), {jax.process_count()} process(es)"
  return Finding("devices", text)


def unused(seen: Seen, kind: str, environment: Mapping[str, str]) -> list[Finding]:
  """What stops where the machine has an accelerator and JAX does not use it; not where the user has said so."""
  if kind != "cpu" or not (seen.gpus or seen.tpus):
    return []
  what = f"NVIDIA GPU ({seen.gpus[0]})" if seen.gpus else f"TPU ({seen.tpus} chips)"
  if environment.get("JAX_PLATFORMS", "") == "cpu":
    return [
      Finding("accelerator", f"{what} is left out", "JAX_PLATFORMS=cpu says so: unset it to train there")
    ]
  text = f"this machine has an {what}" if seen.gpus else f"this machine has a {what}"
  return [
    Finding("accelerator", f"{text}, but JAX sees only the CPU", _why_unused(seen, environment), stops=True)
  ]


def _why_unused(seen: Seen, environment: Mapping[str, str]) -> str:
  if not seen.gpus:
    return "pip install -r requirements-tpu.txt, and end other programs that hold the TPU"
  if not seen.plugin:
    return "pip install -r requirements.txt, which has JAX for CUDA; see docs/gpu.md"
  if environment.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
    return "CUDA_VISIBLE_DEVICES hides every GPU: unset it"
  if environment.get("LD_LIBRARY_PATH"):
    return "unset LD_LIBRARY_PATH, then pip install -r requirements.txt again; see docs/gpu.md"
  return "python -c 'import jax; jax.devices()' says why; a newer driver mostly helps; see docs/gpu.md"


def memory() -> Finding:
  """Of the first device; of the machine, where the device is its CPU."""
  stats = jax.local_devices()[0].memory_stats() or {}
  limit = stats.get("bytes_limit", 0)
  if limit:
    return Finding("memory", f"{limit / 2**30:.1f} GiB of a device for JAX, {_host_memory()} of the machine")
  return Finding("memory", f"{_host_memory()}, {cores()} CPU core(s)")


def huge_pages(kind: str, setting: str, environment: Mapping[str, str]) -> list[Finding]:
  """Whether what XLA:CPU works in comes in pages of 2 MiB (platform.with_huge_pages); `setting` as platform.huge_pages_setting()."""
  if kind != "cpu" or not setting:
    return []
  if setting == "never":
    advice = f"train a fifth faster: echo madvise | sudo tee {platform.HUGE_PAGES}"
    return [Finding("huge pages", "never, by the kernel's setting", advice)]
  asks = platform.ASKING in environment.get("GLIBC_TUNABLES", "")
  since = ".".join(map(str, platform.TUNABLE_SINCE))
  for_whom = f"for programs that ask, {'as this one does' if asks else f'which takes glibc {since}'}"
  return [Finding("huge pages", "for all programs" if setting == "always" else for_whom)]


def _host_memory() -> str:
  try:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
  except (OSError, ValueError):
    return "unknown"


def cores() -> int:
  """CPU cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def disk(folder: Path) -> Finding:
  """Room for runs, which lie below the folder that commands are given in unless --workdir says otherwise."""
  free = shutil.disk_usage(folder).free / 2**30
  text = f"{free:.1f} GiB free in {folder}"
  if not os.access(folder, os.W_OK):
    return Finding("disk", f"{folder} cannot be written", "give a --workdir elsewhere")
  return Finding("disk", text, "make room, or give a --workdir elsewhere" if free < 1 else "")


# Speed


def speeds(sizes: Sizes) -> list[Finding]:
  """Measured FLOP/s of a product of matrices and of a convolution."""
  from jaxdiff.models import layers

  dtype = layers.dtype(sizes.dtype)
  a = jnp.ones((sizes.matmul, sizes.matmul), dtype)
  images = jnp.ones((sizes.batch, sizes.side, sizes.side, sizes.channels), dtype)
  kernel = jnp.ones((3, 3, sizes.channels, sizes.channels), dtype)
  measured = {
    "matmul": rate(jnp.matmul, (a, a), 2 * sizes.matmul**3),
    "convolution": rate(layers.convolve, (images, kernel), 2 * 9 * images.size * sizes.channels),
  }
  shapes = {
    "matmul": f"{sizes.matmul} x {sizes.matmul}",
    "convolution": f"3x3, {' x '.join(map(str, images.shape))}",
  }
  return [
    Finding(name, f"{flops / 1e9:,.0f} GFLOP/s ({shapes[name]}, {sizes.dtype})", _speed_advice(flops))
    for name, flops in measured.items()
  ]


def _speed_advice(flops: float) -> str:
  slow = {"cpu": 10e9}.get(jax.default_backend(), 1e12)
  return "slow for this kind of device: do other programs use it?" if flops < slow else ""


def rate(function: Callable[..., Any], arguments: Sequence[Any], flops: float, seconds: float = 0.3) -> float:
  """FLOP/s of a compiled function: the best of several calls, for so many seconds."""
  compiled = jax.jit(function).lower(*arguments).compile()
  compiled(*arguments).block_until_ready()
  best, end = float("inf"), time.perf_counter() + seconds
  while True:
    begin = time.perf_counter()
    compiled(*arguments).block_until_ready()
    now = time.perf_counter()
    best = min(best, now - begin)
    if now >= end:
      return flops / best


def cudnn_attention(kind: str) -> Finding:
  """Whether flash attention of cuDNN and its gradient compile and run here, for heads as DiT-S, B and L have them and as DiT-XL."""
  name, setting = "cuDNN attention", "config.model.attention"
  if kind != "gpu":
    return Finding(name, f"not here: it needs an NVIDIA GPU ({setting}=auto uses XLA's)")
  from jaxdiff.models import layers

  slope = jax.jit(jax.grad(lambda q: layers.attend(q, q, q, "cudnn").astype(jnp.float32).sum()))
  for channels in HEADS:
    try:
      slope(jnp.ones((1, 128, 2, channels), jnp.bfloat16)).block_until_ready()
    except Exception as error:  # noqa: BLE001 - JAX and XLA refuse in many ways, and each is the answer
      reason = f"heads of {channels} channels: {first_line(error)}"
      return Finding(name, f"does not work: {reason}", f"set {setting} to xla")
  return Finding(name, f"works: {setting}=auto uses it where config.model.dtype is bfloat16")


# Data


def data_sources(environment: Mapping[str, str]) -> list[Finding]:
  """The examples that can be trained on without a download."""
  from jaxdiff.data import records

  return [digits(), fashion_mnist(Path(FASHION_MNIST)), tfds_sets(records.roots(""), environment)]


def digits() -> Finding:
  from jaxdiff.data import sources

  try:
    count = len(sources.load("digits"))
  except UserError as error:
    return Finding("digits", str(error), "pip install scikit-learn")
  return Finding("digits", f"{count:,} images (config.data.source=digits)")


def fashion_mnist(folder: Path) -> Finding:
  from jaxdiff.data import idx

  try:
    idx.find(folder, "train", "images", 3)
  except UserError:
    advice = "Debian, Ubuntu: apt-get install dataset-fashion-mnist; else give idx:DIR of its four files"
    return Finding("Fashion-MNIST", f"not in {folder}", advice)
  return Finding("Fashion-MNIST", f"config.data.source=idx:{folder}")


def tfds_sets(root: Path, environment: Mapping[str, str]) -> Finding:
  """Sets that lie ready as [name/][config/]version below a folder."""
  from jaxdiff.data import records

  found = sorted(
    {
      path.parent.parent.relative_to(root).as_posix()
      for depth in ("*/*", "*/*/*")
      for path in root.glob(f"{depth}/{records.INFO}")
      if records.VERSION.fullmatch(path.parent.name)
    }
  )
  if found:
    return Finding("TFDS sets", f"{', '.join(found)} in {root} (config.data.source=tfds:NAME)")
  where = "" if environment.get("TFDS_DATA_DIR") else ", or set TFDS_DATA_DIR to where they lie"
  return Finding("TFDS sets", f"none in {root}", f"make one of your files with --mode prepare{where}")
