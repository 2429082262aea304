"""Checkpoints: the whole state of a run, saved by Orbax in the background and restored exactly.

A checkpoint `<store>/checkpoints/<step>` holds `state` (the train state), `run` (a JSON record: data position, data
fingerprint, resolved config, random number generator) and `SHA256SUMS`.  The store is the workdir, or another folder or a
bucket (stores.py).  Orbax writes to a temporary folder and renames it, or marks it in a bucket, so what counts as a step's is
complete, unless a disk or a hand damaged it later: the sums tell.

Several processes save and restore together, each its part of the arrays; the first compares sums, chooses the step for all
and moves aside what is damaged.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxdiff import configuration, distributed, stores, sums
from jaxdiff.errors import UserError, first_line
from jaxdiff.files import writing
from jaxdiff.stores import Folder
from jaxdiff.types import PyTree

logger = logging.getLogger("jaxdiff")

FOLDER = "checkpoints"
ANOTHER = f"another --workdir (and {stores.KEY}, if it is set)"
_LEFT: list[Manager] = []  # by Ctrl-C, with a save under way perhaps, which goes on while the process lives
NOTES = "_CHECKPOINT_METADATA"  # Orbax's own, of when it saved; written again after the sums, and nothing is restored from it


class Manager(ocp.CheckpointManager):
  """Orbax's, which does not ask JAX's runtime whether SIGTERM has come.

  The runtime counts questions and stops all processes at the same one: those of signals.JointStopRequest.  Orbax's, with the
  numbers of steps, would set the count back.
  """

  def reached_preemption(self, step: int) -> bool:
    del step
    return False


def are_in(store: Folder) -> bool:
  """Whether checkpoints lie in a store.  Raises UserError where it cannot be read."""
  with stores.reached(store):
    return bool(stores.listed(store / FOLDER))


def open_manager(store: Folder, keep: int = 1, keep_every: int = 0) -> Manager:
  """Orbax's manager of a run's checkpoints: the last `keep` stay, and every one whose step divides by keep_every.

  First waits for a save that Ctrl-C has left under way in this process, which the new manager would clear away.
  Raises UserError where their folder cannot be made or cleared of what a killed run left.
  """
  while _LEFT:
    _close_or_tell(_LEFT[-1])
    _LEFT.pop()
  options = ocp.CheckpointManagerOptions(
    max_to_keep=keep,
    keep_period=keep_every or None,
    enable_async_checkpointing=True,
    cleanup_tmp_directories=True,
    async_options=ocp.AsyncOptions(post_finalization_callback=functools.partial(_seal, store / FOLDER)),
  )
  with writing(store / FOLDER):
    return _manager(store, options)


def open_for_reading(store: Folder) -> Manager:
  """A manager that changes nothing: the run may be another process's, in the middle of a save, or on a read-only disk."""
  return _manager(store, ocp.CheckpointManagerOptions(read_only=True, create=False))


def _manager(store: Folder, options: ocp.CheckpointManagerOptions) -> Manager:
  handlers = {"state": ocp.StandardCheckpointHandler(), "run": ocp.JsonCheckpointHandler()}
  with _reached(store):
    return Manager(stores.at(str(store)) / FOLDER, options=options, item_handlers=handlers)


@contextlib.contextmanager
def _reached(store: Folder) -> Iterator[None]:
  """As stores.reached, of what is done by several processes together: that another was lost is told as that."""
  try:
    yield
  except Exception as error:
    if distributed.lost(error):
      raise
    with stores.reached(store):
      raise


def _seal(folder: Folder) -> None:
  """Gives the checkpoint that is being saved its sums.

  Orbax calls this in the background, in the process that renames or marks: all is written, and it does not count as whole yet,
  so that no checkpoint is ever without sums.  There is one such folder: a save first clears away what a killed run left.
  """
  written = [path for path in folder.iterdir() if not stores.is_whole(path)]
  if not written:
    raise RuntimeError(f"nothing that was being saved is in {folder}")
  for path in written:
    sums.write(path, leave_out=[NOTES])


