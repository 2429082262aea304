"""What each round of a distillation leaves: its student as a run of its own, its pictures, and what it costs to draw one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from etils import epath

from jaxdiff import (
  checkpoints,
  data,
  distributed,
  draw,
  optim,
  parallel,
  pictures,
  runs,
  sample,
  stores,
  tasks,
)
from jaxdiff.evaluation import quick
from jaxdiff.files import write_atomically
from jaxdiff.reporting import Shown, read_metrics
from jaxdiff.types import Task, TrainState

logger = logging.getLogger("jaxdiff")

COLUMNS = {  # of rounds.md: the name in metrics.jsonl, and the heading
  "student/num_steps": "steps",
  "loss": "loss",
  "eval/frechet": "Frechet distance",
  "eval/accuracy": "accuracy",
  "student/seconds_per_image": "seconds an image",
}
ROW = 16  # images of each round in rounds.png
OF_TEACHING = ("teacher", "distill")  # sections that a student's config does not have


def make_preview(
  config: Any, task: Task, strategy: parallel.Strategy, source: data.Source, workdir: Path
) -> Callable[..., Shown]:
  """The function preview(state, step, is_last) -> Shown that a training loop calls at the end of each round.

  It leaves <workdir>/steps_0064/, the averaged student as a run of the task `denoise` that --mode sample and evaluate take,
  with samples.png; after the last round rounds.png, the same noise through all students, and rounds.md, their figures.  With
  config.eval.every other than 0 it scores each student as config.eval says, all against statistics that are made once.
  Raises UserError for settings of config.sample and config.eval that cannot work.
  """
  first = config_of(config, config.distill.start_steps)
  draw.check(first)
  label = sample.preview_labels(first)
  measure = quick.make_measure(first, workdir) if quick.is_wanted(first) else None

  def preview(state: Any, step: int, is_last: bool = False) -> Shown:
    num_steps = int(state.num_steps)
    own, folder = config_of(config, num_steps), folder_of(workdir, num_steps)
    own_task, student = student_of(own, state)
    export(folder, own, student, step, source.label_names)
    drawing = draw.make_draw(own, own_task, strategy.place_rows)
    images, seconds = timed(drawing, student, label)
    if distributed.is_first():
      pictures.save_npz(folder / "samples.npz", images, label)
    shown = {
      f"steps_{num_steps:04d}": sample.save_grid(folder / "samples.png", images, label, source.label_names)
    }
    numbers = {"student/num_steps": float(num_steps), "student/seconds_per_image": seconds}
    if measure:
      numbers |= measure(drawing, student)
    if is_last and distributed.is_first():
      shown["rounds"] = through_rounds(workdir)
      write_table(workdir, step, numbers)
    told = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items() if name != "student/num_steps")
    logger.info("Student of %d steps in %s: %s", num_steps, folder, told)
    return Shown(shown, numbers)

  return preview


def folder_of(workdir: Path, num_steps: int) -> Path:
  return workdir / f"steps_{num_steps:04d}"


def config_of(config: Any, num_steps: int) -> Any:
  """The config of a student: of the task `denoise`, drawn from in exactly its steps."""
  own = config.copy_and_resolve_references()
  with own.unlocked():
    for section in OF_TEACHING:
      del own[section]
    own.task, own.name = "denoise", f"{config.name}_{num_steps}"
    if elsewhere := config.train.checkpoint_dir:
      own.train.checkpoint_dir = f"{elsewhere.rstrip('/')}/{folder_of(Path(), num_steps)}"
    learned = {"steps": num_steps, "only_steps": num_steps, "sampler": "ddim", "grid": "uniform"}
    own.sample.update(learned | ({"guidance": 1.0} if config.distill.guidance != 1 else {}))
  return own


def student_of(own: Any, state: Any) -> tuple[Task, TrainState]:
  """(task, state) of a student as a run of its own: the averaged parameters, of which the average begins anew."""
  tx = tasks.optimizer(own)
  params = optim.ema_params(state)
  opt_state = optax.tree.set(jax.jit(tx.init)(params), ema_params=params)
  return tasks.make(own, tx), TrainState(state.step, params, opt_state, state.rng)


def export(folder: Path, own: Any, student: TrainState, step: int, names: tuple[str, ...]) -> None:
  """Writes a run; config.json last, so that what has one is whole.  What lies there of a round that was killed is replaced."""
  store = stores.of(own, folder)
  distributed.by_first(lambda: _empty(folder, store))
  record = {"config": own.to_dict(), "label_names": list(names), "data": {}}
  manager = checkpoints.open_manager(store)
  with checkpoints.closing(manager):
    checkpoints.save(manager, step, student, record)
    checkpoints.finish(manager)
  distributed.by_first(lambda: runs.write_config(own, folder))


def _empty(folder: Path, store: stores.Folder) -> None:
  """Makes the folder of a student, and that of its checkpoint, without what lay there."""
  for each in (folder, store):
    with stores.reached(each):
      epath.Path(each).rmtree(missing_ok=True)
  stores.prepare(folder, store)


def timed(drawing: draw.Draw, state: Any, label: np.ndarray) -> tuple[np.ndarray, float]:
  """(images, seconds an image): drawn twice, as the first time compiles."""
  index = np.arange(len(label))
  images = drawing(state, index, label)
  begin = time.perf_counter()
  drawing(state, index, label)
  return images, (time.perf_counter() - begin) / len(label)


def through_rounds(workdir: Path) -> np.ndarray:
  """Saves and returns rounds.png, u8[H,W,3]: a row for each student, from many steps to few, a column for each noise."""
  found = sorted(workdir.glob("steps_*/samples.npz"), reverse=True)
  rows = [np.load(path, allow_pickle=False)["arr_0"][:ROW] for path in found]
  names = [path.parent.name.removeprefix("steps_").lstrip("0") for path in found for _ in rows[0]]
  return pictures.grid(np.concatenate(rows), names, columns=len(rows[0]), path=workdir / "rounds.png")


def write_table(workdir: Path, step: int, numbers: Mapping[str, float]) -> None:
  """Writes rounds.md: a row for each student, of metrics.jsonl and, for the last one, at this step, of numbers."""
  rows: dict[float, dict[str, float]] = {}
  for logged in [*read_metrics(workdir / "metrics.jsonl"), {"step": step, **numbers}]:
    rows.setdefault(logged["step"], {}).update(logged)
  every = [row for row in rows.values() if "student/num_steps" in row]
  columns = {name: heading for name, heading in COLUMNS.items() if any(name in row for row in every)}
  lines = [columns.values(), ["---:"] * len(columns)]
  lines += [[f"{row[name]:.4g}" if name in row else "" for name in columns] for row in every]
  text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
  write_atomically(workdir / "rounds.md", lambda file: file.write(text.encode()))
