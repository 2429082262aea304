"""The command line from a notebook: the same commands, and their pictures where they can be seen.

With JAXDIFF_FAST=1 in the environment runs are tiny (`fast`, `few`) and lie in folders that go with the process (`folder`): a
notebook then shows that it works, not what it is for.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff import configuration, data, main, parallel, pictures, plots, reporting, tasks
from jaxdiff.errors import UserError

FAST = os.environ.get("JAXDIFF_FAST", "") not in ("", "0")
RUNS = Path(os.environ.get("JAXDIFF_RUNS") or "checkpoints/notebooks")
# Overrides that make a run of a DiT take seconds.
TINY = (
  "model.width=16",
  "model.depth=1",
  "model.heads=2",
  "train.steps=6",
  "train.batch_size=8",
  "train.log_every=2",
  "train.sample_every=3",
  "sample.num=10",
  "sample.steps=3",
)


def run(*arguments: str | os.PathLike[str]) -> None:
  """`python -m jaxdiff.main` with these arguments.  Raises UserError where it would have ended with an error."""
  status = main.main([os.fspath(argument) for argument in arguments])
  if status:
    raise UserError(f"the command ended with status {status}; its last line says why.")


def fast(*overrides: str) -> list[str]:
  """Overrides, as `train.steps=6`, that hold in fast mode only: the arguments for `run`."""
  return [f"--config.{line}" for line in overrides] if FAST else []


def few(values: Sequence[Any]) -> Sequence[Any]:
  """The values; in fast mode the first and the last."""
  return [values[0], values[-1]] if FAST else values


def folder(name: str) -> Path:
  """Where a notebook's runs lie: $JAXDIFF_RUNS/<name>, or checkpoints/notebooks/<name>; in fast mode a new, passing folder."""
  if not FAST:
    return RUNS / name
  made = Path(tempfile.mkdtemp(prefix=f"jaxdiff-{name}-"))
  atexit.register(shutil.rmtree, made, ignore_errors=True)
  return made


def show(picture: np.ndarray | str | os.PathLike[str]) -> Any:
  """A picture u8[H,W,3], or a file of one, as what a notebook shows."""
  from PIL import Image

  if isinstance(picture, np.ndarray):
    return Image.fromarray(picture)
  with Image.open(picture) as image:
    return image.convert("RGB")


def slider(named: Mapping[str, np.ndarray]) -> Any:
  """Pictures to slide through; one below the other where ipywidgets is not installed."""
  if importlib.util.find_spec("ipywidgets") is None:
    return show(pictures.below(*named.values()))
  import ipywidgets

  choice = ipywidgets.SelectionSlider(options=list(named), description=" ", continuous_update=False)
  return ipywidgets.interactive(lambda name: show(named[name]), name=choice)


def progress(workdir: Path) -> dict[str, np.ndarray]:
  """The pictures that a run has drawn while it trained, by step."""
  return {
    f"step {int(path.stem)}": np.asarray(show(path)) for path in sorted((workdir / "samples").glob("*.png"))
  }


def sheets(workdir: Path, key: str, values: Sequence[Any], *arguments: str) -> dict[str, np.ndarray]:
  """What `--mode sample` draws from a run at each value of config.sample.<key>: the same noise and labels each time."""
  drawn = {}
  for value in values:
    run("--mode", "sample", "--workdir", workdir, f"--config.sample.{key}={value}", *arguments)
    drawn[f"{key} {value}"] = np.asarray(show(workdir / "samples.png"))
  return drawn


def measured(workdirs: Mapping[str, Path], *names: str) -> Any:
  """What runs have logged under these names (of metrics.jsonl) over the steps: a panel for each name, a line for each run.

  A line has a point where the name was logged.
  """
  rows = {name: reporting.read_metrics(workdir / "metrics.jsonl") for name, workdir in workdirs.items()}
  steps = sorted(
    {row["step"] for found in rows.values() for row in found if any(name in row for name in names)}
  )
  panels = {
    name: {run: [values.get(step, np.nan) for step in steps] for run, values in _by_step(rows, name).items()}
    for name in names
  }
  return show(plots.curves(steps, panels, x_label="step"))


def _by_step(rows: Mapping[str, list[dict[str, float]]], name: str) -> dict[str, dict[float, float]]:
  return {run: {row["step"]: row[name] for row in found if name in row} for run, found in rows.items()}


def write_images(spec: str, where: Path, num: int) -> Path:
  """The first images of a data source as PNG files, one subfolder a class: what `folder:` reads.  Returns the folder."""
  source = data.load(spec)
  for number, example in enumerate(source.take(range(min(num, len(source))))):
    pictures.save_png(where / source.label_names[example["label"]] / f"{number:05d}.png", example["image"])
  return where


def simulate_devices(count: int) -> None:
  """Makes this machine's CPU look like so many devices, the only ones that JAX then sees.  Has to run before the first JAX array."""
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
  )


def placed(config_file: str, *overrides: str) -> tuple[Any, Any]:
  """(parameters, images of a batch f32[B,H W C]) of a run as its strategy places them, before the first step."""
  config = configuration.load(config_file)
  configuration.override(config, overrides)
  size = config.train.batch_size
  task = tasks.make(config, tasks.optimizer(config))
  strategy = parallel.make(config.parallel, size)
  state = strategy.init(functools.partial(tasks.initial_state, config, task))
  images = np.zeros((size, config.data.image_size**2 * config.data.channels), np.float32)
  return state.params, strategy.place_batch(images)
