import contextlib
import json
import logging
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from jaxdiff import checkpoints, optim, stores, sums, tasks
from jaxdiff.errors import UserError
from tests import disk, small

RUN = {"config": {"seed": 0, "sample": {"num": 1}}, "data": {"source": "toy"}, "examples": 8}


def state_of(width=16, seed=0):
  config = small.config("dit", f"model.width={width}", f"seed={seed}")
  return tasks.initial_state(config, tasks.make(config, optim.make_optimizer(config.optim, 6)))


@pytest.fixture(scope="module")
def state():
  return state_of()


@pytest.fixture
def manager(tmp_path):
  manager = checkpoints.open_manager(tmp_path, keep=3)
  yield manager
  manager.close()


def equal(a, b):
  same = jax.tree.map(lambda x, y: bool((np.asarray(x) == np.asarray(y)).all()) and x.dtype == y.dtype, a, b)
  return jax.tree.all(same)


def raw(state):
  return state.replace(rng=jax.random.key_data(state.rng))


def test_a_restored_state_is_the_saved_one_bit_for_bit(manager, state, tmp_path):
  checkpoints.save(manager, 4, state, RUN)
  checkpoints.finish(manager)
  fresh = checkpoints.open_for_reading(tmp_path)
  restored, run = checkpoints.restore(fresh, jax.eval_shape(lambda: state))
  assert equal(raw(restored), raw(state))
  assert restored.rng.dtype == state.rng.dtype
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  assert run.items() >= RUN.items()


def test_a_save_does_not_ask_for_sigterm(manager, state, monkeypatch):
  """JAX's runtime counts the questions, and stops several processes at the same one: only the loop may ask."""
  asked = []
  monkeypatch.setattr(
    multihost_utils, "reached_preemption_sync_point", lambda step: asked.append(step) or False
  )
  checkpoints.save(manager, 4, state, RUN)
  checkpoints.finish(manager)
  assert not asked


def test_a_save_that_fails_as_well_does_not_hide_the_error(tmp_path, monkeypatch, caplog):
  manager = checkpoints.open_manager(tmp_path)

  def close():
    raise OSError("No space left on device")

  monkeypatch.setattr(manager, "close", close)
  monkeypatch.setattr(logging.getLogger("jaxdiff"), "propagate", True)
  with pytest.raises(UserError, match="as the picture's"), checkpoints.closing(manager):
    raise UserError("as the picture's")
  assert "a checkpoint could not be saved: No space left on device" in caplog.text


def test_ctrl_c_does_not_wait_for_a_save_and_who_goes_on_in_this_process_does(tmp_path, state, monkeypatch):
  may_end, write = threading.Event(), sums.write
  monkeypatch.setattr(sums, "write", lambda *given, **named: may_end.wait(60) and write(*given, **named))
  manager = checkpoints.open_manager(tmp_path)
  with pytest.raises(KeyboardInterrupt), checkpoints.closing(manager):
    checkpoints.save(manager, 4, state, RUN)
    raise KeyboardInterrupt
  assert not (tmp_path / "checkpoints" / "4").exists()
  threading.Timer(1, may_end.set).start()
  with contextlib.closing(checkpoints.open_manager(tmp_path)) as after:
    assert list(after.all_steps()) == [4]


def test_nothing_saved_is_none(manager, state):
  assert checkpoints.restore(manager, jax.eval_shape(lambda: state)) is None
  assert checkpoints.latest_run(manager) is None


def test_the_last_ones_and_every_mth_stay(tmp_path, state):
  manager = checkpoints.open_manager(tmp_path, keep=2, keep_every=4)
  for step in range(1, 9):
    checkpoints.save(manager, step, state, RUN)
  checkpoints.finish(manager)
  assert sorted(manager.all_steps()) == [4, 7, 8]


def test_saving_a_step_again_is_no_error(manager, state):
  checkpoints.save(manager, 4, state, RUN)
  checkpoints.save(manager, 4, state, RUN)
  checkpoints.finish(manager)
  assert list(manager.all_steps()) == [4]


def test_saving_an_older_step_is_refused_aloud(manager, state):
  checkpoints.save(manager, 4, state, RUN)
  checkpoints.finish(manager)
  with pytest.raises(UserError, match=r"could not be saved|refused to save step 3"):
    checkpoints.save(manager, 3, state, RUN)


