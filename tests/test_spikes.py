"""Spikes of the loss: what counts as one, and that a run goes back and on past the batches that led there."""

import itertools
import json
import math

import jax
import numpy as np
import pytest

from jaxdiff import checkpoints, locks, resume, spikes, stores, sums, train
from jaxdiff.errors import UserError
from jaxdiff.spikes import Detector, Rollbacks
from tests.test_main import equal, last_state
from tests.test_main import train as train_main

BAD = 13  # the number of a batch
SETTINGS = ("steps=24", "checkpoint_every=4", "keep_checkpoints=9", "sample_every=0", "spike_factor=50")


def fed(detector, losses, first=1):
  """What a detector says of windows of ten steps each."""
  return [detector.add(10 * number, loss) for number, loss in enumerate(losses, first)]


def test_a_loss_above_the_factor_times_the_median_is_a_spike():
  losses = [1.0, 2.0, 1.0, 1.2, 50.0]
  assert fed(Detector(2.0), losses) == [None] * 5  # too few to judge; the median of these is 1.2
  detector = Detector(2.0)
  fed(detector, losses)
  assert detector.add(60, 2.39) is None
  detector = Detector(2.0)
  fed(detector, losses)
  spike = detector.add(60, 2.41)
  assert (spike.step, spike.before) == (60, 40)
  assert "rose to 2.41 at step 60, 2.0 times its median of 1.2" in str(spike)


def test_only_the_last_windows_count_and_a_spike_is_not_one_of_them():
  detector = Detector(3.0)
  assert fed(detector, [9.0] * 10 + [1.0] * 10)[-1] is None
  assert [loss for _, loss in detector.windows] == [1.0] * 10
  assert detector.add(210, 3.1) and detector.add(220, 3.1)


def test_nothing_is_judged_at_a_factor_of_0_and_no_nan_is_a_spike():
  assert not any(fed(Detector(0.0), [1.0] * 9 + [1e9]))
  assert not any(fed(Detector(2.0), [1.0] * 9 + [math.nan]))


@pytest.mark.parametrize("usual", [0.0, -1.0])
def test_there_is_no_multiple_of_a_median_that_is_not_positive(usual):
  assert not any(fed(Detector(2.0), [usual] * 9 + [usual + 0.1, 100.0]))


def test_a_new_stage_begins_anew():
  losses = [1.0] * 6
  detector = Detector(2.0, stages=[60])
  assert not any(fed(detector, losses))
  assert detector.add(70, 9.0) is None and detector.windows == [(70, 9.0)]
  detector = Detector(2.0, stages=[70])
  fed(detector, losses)
  assert detector.add(70, 9.0)


def test_a_detector_goes_on_from_what_a_checkpoint_keeps():
  whole, first = Detector(2.0), Detector(2.0)
  losses = [1.0, 1.1, 0.9, 1.0, 1.3, 1.0]
  fed(whole, losses)
  fed(first, losses[:4])
  second = Detector(2.0, windows=json.loads(json.dumps(first.windows)))
  fed(second, losses[4:], first=5)
  assert second.windows == whole.windows and second.add(70, 2.1) and not second.add(70, 1.9)


def test_the_data_stay_ahead_by_what_was_skipped():
  one = Rollbacks().and_back(spikes.Spike(14, 9.0, 1.0, 10), 8)
  assert one == Rollbacks(1, ((8, 6),))
  assert [one.at(step) for step in (0, 7, 8, 30)] == [0, 0, 6, 6]
  # Step 20 takes batch 25: the one after it is 26, and back at step 16 that is 10 ahead.
  two = one.and_back(spikes.Spike(20, 9.0, 1.0, 18), 16)
  assert two == Rollbacks(2, ((8, 6), (16, 10)))
  # Back to where the first came to, or before: what was noted there is no more.
  assert two.and_back(spikes.Spike(20, 9.0, 1.0, 18), 8) == Rollbacks(3, ((8, 22),))


def test_what_was_undone_later_is_forgotten_by_a_run_that_goes_on_before_it(tmp_path):
  (tmp_path / spikes.FILE).write_text("[2, [[8, 6], [16, 10]]]")
  assert spikes.resume(tmp_path, 16, Rollbacks(1, ((8, 6),))) == Rollbacks(2, ((8, 6), (16, 10)))
  assert (
    spikes.resume(tmp_path, 12, Rollbacks(1, ((8, 6),))) == Rollbacks(2, ((8, 6),)) == spikes.read(tmp_path)
  )
  assert spikes.resume(tmp_path / "elsewhere", 12, Rollbacks()) == Rollbacks()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[1, [["a", 2]]]'])
