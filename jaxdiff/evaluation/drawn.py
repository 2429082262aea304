"""Images of a run to score: drawn in batches that are kept on disk, so that a killed evaluation draws each batch once.

WORKDIR/evaluation/<what they are a function of>/<number of the first>.npz holds a batch of config.sample.batch_size images
(arr_0, their labels in arr_1). Where several processes share the workdir each draws its own batches, on its own devices.
"""

from __future__ import annotations

import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdiff import (
  checkpoints,
  configuration,
  distributed,
  optim,
  parallel,
  pictures,
  reporting,
  sample,
  steering,
  stores,
)
from jaxdiff.data.base import digest
from jaxdiff.draw import Draw
from jaxdiff.evaluation import images
from jaxdiff.evaluation.gather import Batches
from jaxdiff.evaluation.images import Images
from jaxdiff.signals import StopRequest

HEAD = 64  # numbers of each parameter that tell one checkpoint from another
# of config.sample: what names files, folders and modules
FILES = ("image", "mask", "classifier", "hint", "branches")
IRRELEVANT = ("num", "labels")  # of config.sample: labels are written beside their images


def labels(config: Any, num: int) -> np.ndarray:
  """The labels of the images to draw, as config.eval.labels says: i32[num], the first ones the same for any num.

  Where a label has no part in what is drawn there are none.  "data" takes those of the reference's split in a fixed random
  order, again and again if there are too few.
  """
  if config.eval.labels == "balanced" or not steering.asks_for_labels(config):
    return sample.labels(config, num)
  source = images.open_split(config.data, config.eval.reference_split or config.data.split)
  rows = np.random.Generator(np.random.PCG64(0)).permutation(len(source))[:num]
  return np.resize(source.labels_of(rows), num)


def folder(workdir: Path, config: Any, state: Any) -> Path:
  """Where the images of a state drawn with these settings lie, in all processes what the first one says."""
  s = config.sample.to_dict()
  of_model = {key: config[key].to_dict() for key in ("model", "diffusion")}
  how = {key: value for key, value in s.items() if key not in IRRELEVANT}
  params = optim.ema_params(state) if config.sample.ema else state.params
  heads = jax.jit(lambda leaves: [leaf.reshape(-1)[:HEAD] for leaf in leaves])(jax.tree.leaves(params))
  named = [word.strip() for key in FILES for word in s[key].split(",") if word.strip()]
  hinted = config.data.to_dict() if config.task == "controlnet" else {}
  what = (of_model, how, images.shape(config.data), hinted, [*map(_version, named)], int(state.step))
  name = digest(*map(_sorted, what), *map(np.asarray, heads))
  return workdir / "evaluation" / distributed.by_first(lambda: name)


def draw(
  place: Path,
  drawing: Draw,
  state: Any,
  label: np.ndarray,
  batch_size: int,
  stop: StopRequest,
  desc: str = "draw",
) -> Images:
  """The images of these labels, drawn where they do not lie in the folder `place` yet.

  Returns once all processes have drawn theirs.  Raises Stopped between two batches where `stop` is reached.
  """
  width = parallel.multiple(batch_size, jax.local_device_count())
  # A round is a batch of each process, in the last one perhaps of none. All ask together whether to stop: a process that is
  # ahead, as its batches lie there already, would put the stop off until the others have caught up.
  rounds = range(0, len(label), batch_size * jax.process_count())
  starts = [first + batch_size * jax.process_index() for first in rounds]
  mine = sum(len(label[start : start + batch_size]) for start in starts)
  with reporting.progress(mine, desc=desc) as bar:
    for start in starts:
      distributed.wait_for_all(f"a round of {place.name}")
      stop.check()
      here = label[start : start + batch_size]
      if len(here) and not _holds(_file(place, start), here):
        index = np.arange(start, start + width)
        drawn = drawing(state, index, np.resize(here, width))
        pictures.save_npz(_file(place, start), drawn[: len(here)], here)
      bar.update(len(here))
  distributed.wait_for_all(f"drawn {place.name}")
  return of_folder(place, label, batch_size)


def of_folder(place: Path, label: np.ndarray, batch_size: int) -> Images:
  """Images that `draw` has left."""

  def batches() -> Batches:
    for start in range(0, len(label), batch_size):
      here = label[start : start + batch_size]
      with np.load(_file(place, start), allow_pickle=False) as file:
        yield file["arr_0"][: len(here)], here

  with np.load(_file(place, 0), allow_pickle=False) as file:
    height, width, channels = file["arr_0"].shape[1:]
  return Images("drawn", len(label), (height, width, channels), batches)


def in_memory(drawing: Draw, state: Any, label: np.ndarray, batch_size: int) -> Callable[[], Batches]:
  """The same batches drawn each time they are gone through, and not kept."""

  def batches() -> Batches:
    start = 0
    for drawn in sample.draw_all(drawing, state, label, batch_size):
      yield drawn, label[start : start + len(drawn)]
      start += len(drawn)

  return batches


def _file(place: Path, start: int) -> Path:
  return place / f"{start:08d}.npz"


def _holds(file: Path, label: np.ndarray) -> bool:
  """Whether a file has the images of these labels, perhaps and more."""
  try:
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
      return np.array_equal(arrays["arr_1"][: len(label)], label) and len(arrays["arr_0"]) >= len(label)
  except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
    return False  # not there, or damaged: it is drawn


def _version(name: str) -> Any:
  """What changes when a file does, one in a folder, the newest checkpoint of a workdir, or the module of `module:function`."""
  path = Path(name).expanduser()
  module = None if path.exists() else sys.modules.get(name.partition(":")[0])
  if module is not None:
    path = Path(module.__file__ or "")
  if (path / "config.json").is_file():
    store = stores.of(configuration.of_run(path), path)
    if checkpoints.are_in(store):
      return checkpoints.version(store)
  found = [path, *path.iterdir()] if path.is_dir() else [path]
  return max((each.stat().st_mtime_ns for each in found if each.exists()), default=0)


def _sorted(value: Any) -> Any:
  return sorted(value.items()) if isinstance(value, dict) else value