def save(manager: Manager, step: int, state: PyTree, run: dict[str, Any]) -> None:
  """Starts saving a state as `step`; returns once the state is copied, the writing goes on in the background.

  Does nothing when that step is already saved.  Raises UserError when this save, or the one before it, failed.
  """
  if step in manager.all_steps():
    return
  record = run | {"sums": sums.NAME, "generators": _generators(state)}
  args = ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(record))
  with _writing(manager):
    saved = manager.save(step, args=args)
  if not saved:
    raise UserError(f"Orbax refused to save step {step}; the steps saved are {sorted(manager.all_steps())}.")


def finish(manager: Manager) -> None:
  """Waits until everything is on disk.  Raises UserError when a save failed."""
  with _writing(manager):
    manager.wait_until_finished()


def version(store: Folder) -> Any:
  """What another newest checkpoint has another of: its step and its sums."""
  with stores.reached(store):
    saved = _saved(store / FOLDER)
    newest = max(saved, default=None)
    return newest and (newest, sums.text(saved[newest]))


def newest_until(store: Folder, step: int) -> int:
  """The newest undamaged step saved that is not after this one, or else the oldest; 0 where there is none."""
  with stores.reached(store):
    saved = _saved(store / FOLDER)
    before = sorted((number for number in saved if number <= step), reverse=True)
    after = sorted(saved.keys() - before)
    return next((number for number in (*before, *after) if _is_undamaged(saved[number])), 0)


def _is_undamaged(folder: Folder) -> bool:
  """Whether nothing of a checkpoint is missing or has changed; Orbax deletes one file after the other, and may be killed."""
  try:
    sums.check(folder)
  except sums.Damaged:
    return False
  return True


def drop_after(store: Folder, step: int) -> None:
  """Deletes the checkpoints of later steps than this one, the newest first: killed in between, no half of one is left."""
  with stores.reached(store):
    for number, path in sorted(_saved(store / FOLDER).items(), reverse=True):
      if number > step:
        stores.delete(path)


def _saved(folder: Folder) -> dict[int, Folder]:
  """The folder of each step that has been saved, looked up in the store."""
  paths = stores.listed(folder)
  return {int(path.name): path for path in paths if path.name.isdigit() and stores.is_whole(path)}


def restore(
  manager: Manager, abstract: PyTree, set_aside: bool = True
) -> tuple[PyTree, dict[str, Any]] | None:
  """(state, run record) of the newest readable checkpoint, or None where there is none.

  `abstract` gives the tree, shapes, dtypes and shardings to restore to (jax.ShapeDtypeStruct leaves, or arrays).
  A damaged checkpoint, one whose files are not what their sums say among them, is told of and, with set_aside, moved to
  `damaged/<step>`; the one before it is taken.  A checkpoint of another tree, shape, dtype or random number generator is a
  UserError: the config does not fit it, and an older one would not either.
  """
  before = None
  while True:
    step = _by_first(manager, functools.partial(_newest_fitting, abstract, set_aside, before))
    if step is None:
      return None
    arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), run=ocp.args.JsonRestore())
    try:
      restored = manager.restore(step, args=arguments)
      return restored["state"], restored["run"]
    except Exception as error:
      if distributed.lost(error):
        raise
      if stores.is_bucket(_directory(manager)) and not re.search(
        "RESOURCE_EXHAUSTED|MemoryError", repr(error)
      ):
        raise stores.out_of_reach(_directory(manager), error) from error
      # Its files are as they were written, so something else is wrong, as memory.
      if sums.exist(_folder(manager, step)):
        logger.error("The checkpoint of step %d is undamaged, but could not be restored.", step)
        raise
      _by_first(manager, functools.partial(_pass_over, step=step, error=error, set_aside=set_aside))
      before = step


def _by_first(manager: Manager, look: Callable[[Manager], Any]) -> Any:
  """What look(manager) returns in process 0, as distributed.by_first; then all know of what it has moved aside."""

  def alone() -> Any:
    with stores.reached(_directory(manager)):
      return _alone(manager, look)

  found = distributed.by_first(alone)
  with _reached(_directory(manager)):
    manager.reload()
  return found