def damage_everything(folder):
  for root, _, files in os.walk(folder):
    for name in files:
      path = os.path.join(root, name)
      os.truncate(path, os.path.getsize(path) // 2)


def damage_arrays(folder):
  """Only the array data: all that describes it stays readable."""
  files = [os.path.join(root, f) for root, _, names in os.walk(folder / "state") for f in names]
  largest = max(files, key=os.path.getsize)
  os.truncate(largest, os.path.getsize(largest) // 2)


def remove_run_record(folder):
  for path in (folder / "run").iterdir():
    path.unlink()


@pytest.mark.parametrize("damage", [damage_everything, damage_arrays, remove_run_record])
def test_a_damaged_checkpoint_is_told_of_set_aside_and_the_one_before_is_taken(
  damage, tmp_path, state, caplog, monkeypatch
):
  monkeypatch.setattr(logging.getLogger("jaxdiff"), "propagate", True)
  manager = checkpoints.open_manager(tmp_path, keep=3)
  for step in (2, 4):
    checkpoints.save(manager, step, state.replace(step=jnp.asarray(step)), RUN)
  checkpoints.finish(manager)
  damage(tmp_path / "checkpoints" / "4")
  fresh = checkpoints.open_manager(tmp_path, keep=3)
  restored, _ = checkpoints.restore(fresh, jax.eval_shape(lambda: state))
  assert int(restored.step) == 2
  assert "The checkpoint of step 4 is damaged" in caplog.text
  assert (tmp_path / "damaged" / "4").is_dir()
  checkpoints.save(fresh, 4, state, RUN)
  checkpoints.finish(fresh)
  assert sorted(fresh.all_steps()) == [2, 4]
  damage(tmp_path / "checkpoints" / "4")  # again, and nothing of the first is lost
  assert checkpoints.restore(checkpoints.open_manager(tmp_path), jax.eval_shape(lambda: state)) is not None
  assert sorted(p.name for p in (tmp_path / "damaged").iterdir()) == ["4", "4-1"]


def test_another_tree_or_shape_is_a_config_error_and_never_a_fallback(manager, state, tmp_path):
  for step in (2, 4):
    checkpoints.save(manager, step, state, RUN)
  checkpoints.finish(manager)
  other = jax.eval_shape(lambda: state_of(width=32))
  with pytest.raises(
    UserError, match=r"step 4 does not fit this config: .* is float32\[.*\] there and float32\[.*\] here"
  ):
    checkpoints.restore(manager, other)
  assert sorted(manager.all_steps()) == [2, 4]


def test_a_changed_config_is_refused_by_key_and_allowed_on_demand(manager, state):
  checkpoints.save(manager, 4, state, RUN)
  checkpoints.finish(manager)
  changed = json.loads(json.dumps(RUN)) | {"config": {"seed": 3, "sample": {"num": 9}}}
  with pytest.raises(UserError, match=r"another config: seed: 0 -> 3\. .*--allow_config_change"):
    checkpoints.check_same_run(manager, changed, allow_change=False)
  checkpoints.check_same_run(manager, changed, allow_change=True)
  checkpoints.check_same_run(manager, RUN | {"config": {"seed": 0, "sample": {"num": 9}}}, allow_change=False)


def test_other_data_is_refused(manager, state):
  checkpoints.save(manager, 4, state, RUN)
  checkpoints.finish(manager)
  with pytest.raises(UserError, match="data source: 'toy' -> 'other'"):
    checkpoints.check_same_run(manager, RUN | {"data": {"source": "other"}}, allow_change=False)


def test_a_workdir_that_cannot_be_made_is_told(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match=r"cannot write to '.*file/run': Not a directory\. .*--workdir"):
    stores.prepare(*[tmp_path / "file" / "run"] * 2)


def test_a_workdir_on_a_full_disk_is_told_and_left_as_it_was(tmp_path):
  with disk.full(), pytest.raises(UserError, match="cannot write to '.*run': File too large"):
    stores.prepare(*[tmp_path / "run"] * 2)
  assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_of_checkpoints_that_cannot_be_made_is_told(tmp_path):
  (tmp_path / "run").write_text("")
  with pytest.raises(UserError, match="cannot write .*/run/checkpoints: Not a directory"):
    checkpoints.open_manager(tmp_path / "run")


def test_reading_changes_nothing_on_disk(tmp_path, state):
  manager = checkpoints.open_manager(tmp_path, keep=3)
  for step in (2, 4):
    checkpoints.save(manager, step, state.replace(step=jnp.asarray(step)), RUN)
  checkpoints.finish(manager)
  damage_arrays(tmp_path / "checkpoints" / "4")
  (tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp-1").mkdir()  # what a save under way looks like
  before = sorted(tmp_path.rglob("*"))
  reader = checkpoints.open_for_reading(tmp_path)
  restored, _ = checkpoints.restore(reader, jax.eval_shape(lambda: state), set_aside=False)
  reader.close()
  assert int(restored.step) == 2
  assert sorted(tmp_path.rglob("*")) == before
