"""Checkpoints that a disk, a hand or another setting has come between: what is noticed, and what is taken instead."""

import contextlib
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import checkpoints, sums
from jaxdiff.errors import UserError

RUN = {"config": {"seed": 0}, "data": {"source": "toy"}, "examples": 8}


def state_of(step=0, width=700, impl=None):
  """Small, and shaped as a train state is: arrays of several dtypes, and a key."""
  rng = np.random.default_rng(step)
  return {
    "step": jnp.asarray(step, jnp.int32),
    "params": {"kernel": jnp.asarray(rng.standard_normal((3, width), np.float32)), "bias": jnp.zeros(width)},
    "half": jnp.ones((5, 5), jnp.bfloat16),
    "rng": jax.random.key(7, impl=impl),
  }


def abstract(**options):
  return jax.eval_shape(lambda: state_of(**options))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Two checkpoints, of steps 2 and 4; not to be changed."""
  workdir = tmp_path_factory.mktemp("saved")
  save(workdir, state_of(2), state_of(4))
  return workdir


@pytest.fixture
def workdir(saved, tmp_path, monkeypatch):
  """A copy of them."""
  monkeypatch.setattr(logging.getLogger("jaxdiff"), "propagate", True)
  return shutil.copytree(saved, tmp_path / "run")


def save(workdir, *states):
  with contextlib.closing(checkpoints.open_manager(workdir, keep=3)) as manager:
    for state in states:
      checkpoints.save(manager, int(state["step"]), state, RUN)
    checkpoints.finish(manager)


def restored(workdir, like=None, set_aside=True):
  """(state, run record) as a run restores it, or as one that reads."""
  opened = checkpoints.open_manager(workdir, keep=3) if set_aside else checkpoints.open_for_reading(workdir)
  with contextlib.closing(opened) as manager:
    return checkpoints.restore(manager, abstract() if like is None else like, set_aside)


def equal(a, b):
  plain = lambda state: state | {"rng": jax.random.key_data(state["rng"])}
  return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), plain(a), plain(b)))


def array_files(folder):
  """The files that hold numbers, larger ones first."""
  return sorted((p for p in (folder / "state").rglob("d/*")), key=lambda p: -p.stat().st_size)


def flip(path, bit):
  data = bytearray(path.read_bytes())
  data[bit // 8] ^= 1 << bit % 8
  path.write_bytes(data)


def test_every_checkpoint_has_the_sums_of_all_its_files_but_orbaxs_notes(saved):
  for step in (2, 4):
    folder = saved / "checkpoints" / str(step)
    listed = {line.split("  ")[1] for line in (folder / sums.NAME).read_text().splitlines()[1:]}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there - listed == {sums.NAME, checkpoints.NOTES, "commit_success.txt"} and listed < there
    sums.check(folder)


def test_each_of_100_flipped_bits_of_the_numbers_is_noticed(workdir):
  folder, rng = workdir / "checkpoints" / "4", np.random.default_rng(0)
  files = array_files(folder)
  sizes = np.array([path.stat().st_size for path in files])
  for path in rng.choice(files, 100, p=sizes / sizes.sum()):
    bit = rng.integers(8 * path.stat().st_size)
    flip(path, bit)
    with pytest.raises(sums.Damaged, match=f"^{path.relative_to(folder)} has changed"):
      sums.check(folder)
    flip(path, bit)
  assert equal(restored(workdir)[0], state_of(4))


def test_orbaxs_notes_change_nothing(workdir):
  """They alone have no sum: flipped, cut short or gone, the state is the same."""
  path, rng = workdir / "checkpoints" / "4" / checkpoints.NOTES, np.random.default_rng(0)
  for _ in range(5):
    bit = rng.integers(8 * path.stat().st_size)
    flip(path, bit)
    assert equal(restored(workdir, set_aside=False)[0], state_of(4))
    flip(path, bit)
  path.write_bytes(path.read_bytes()[:100])
  assert equal(restored(workdir, set_aside=False)[0], state_of(4))
  path.unlink()
  assert equal(restored(workdir)[0], state_of(4))


DAMAGES = {
  "a flipped bit of a number": lambda step: flip(array_files(step)[0], 4001),
  "a flipped bit of the record": lambda step: flip(step / "run" / "metadata", 100),
  "a flipped bit of the tree": lambda step: flip(step / "state" / "_METADATA", 100),
  "a flipped bit of the sums": lambda step: flip(step / sums.NAME, 700),
  "truncated numbers": lambda step: array_files(step)[0].write_bytes(array_files(step)[0].read_bytes()[:-1]),
  "no numbers": lambda step: array_files(step)[0].unlink(),
  "no record": lambda step: (step / "run" / "metadata").unlink(),
  "no sums": lambda step: (step / sums.NAME).unlink(),
  "no state": lambda step: shutil.rmtree(step / "state"),
  "an empty folder": lambda step: [shutil.rmtree(step), step.mkdir()],
}


@pytest.mark.parametrize("reads", [False, True], ids=["training", "reading"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_named_and_the_one_before_is_taken(damage, reads, workdir, caplog):
  folder = workdir / "checkpoints" / "4"
  DAMAGES[damage](folder)
  state, _ = restored(workdir, set_aside=not reads)
  assert equal(state, state_of(2))
  assert "The checkpoint of step 4 is damaged (" in caplog.text
  assert "The one before it, of step 2, is taken." in caplog.text
  assert folder.is_dir() == reads and (workdir / "damaged" / "4").is_dir() != reads


def test_the_message_names_the_file(workdir, caplog):
  damaged = array_files(workdir / "checkpoints" / "4")[0]
  flip(damaged, 4001)
  restored(workdir)
  name = damaged.relative_to(workdir / "checkpoints" / "4")
  assert f"The checkpoint of step 4 is damaged ({name} has changed since it was written" in caplog.text


def test_where_none_is_left_this_is_told(workdir, caplog):
  for step in ("2", "4"):
    flip(array_files(workdir / "checkpoints" / step)[0], 4001)
  assert restored(workdir) is None
  assert "The checkpoint of step 2 is damaged" in caplog.text and "There is none before it." in caplog.text
  assert sorted(path.name for path in (workdir / "damaged").iterdir()) == ["2", "4"]


def test_a_damaged_record_is_not_taken_for_a_changed_config(workdir, caplog):
  """Orbax reads a record with another digit in it as any other."""
  path = workdir / "checkpoints" / "4" / "run" / "metadata"
  path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
  with contextlib.closing(checkpoints.open_manager(workdir, keep=3)) as manager:
    checkpoints.check_same_run(manager, RUN, allow_change=False)
  assert "step 4 is damaged (run/metadata has changed" in caplog.text


def test_a_deleted_newest_step_costs_only_its_steps(workdir):
  shutil.rmtree(workdir / "checkpoints" / "4")
  assert equal(restored(workdir)[0], state_of(2))
  save(workdir, state_of(4))
  assert equal(restored(workdir)[0], state_of(4))


def test_a_checkpoint_of_an_older_version_is_taken_with_a_note(workdir, caplog):
  folder = workdir / "checkpoints" / "4"
  (folder / sums.NAME).unlink()
  (folder / "run" / "metadata").write_text(json.dumps(RUN))
  with caplog.at_level(logging.INFO, "jaxdiff"):
    assert equal(restored(workdir)[0], state_of(4))
  assert (
    "The checkpoint of step 4 has no SHA256SUMS: it was saved by a version that wrote none" in caplog.text
  )


def test_no_checkpoint_appears_without_its_sums(tmp_path, monkeypatch):
  """As when the disk is full just then: the save fails, and what is there is what was there before."""
  save(tmp_path, state_of(2))

  def full(*_, **__):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(sums, "write", full)
  with pytest.raises(
    UserError, match=r"could not be saved: .*No space left.* last good checkpoint is step 2"
  ):
    save(tmp_path, state_of(4))
  monkeypatch.undo()
  assert equal(restored(tmp_path)[0], state_of(2))
  save(tmp_path, state_of(4))  # what is left of the failed save is no hindrance
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "4"]


OTHERS = {
  "shape": (
    lambda: abstract(width=600),
    r"params.bias is float32\[700\] there and float32\[600\] here",
  ),
  "dtype": (
    lambda: abstract() | {"half": jax.ShapeDtypeStruct((5, 5), jnp.float32)},
    r"half is bfloat16\[5, 5\] there and float32\[5, 5\] here",
  ),
  "tree": (
    lambda: {key: leaf for key, leaf in abstract().items() if key != "half"},
    r"half is bfloat16\[5, 5\] there and absent here",
  ),
}  # fmt: skip


@pytest.mark.parametrize("other", OTHERS)
def test_what_does_not_fit_is_an_error_and_never_a_reason_to_fall_back(other, workdir):
  like, message = OTHERS[other]
  with pytest.raises(UserError, match=f"step 4 does not fit this config: {message}"):
    restored(workdir, like())
  assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["2", "4"]
  assert not (workdir / "damaged").exists()


def test_another_random_number_generator_is_an_error_that_names_both(tmp_path):
  """rbg and unsafe_rbg have keys of one shape: Orbax gives back the one that was saved, whatever is asked for."""
  save(tmp_path, state_of(2, impl="rbg"))
  assert restored(tmp_path, abstract(impl="rbg"))[0]["rng"].dtype == state_of(impl="rbg")["rng"].dtype
  for impl in ("unsafe_rbg", "threefry2x32"):
    message = f"another random number generator: rng is of rbg there and of {impl} here. Set JAX_DEFAULT_PRNG_IMPL=rbg"
    with pytest.raises(UserError, match=message):
      restored(tmp_path, abstract(impl=impl))


def test_what_is_undamaged_is_never_set_aside(workdir, monkeypatch, caplog):
  """As when memory runs out: the older checkpoint would not do better, and the newest would be lost."""
  with contextlib.closing(checkpoints.open_manager(workdir, keep=3)) as manager:
    restore = manager.restore

    def without_memory(step, args):
      if "state" in args:
        raise MemoryError("out of memory")
      return restore(step, args=args)

    monkeypatch.setattr(manager, "restore", without_memory)
    with pytest.raises(MemoryError):
      checkpoints.restore(manager, abstract())
  assert "The checkpoint of step 4 is undamaged, but could not be restored." in caplog.text
  assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["2", "4"]
