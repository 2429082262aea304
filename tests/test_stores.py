"""Checkpoints in another folder than the workdir, and in a bucket: Google's own protocol, spoken with a server on this machine."""

import contextlib
import importlib.util
import os
import sys

import jax
import numpy as np
import pytest

from jaxdiff import checkpoints, configuration, distributed, locks, optim, runs, stores, sums, tasks
from jaxdiff.errors import UserError
from jaxdiff.evaluation import drawn
from tests import gcs, small
from tests.test_checkpoints import equal, raw
from tests.test_hosts import LONG, TRAIN, done, start, start_several
from tests.test_main import run, train

RUN = {"config": {"seed": 0}, "data": {"source": "toy"}, "examples": 8}
NEEDS = [name for name in ("gcsfs", "gcp_storage_emulator") if importlib.util.find_spec(name) is None]
in_bucket = pytest.mark.skipif(bool(NEEDS), reason=f"pip install {' '.join(NEEDS)}")


@pytest.fixture(scope="module")
def bucket():
  with gcs.serving("bucket") as address:
    yield address


@pytest.fixture(scope="module")
def state():
  config = small.config("dit")
  return tasks.initial_state(config, tasks.make(config, optim.make_optimizer(config.optim, 6)))


@pytest.fixture
def store(bucket, tmp_path):
  return stores.at(f"{bucket}/{tmp_path.name}")


@pytest.fixture
def saved(store, state):
  """A store with the checkpoints of steps 2 and 4."""
  save(store, 2, state)
  save(store, 4, state)
  return store


def save(store, step, state):
  with contextlib.closing(checkpoints.open_manager(store, keep=2)) as manager:
    checkpoints.save(manager, step, state.replace(step=np.int32(step)), RUN)
    checkpoints.finish(manager)


def restored(store, state, set_aside=True):
  """(step, record) of what is restored, or None."""
  opened = checkpoints.open_manager(store, keep=2) if set_aside else checkpoints.open_for_reading(store)
  with contextlib.closing(opened) as manager:
    found = checkpoints.restore(manager, jax.eval_shape(lambda: state), set_aside)
  return found and (int(found[0].step), found[1])


def names(folder):
  return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def largest(folder):
  """The file of a checkpoint's numbers."""
  return max((folder / "state" / "ocdbt.process_0" / "d").iterdir(), key=lambda path: path.stat().length)


# One of two kinds of place


@pytest.mark.parametrize(
  ("address", "words"),
  [
    ("s3://bucket/run", r"'s3://bucket/run' \(config.train.checkpoint_dir\) is no folder; of buckets Orbax"),
    ("gs:/bucket/run", r"'gs:/bucket/run' \(config.train.checkpoint_dir\) is no folder; of buckets"),
    ("gs://", r"'gs://' \(config.train.checkpoint_dir\) names no bucket: write gs://bucket/folder"),
  ],
)
def test_another_kind_of_address_is_refused(address, words, tmp_path, capsys):
  status, text = train(tmp_path, f"--config.train.checkpoint_dir={address}", capsys=capsys)
  assert status == 2 and len(text.splitlines()) == 1
  with pytest.raises(UserError, match=words):
    stores.at(address)


@pytest.mark.parametrize(
  ("error", "status"),
  [
    (OSError("Forbidden: http://x\nme@x does not have storage.objects.get access"), 2),
    (FileNotFoundError("b/run"), 2),
    (ValueError("UNAVAILABLE: CURL error Could not connect to server: Error reading gs://b/run/x"), 74),
    (RuntimeError("service unavailable, 503"), 74),
  ],
)
def test_what_may_pass_is_told_from_what_has_to_be_mended(error, status):
  with pytest.raises(UserError) as raised, stores.reached("gs://b/run"):
    raise error
  assert raised.value.status == status and len(str(raised.value).splitlines()) == 1
  assert not distributed.LOST.match(str(raised.value))
  with pytest.raises(type(error)), stores.reached("/disk/run"):
    raise error


def test_a_bucket_needs_a_package(monkeypatch):
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  with pytest.raises(
    UserError, match=r"gs://b/run \(config.train.checkpoint_dir\) needs .* pip install gcsfs"
  ):
    stores.at("gs://b/run")


