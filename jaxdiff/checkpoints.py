"""Checkpoints: the whole state of a run, saved by Orbax in the background and restored exactly.

A checkpoint `<workdir>/checkpoints/<step>` holds `state` (the train state) and `run` (a JSON record: data position,
data fingerprint, resolved config).  Orbax writes to a temporary folder and renames it, so what carries a step's name is
complete, unless a disk or a hand damaged it later.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, TypeAlias

import jax
import orbax.checkpoint as ocp

from jaxdiff import configuration
from jaxdiff.errors import UserError
from jaxdiff.types import PyTree

logger = logging.getLogger("jaxdiff")

Manager: TypeAlias = ocp.CheckpointManager
FOLDER = "checkpoints"


def prepare_workdir(workdir: Path) -> None:
  """Makes the folder of a run.  Raises UserError when it cannot be made or written to."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    probe = workdir / f".write-test-{os.getpid()}"
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise UserError(
      f"cannot write to the workdir {str(workdir)!r}: {error.strerror}. Give another with --workdir DIR."
    ) from None


def open_manager(workdir: Path, keep: int = 1, keep_every: int = 0) -> Manager:
  """Orbax's manager of a run's checkpoints: the last `keep` stay, and every one whose step divides by keep_every."""
  options = ocp.CheckpointManagerOptions(
    max_to_keep=keep,
    keep_period=keep_every or None,
    enable_async_checkpointing=True,
    cleanup_tmp_directories=True,
  )
  handlers = {"state": ocp.StandardCheckpointHandler(), "run": ocp.JsonCheckpointHandler()}
  return ocp.CheckpointManager((workdir / FOLDER).absolute(), options=options, item_handlers=handlers)


def save(manager: Manager, step: int, state: PyTree, run: dict[str, Any]) -> None:
  """Starts saving a state as `step`; returns once the state is copied, the writing goes on in the background.

  Does nothing when that step is already saved.  Raises UserError when this save, or the one before it, failed.
  """
  if step in manager.all_steps():
    return
  args = ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run))
  try:
    saved = manager.save(step, args=args)
  except Exception as error:
    raise _failed(manager, error) from error
  if not saved:
    raise UserError(f"Orbax refused to save step {step}; the steps saved are {sorted(manager.all_steps())}.")


def finish(manager: Manager) -> None:
  """Waits until everything is on disk.  Raises UserError when a save failed."""
  try:
    manager.wait_until_finished()
  except Exception as error:
    raise _failed(manager, error) from error


def latest_run(manager: Manager) -> tuple[int, dict[str, Any]] | None:
  """(step, run record) of the newest checkpoint that can be restored, or None where there is none."""
  for step in sorted(manager.all_steps(), reverse=True):
    try:
      record = manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))
      return step, record["run"]
    except Exception as error:  # noqa: BLE001 - Orbax and TensorStore raise many kinds
      _set_aside(manager, step, error)
  return None


def restore(manager: Manager, abstract: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
  """(state, run record) of the newest readable checkpoint, or None where there is none.

  `abstract` gives the tree, shapes, dtypes and shardings to restore to (jax.ShapeDtypeStruct leaves, or arrays).
  A damaged checkpoint is told of, set aside as `damaged/<step>`, and the one before it is taken.  A checkpoint of
  another tree, shape or dtype is a UserError: the config does not fit it, and an older one would not either.
  """
  while (newest := latest_run(manager)) is not None:
    step, run = newest
    try:
      stored = manager.item_metadata(step)["state"]
      if stored is None:
        raise ValueError("the description of its arrays cannot be read")
    except Exception as error:  # noqa: BLE001 - Orbax and TensorStore raise many kinds
      _set_aside(manager, step, error)
      continue
    _check_structure(abstract, stored, step)
    try:
      restored = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))
      return restored["state"], run
    except Exception as error:  # noqa: BLE001 - Orbax and TensorStore raise many kinds
      _set_aside(manager, step, error)
  return None


def check_same_run(manager: Manager, run: dict[str, Any], allow_change: bool) -> None:
  """Raises UserError when the newest checkpoint was made with another config or other data, naming what differs.

  config.sample may differ: it draws images, it does not train.  With allow_change a difference is only told.
  """
  newest = latest_run(manager)
  if newest is None:
    return
  saved = newest[1]
  changed = configuration.differences(saved["config"], run["config"], ignore=("sample",))
  changed += [f"data {line}" for line in configuration.differences(saved["data"], run["data"])]
  if not changed:
    return
  listed = "; ".join(changed)
  if not allow_change:
    raise UserError(
      f"this workdir holds a run with another config: {listed}. Use another --workdir, or --allow_config_change to go "
      "on with the new one."
    )
  logger.warning("Going on with a changed config: %s.", listed)


def _check_structure(abstract: PyTree, stored: Any, step: int) -> None:
  """Raises UserError naming the first leaf whose path, shape or dtype differs between a state and a checkpoint."""
  wanted, found = _leaves(abstract), _leaves(getattr(stored, "tree", stored))
  for path in sorted(wanted | found):
    now, then = wanted.get(path, "absent"), found.get(path, "absent")
    if now != then:
      raise UserError(
        f"the checkpoint of step {step} does not fit this config: {path} is {then} there and {now} here. "
        "Restore with the config it was saved with, or use another --workdir."
      )


def _leaves(tree: PyTree) -> dict[str, str]:
  def describe(leaf: Any) -> str:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.eval_shape(jax.random.key_data, leaf)
    return f"{leaf.dtype}{list(leaf.shape)}"

  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path, simple=True, separator="."): describe(leaf) for path, leaf in leaves}


def _set_aside(manager: Manager, step: int, error: Exception) -> None:
  """Moves a damaged checkpoint out of the way, so that its step can be saved again, and says so."""
  source = Path(str(manager.directory)) / str(step)
  target = source.parent.parent / "damaged" / str(step)
  target.parent.mkdir(exist_ok=True)
  source.rename(target)
  manager.reload()
  reason = str(error).splitlines()[0][:200]
  logger.warning("The checkpoint of step %d is damaged (%s). It is set aside in %s.", step, reason, target)


def _failed(manager: Manager, error: Exception) -> UserError:
  good = sorted(int(p.name) for p in Path(str(manager.directory)).iterdir() if p.name.isdigit())
  last = f"The last good checkpoint is step {good[-1]}" if good else "No checkpoint was saved before"
  reason = str(error).splitlines()[0][:300]
  return UserError(f"a checkpoint could not be saved: {reason} {last}, in {manager.directory}.")