def _alone(manager: Manager, look: Callable[[Manager], Any]) -> Any:
  """look(manager); in one of several processes with a manager that does not wait for the others'."""
  if not distributed.is_several():
    return look(manager)
  alone = ocp.options.MultiprocessingOptions(
    primary_host=0, active_processes={0}, barrier_sync_key_prefix="alone"
  )
  options = ocp.CheckpointManagerOptions(read_only=True, create=False, multiprocessing_options=alone)
  with contextlib.closing(_manager(_directory(manager).parent, options)) as own:
    return look(own)


def _newest_fitting(abstract: PyTree, set_aside: bool, before: int | None, manager: Manager) -> int | None:
  """The newest step, below `before`, that is undamaged.  Raises UserError where it does not fit `abstract`."""
  for step, run, stored in _readable(manager, set_aside, before=before):
    _check_generators(abstract, run, step)
    _check_structure(abstract, stored, step)
    return step
  return None


def latest_run(manager: Manager) -> dict[str, Any] | None:
  """The run record of the newest checkpoint whose description is readable; damaged ones are set aside."""
  newest = lambda alone: next((run for _, run, _ in _readable(alone, set_aside=True, below="run/")), None)
  return _by_first(manager, newest)


@contextlib.contextmanager
def closing(manager: Manager) -> Iterator[None]:
  """Closes a manager at the end; of several processes not after an error, as the others may not come to wait together.

  After an error a save that fails as well is told, and the error stays what it was.  After Ctrl-C nothing is waited for.
  """
  try:
    yield
  except KeyboardInterrupt:
    _LEFT.append(manager)
    raise
  except BaseException:
    if not distributed.is_several():
      _close_or_tell(manager)
    raise
  manager.close()


def _close_or_tell(manager: Manager) -> None:
  """Closes a manager; that its save has failed is told and not raised."""
  try:
    manager.close()
  except Exception as error:  # noqa: BLE001 - Orbax and TensorStore raise many kinds
    logger.error("%s", _failed(manager, error))


def check_same_run(manager: Manager, run: dict[str, Any], allow_change: bool) -> None:
  """Raises UserError when the newest checkpoint was made with another config or other data, naming what differs.

  What configuration.AFTERWARDS names may differ: it says nothing of what is trained.
  With allow_change a difference is only told.
  """
  saved = latest_run(manager)
  if saved is None:
    return
  before, now = (configuration.completed(each["config"]) for each in (saved, run))
  changed = configuration.differences(before, now, ignore=configuration.AFTERWARDS)
  changed += [f"data {line}" for line in configuration.differences(saved["data"], run["data"])]
  if not changed:
    return
  listed = "; ".join(changed)
  if not allow_change:
    raise UserError(
      f"{_directory(manager).parent} holds a run with another config: {listed}. Use {ANOTHER}, or --allow_config_change to go "
      "on with the new one."
    )
  logger.warning("Going on with a changed config: %s.", listed)


def _generators(state: PyTree) -> dict[str, str]:
  """Path -> name of the random number generator, as JAX_DEFAULT_PRNG_IMPL takes it, of each key in a state, abstract or not."""
  names = {}
  for path, leaf in _paths(state).items():
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      jax.eval_shape(lambda key, path=path: names.update({path: str(jax.random.key_impl(key))}), leaf)
  return names


def _check_generators(abstract: PyTree, run: dict[str, Any], step: int) -> None:
  """Raises UserError where a key would be of another generator than in the checkpoint; keys of two may be of one shape."""
  now, then = _generators(abstract), run.get("generators", {})  # older runs recorded none
  for path in sorted(now.keys() & then.keys()):
    if now[path] != then[path]:
      raise UserError(
        f"the checkpoint of step {step} was made with another random number generator: {path} is of {then[path]} there and "
        f"of {now[path]} here. Set JAX_DEFAULT_PRNG_IMPL={then[path]}, or use {ANOTHER}."
      )


def _check_structure(abstract: PyTree, stored: Any, step: int) -> None:
  """Raises UserError naming the first leaf whose path, shape or dtype differs between a state and a checkpoint."""
  wanted, found = _leaves(abstract), _leaves(getattr(stored, "tree", stored))
  for path in sorted(wanted | found):
    now, then = wanted.get(path, "absent"), found.get(path, "absent")
    if now != then:
      raise UserError(
        f"the checkpoint of step {step} does not fit this config: {path} is {then} there and {now} here. "
        f"Restore with the config it was saved with, or use {ANOTHER}."
      )