def test_checkpoints_may_lie_in_another_folder(tmp_path, capsys):
  workdir, elsewhere = tmp_path / "run", tmp_path / "large disk"
  assert train(workdir, f"--config.train.checkpoint_dir={elsewhere}")[0] == 0
  assert names(elsewhere) == [".lock", "checkpoints", "config.json"] and "checkpoints" not in names(workdir)
  assert names(elsewhere / "checkpoints") == ["4", "6"]
  assert run("--mode", "sample", "--workdir", str(workdir), "--config.sample.num=2")[0] == 0
  # It is not begun anew where its checkpoints are not.
  status, text = train(workdir, capsys=capsys)
  assert status == 2 and f"has its checkpoints in {elsewhere}, and there are none in {workdir}. Copy" in text
  # A run that has moved is the same run.
  moved = elsewhere.rename(tmp_path / "larger disk")
  status, text = train(workdir, f"--config.train.checkpoint_dir={moved}", capsys=capsys)
  assert status == 0 and "This run is complete: 6 of 6 steps" in text
  assert configuration.of_run(workdir).train.checkpoint_dir == str(moved)
  assert (moved / "config.json").read_text() == (workdir / "config.json").read_text()


def test_a_folder_that_cannot_be_made_is_told(tmp_path, capsys):
  (tmp_path / "file").touch()
  status, text = train(tmp_path / "run", f"--config.train.checkpoint_dir={tmp_path}/file/run", capsys=capsys)
  assert status == 2 and len(text.splitlines()) == 1
  assert (
    f"cannot write to '{tmp_path}/file/run': Not a directory. Give another with --config.train.ch" in text
  )


def test_two_runs_do_not_share_a_folder_of_checkpoints(tmp_path):
  for name in ("one", "other", "store"):
    (tmp_path / name).mkdir()
  with (
    locks.hold(tmp_path / "one", tmp_path / "store"),
    pytest.raises(UserError, match="trains in '.*store'"),
    locks.hold(tmp_path / "other", tmp_path / "store"),
  ):
    pass
  with locks.hold(tmp_path / "other", tmp_path / "store"):
    pass


def test_an_evaluation_sees_another_checkpoint_elsewhere(tmp_path, state):
  workdir, store = tmp_path / "run", tmp_path / "store"
  workdir.mkdir()
  runs.write_config(small.config("dit", f"train.checkpoint_dir={store}"), workdir)
  seen = [drawn._version(str(workdir))]
  for step in (2, 4):
    save(store, step, state)
    seen += [drawn._version(str(workdir))] * 2
  assert seen[1] == seen[2] and seen[3] == seen[4] and len({str(each) for each in seen}) == 3


def test_a_model_is_not_exported_over_a_run_whose_checkpoints_are_elsewhere(tmp_path, capsys):
  trained, other = tmp_path / "trained", tmp_path / "other"
  trained.mkdir()
  small.run(trained)
  other.mkdir()
  (other / "config.json").write_text("{}")
  command = ("--mode", "export", "--workdir", str(trained), f"--config.export.out={other}")
  status, text = run(*command, capsys=capsys)
  assert status == 2 and "holds a run" in text and (other / "config.json").read_text() == "{}"


# In a bucket


@in_bucket
def test_a_restored_state_is_the_saved_one_bit_for_bit(saved, state):
  assert names(saved) == ["checkpoints"] and names(saved / "checkpoints") == ["2", "4"]
  with contextlib.closing(checkpoints.open_for_reading(saved)) as manager:
    found, record = checkpoints.restore(manager, jax.eval_shape(lambda: state), set_aside=False)
  assert equal(raw(found), raw(state.replace(step=np.int32(4))))
  assert record.items() >= RUN.items()


@in_bucket
def test_all_files_have_sums(saved):
  folder = saved / "checkpoints" / "4"
  listed = [line.split("  ")[1] for line in (folder / sums.NAME).read_text().splitlines()[1:]]
  assert {"run/metadata", "state/manifest.ocdbt"} < set(listed)
  assert any(name.startswith("state/ocdbt.process_0/d/") for name in listed)
  sums.check(folder)