def test_a_note_that_cannot_be_read_is_told_of(tmp_path, text):
  (tmp_path / spikes.FILE).write_text(text)
  with pytest.raises(UserError, match=r"rollbacks\.json' cannot be read"):
    spikes.read(tmp_path)


def saved(workdir, *steps):
  for step in steps:
    folder = workdir / checkpoints.FOLDER / str(step)
    folder.mkdir(parents=True)
    (folder / "numbers").write_text(str(step))
    sums.write(folder)


def test_nothing_is_undone_where_another_run_has_taken_the_workdir(tmp_path):
  saved(tmp_path, 8, 12)
  with locks.hold(tmp_path), pytest.raises(UserError, match="trains in"):
    spikes.roll_back(spikes.Spike(14, 9.0, 1.0, 10), tmp_path, tmp_path, 3)
  assert steps_saved(tmp_path) == [8, 12] and not (tmp_path / spikes.FILE).exists()


@pytest.mark.parametrize(("steps", "left"), [((4, 8, 12), [4, 8]), ((12,), [12]), ((11, 12), [11])])
def test_it_goes_back_to_the_newest_that_was_not_touched_or_else_the_oldest(tmp_path, steps, left):
  saved(tmp_path, *steps)
  spikes.roll_back(spikes.Spike(14, 9.0, 1.0, 10), tmp_path, tmp_path, 3)
  assert steps_saved(tmp_path) == left
  assert spikes.read(tmp_path) == Rollbacks(1, ((left[-1], 14 - left[-1]),))


def test_it_does_not_go_back_to_half_a_checkpoint(tmp_path):
  saved(tmp_path, 4, 8, 12)
  (tmp_path / checkpoints.FOLDER / "8" / "numbers").unlink()  # Orbax was killed while it deleted it
  assert checkpoints.newest_until(tmp_path, 10) == 4 and checkpoints.newest_until(tmp_path, 3) == 4
  (tmp_path / checkpoints.FOLDER / "4" / sums.NAME).unlink()
  assert checkpoints.newest_until(tmp_path, 10) == 12


def steps_saved(workdir):
  return sorted(int(path.name) for path in (workdir / checkpoints.FOLDER).iterdir())


def run(workdir, capsys, *changes):
  lines = (*SETTINGS, *changes)
  return train_main(workdir, *(f"--config.train.{line}" for line in lines), capsys=capsys)


def poison(monkeypatch, is_bad, killed_at=None):
  """The loss that a loop sees is 1000 times as large for batches whose number is_bad; dies before step killed_at."""
  compile_step = train._compile

  def compile_poisoned(*args):
    step = compile_step(*args)

    def poisoned(state, batch):
      if killed_at is not None and int(state.step) + 1 == killed_at and is_bad(BAD):
        raise RuntimeError("killed")
      number = int(np.asarray(batch["index"]).min()) // 8
      after, metrics = step(state, batch)
      return after, metrics | ({"loss": 1000 * metrics["loss"]} if is_bad(number) else {})

    return poisoned

  monkeypatch.setattr(train, "_compile", compile_poisoned)


@pytest.fixture(scope="module")
def skipped(tmp_path_factory):
  """The end of a run that takes batches 0 to 7, and then goes on with 14."""
  workdir = tmp_path_factory.mktemp("skipped")
  with pytest.MonkeyPatch.context() as monkeypatch:
    batches = resume.batches_from

    def jumping(number, *run):
      assert number == 0
      yield from itertools.islice(batches(0, *run), 8)
      yield from batches(14, *run)

    monkeypatch.setattr(resume, "batches_from", jumping)
    assert train_main(workdir, *(f"--config.train.{line}" for line in SETTINGS))[0] == 0
  return last_state(workdir)


def test_a_run_goes_back_and_on_past_the_batches(tmp_path, monkeypatch, capsys, skipped):
  poison(monkeypatch, lambda number: number == BAD)
  status, text = run(tmp_path, capsys)
  assert status == 0, text
  assert "at step 14," in text
  assert "Back to the checkpoint of step 8, and on past the 6 batches since then." in text
  assert equal(last_state(tmp_path), skipped)
  record = checkpoints.latest_run(checkpoints.open_for_reading(tmp_path))
  assert record["examples"] == (24 + 6) * 8
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows if "loss" in row] == list(range(2, 25, 2))
  assert rows[-1]["rollbacks"] == 1 and max(row.get("loss", 0) for row in rows) < 50