def _leaves(tree: PyTree) -> dict[str, str]:
  def describe(leaf: Any) -> str:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.eval_shape(jax.random.key_data, leaf)
    return f"{leaf.dtype}{list(leaf.shape)}"

  return {path: describe(leaf) for path, leaf in _paths(tree).items()}


def _paths(tree: PyTree) -> dict[str, Any]:
  """path -> leaf, as "opt_state.0.count"."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _readable(
  manager: Manager, set_aside: bool, below: str = "", before: int | None = None
) -> Iterator[tuple[int, dict[str, Any], PyTree]]:
  """(step, run record, description of the state's arrays) of each checkpoint that has them, the newest first.

  Its files, or those in its folder `below`, are compared with their sums first.  Only those of steps below `before` are looked
  at, if it is given.
  """
  for step in sorted(manager.all_steps(), reverse=True):
    if before is not None and step >= before:
      continue
    try:
      record = _verified_record(manager, step, below)
      stored = manager.item_metadata(step)["state"]
      if stored is None:
        raise sums.Damaged("the description of its arrays cannot be read")
    except Exception as error:  # noqa: BLE001 - Orbax and TensorStore raise many kinds
      _pass_over(manager, step, _damage(_folder(manager, step), error), set_aside)
      continue
    yield step, record, stored


def _damage(folder: Folder, error: Exception) -> Exception:
  """What is damaged, where reading a checkpoint has raised `error`.  Raises it again where it only could not be reached."""
  if isinstance(error, sums.Damaged) or not stores.is_bucket(folder):
    return error
  try:
    sums.check(folder)
  except sums.Damaged as damaged:
    return damaged
  raise error


def _verified_record(manager: Manager, step: int, below: str) -> dict[str, Any]:
  """The run record of a checkpoint whose files are what their sums say.  Raises Damaged, and what Orbax raises."""
  folder = _folder(manager, step)
  has_sums = sums.exist(folder)
  if has_sums:
    sums.check(folder, below)
  record = manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
  if not has_sums and "sums" in record:
    raise sums.Damaged(f"{record['sums']} is missing")
  if not has_sums and not below:
    logger.info(
      "The checkpoint of step %d has no %s: it was saved by a version that wrote none, so damage to its numbers would go "
      "unnoticed.",
      step,
      sums.NAME,
    )
  return record


def _directory(manager: Manager) -> Folder:
  return stores.at(str(manager.directory))


def _folder(manager: Manager, step: int) -> Folder:
  return _directory(manager) / str(step)


def _pass_over(manager: Manager, step: int, error: Exception, set_aside: bool) -> None:
  """Says that a checkpoint is damaged and, if asked to, moves it out of the way of the next save of its step."""
  reason = first_line(error)[:200]
  older = [other for other in manager.all_steps() if other < step]
  instead = f"The one before it, of step {max(older)}, is taken." if older else "There is none before it."
  logger.warning("The checkpoint of step %d is damaged (%s). %s", step, reason, instead)
  if set_aside:
    source = _folder(manager, step)
    folder = source.parent.parent / "damaged"
    earlier = len(list(folder.glob(f"{step}*")))  # the same step may be damaged more than once
    target = folder / (f"{step}-{earlier}" if earlier else str(step))
    stores.move(source, target)
    manager.reload()
    logger.warning("It is kept in %s.", target)


@contextlib.contextmanager
def _writing(manager: Manager) -> Iterator[None]:
  """What fails in this context is told as a UserError, unless another process was lost, which is no mistake of the user's."""
  try:
    yield
  except Exception as error:
    if distributed.lost(error):
      raise
    raise _failed(manager, error) from error


def _failed(manager: Manager, error: Exception) -> UserError:
  try:
    with stores.reached(_directory(manager)):
      good = max(_saved(_directory(manager)), default=None)
    last = (
      f"The last good checkpoint is step {good}" if good is not None else "No checkpoint was saved before"
    )
  except UserError:
    last = "The checkpoints before it are where they were"
  reason, directory = first_line(error)[:300], _directory(manager)
  kind = type(stores.out_of_reach(directory, error)) if stores.is_bucket(directory) else UserError
  return kind(f"a checkpoint could not be saved: {reason} {last}, in {directory}.")