@in_bucket
def test_a_flipped_bit_is_noticed_and_the_checkpoint_set_aside(saved, state, caplog):
  victim = largest(saved / "checkpoints" / "4")
  text = bytearray(victim.read_bytes())
  text[len(text) // 2] ^= 1
  victim.write_bytes(bytes(text))
  assert restored(saved, state, set_aside=False)[0] == 2 and names(saved / "checkpoints") == ["2", "4"]
  assert restored(saved, state)[0] == 2
  assert "The checkpoint of step 4 is damaged (state/ocdbt.process_0/d/" in caplog.text
  assert names(saved / "checkpoints") == ["2"] and names(saved / "damaged") == ["4"]
  assert (saved / "damaged" / "4" / "run" / "metadata").exists()


@in_bucket
@pytest.mark.parametrize("name", ["state/_METADATA", "run/metadata", "state/manifest.ocdbt", sums.NAME])
@pytest.mark.parametrize("change", [None, b"not what it was"])
def test_whatever_is_damaged_the_one_before_is_taken(saved, state, name, change):
  path = saved / "checkpoints" / "4" / name
  path.unlink() if change is None else path.write_bytes(change)
  with contextlib.closing(checkpoints.open_manager(saved, keep=2)) as manager:
    checkpoints.check_same_run(manager, RUN, allow_change=False)
  assert restored(saved, state)[0] == 2 and names(saved / "damaged") == ["4"]


@in_bucket
@pytest.mark.parametrize("refused", [sums.NAME, "ocdbt.process_0/d/", "run/metadata"])
def test_what_may_not_be_read_is_not_taken_for_damaged(saved, state, refused, monkeypatch):
  monkeypatch.setattr(gcs, "REFUSED", [f"4/{refused}" if "d/" not in refused else f"4/state/{refused}"])
  for set_aside in (True, False):
    with pytest.raises(
      UserError, match=rf"^{saved}\S* \(config.train.checkpoint_dir\) cannot be reached: .*[Ff]orbid"
    ):
      restored(saved, state, set_aside)
  monkeypatch.undo()
  assert names(saved / "damaged") == [] and restored(saved, state)[0] == 4


@in_bucket
def test_where_nothing_is_saved(store, state):
  assert checkpoints.newest_until(store, 9) == 0 and not checkpoints.are_in(store)
  checkpoints.drop_after(store, 0)
  assert restored(store, state) is None


@in_bucket
def test_what_was_not_written_to_its_end_is_no_checkpoint(saved, state):
  (saved / "checkpoints" / "4" / stores.MARK).unlink()
  assert checkpoints.newest_until(saved, 9) == 2
  assert restored(saved, state, set_aside=False)[0] == 2
  save(saved, 4, state)
  assert restored(saved, state)[0] == 4


@in_bucket
def test_later_checkpoints_are_dropped(saved, state):
  assert checkpoints.newest_until(saved, 3) == 2
  checkpoints.drop_after(saved, 2)
  assert names(saved / "checkpoints") == ["2"] and restored(saved, state)[0] == 2


@in_bucket
def test_a_bucket_that_is_not_there_is_told(bucket, tmp_path, capsys):
  status, text = train(tmp_path, "--config.train.checkpoint_dir=gs://another/run", capsys=capsys)
  assert status == 2 and len(text.splitlines()) == 1
  assert "cannot write to 'gs://another/run': " in text


@in_bucket
def test_a_run_goes_on_from_a_bucket_on_another_machine(store, tmp_path, capsys):
  """Of which nothing is left but the bucket."""
  given = f"--config.train.checkpoint_dir={store}"
  assert train(tmp_path / "first", given, "--config.train.steps=4", "--config.optim.decay=constant")[0] == 0
  assert names(store / "checkpoints") == ["2", "4"] and "checkpoints" not in names(tmp_path / "first")
  assert (store / "config.json").read_text() == (tmp_path / "first" / "config.json").read_text()
  status, _ = train(tmp_path / "second", given, "--config.optim.decay=constant", "--allow_config_change")
  assert status == 0 and names(store / "checkpoints") == ["4", "6"]
  assert train(tmp_path / "plain", "--config.optim.decay=constant")[0] == 0
  config = configuration.of_run(tmp_path / "second")
  found = runs.averaged_params(config, tmp_path / "second")
  wanted = runs.averaged_params(configuration.of_run(tmp_path / "plain"), tmp_path / "plain")
  assert equal(found, wanted)


@in_bucket
@pytest.mark.slow
def test_two_processes_save_to_a_bucket_without_a_workdir_that_both_see(store, tmp_path):
  given = (*TRAIN, *LONG, f"--config.train.checkpoint_dir={store}")
  done(start_several([tmp_path / "0", tmp_path / "1"], *given, "--config.train.steps=20"))
  done(
    start_several(
      [tmp_path / "2", tmp_path / "3"], *given, "--config.train.steps=40", "--allow_config_change"
    )
  )
  done([start(tmp_path / "one", *TRAIN, *LONG, "--config.train.steps=40", devices=2)])
  found, wanted = (
    runs.averaged_params(configuration.of_run(tmp_path / name), tmp_path / name) for name in ("2", "one")
  )
  assert equal(found, wanted)
  assert not (tmp_path / "3" / "metrics.jsonl").exists() and os.listdir(tmp_path / "2")