def test_killed_after_it_has_gone_back_it_ends_the_same(tmp_path, monkeypatch, capsys, skipped):
  with monkeypatch.context() as dying:
    poison(dying, lambda number: number == BAD, killed_at=19)
    with pytest.raises(RuntimeError, match="killed"):
      run(tmp_path, capsys)
  assert "The loss rose" in capsys.readouterr().err
  poison(monkeypatch, lambda number: number == BAD)
  status, text = run(tmp_path, capsys)
  assert status == 0 and "The loss rose" not in text
  assert equal(last_state(tmp_path), skipped)


def test_the_checkpoints_alone_know_which_batches_were_skipped(tmp_path, monkeypatch, capsys, skipped):
  with monkeypatch.context() as dying:
    poison(dying, lambda number: number == BAD, killed_at=19)
    with pytest.raises(RuntimeError, match="killed"):
      run(tmp_path, capsys)
  (tmp_path / spikes.FILE).unlink()
  assert run(tmp_path, capsys)[0] == 0
  assert equal(last_state(tmp_path), skipped) and spikes.read(tmp_path) == Rollbacks(1, ((8, 6),))


def test_killed_while_a_checkpoint_is_deleted_it_goes_back_again(tmp_path, monkeypatch, capsys, skipped):
  def die(folder):
    next(path for path in folder.rglob("*") if path.is_file()).unlink()
    raise RuntimeError("killed")

  poison(monkeypatch, lambda number: number == BAD)
  with monkeypatch.context() as dying:
    dying.setattr(stores.shutil, "rmtree", die)
    with pytest.raises(RuntimeError, match="killed"):
      run(tmp_path, capsys)
  status, text = run(tmp_path, capsys)
  assert status == 0 and "damaged" not in text
  assert equal(last_state(tmp_path), skipped)
  assert steps_saved(tmp_path) == [4, 8, 12, 16, 20, 24], "what was half deleted is cleared away"


def test_the_state_that_is_given_up_is_gone_before_the_next_is_made(tmp_path, monkeypatch, capsys):
  held, opened = [], train.open_run

  def opening(*args):
    held.append(sum(array.nbytes for array in jax.live_arrays()))
    return opened(*args)

  monkeypatch.setattr(train, "open_run", opening)
  poison(monkeypatch, lambda number: number == BAD)
  assert run(tmp_path, capsys)[0] == 0
  assert len(held) == 2 and held[1] - held[0] < 1000, "in bytes; the state has 240 thousand"


def test_a_step_that_was_skipped_is_no_spike(tmp_path, monkeypatch, capsys):
  compile_step = train._compile

  def compile_skipping(*args):
    step = compile_step(*args)

    def skipping(state, batch):
      after, metrics = step(state, batch)
      return after, metrics | ({"loss": 1e9, "skipped": 1.0} if int(after.step) == 14 else {})

    return skipping

  monkeypatch.setattr(train, "_compile", compile_skipping)
  status, text = run(tmp_path, capsys, "log_every=1")
  assert status == 0 and "step 14." in text and "Back to" not in text


def test_without_a_checkpoint_before_it_goes_back_to_the_start(tmp_path, monkeypatch, capsys):
  poison(monkeypatch, lambda number: number == BAD)
  status, text = run(tmp_path, capsys, "checkpoint_every=100")
  assert status == 0, text
  assert "Back to the start, as there is no checkpoint before it, and on past the 14 batches" in text


def test_it_gives_up_and_keeps_the_checkpoints(tmp_path, monkeypatch, capsys):
  poison(monkeypatch, lambda number: number >= BAD)
  status, text = run(tmp_path, capsys, "max_rollbacks=2")
  assert status == 2
  assert text.count("Back to") == 2
  assert "after 2 rollbacks (config.train.max_rollbacks=2). The last good checkpoint is step 8, in" in text
  assert "config.optim.learning_rate" in text
  assert steps_saved(tmp_path) == [4, 8]


@pytest.mark.parametrize("factor", [-1, 0.5, 1])
def test_a_factor_that_makes_no_sense_is_refused(tmp_path, capsys, factor):
  status, text = run(tmp_path, capsys, f"spike_factor={factor}")
  assert status == 2
  assert f"config.train.spike_factor must be above 1, or 0 for no rollbacks, not {factor:g}." in text


def test_by_default_a_spike_is_none(tmp_path, monkeypatch, capsys):
  poison(monkeypatch, lambda number: number == BAD)
  status, text = run(tmp_path, capsys, "spike_factor=0")
  assert status == 0 and "Back to" not in text and not (tmp_path / spikes.FILE).exists()
