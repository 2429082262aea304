"""SIGTERM at any time of a run, in this process: what was done is saved, and the run that goes on does the rest."""

import os
import re
import signal

import numpy as np
import pytest

from jaxdiff import checkpoints, metrics, pictures, previews, resume, sample, train, watchdog
from jaxdiff.evaluation import drawn, evaluate
from tests import small
from tests.test_main import equal, last_state, run
from tests.test_main import train as train_main

AGAIN = 85
REQUEUE = f"--requeue_status={AGAIN}"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
  workdir = tmp_path_factory.mktemp("undisturbed")
  assert train_main(workdir)[0] == 0
  return workdir


def steps_saved(workdir):
  return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def picture(workdir, step):
  return (workdir / "samples" / f"{step:07d}.png").read_bytes()


def signal_at(monkeypatch, module, name, when=lambda *args, **kwargs: True, number=signal.SIGTERM):
  """Sends a signal, once, when module.name is called."""
  real, sent = getattr(module, name), []

  def wrapped(*args, **kwargs):
    if not sent and when(*args, **kwargs):
      sent.append(number)
      signal.raise_signal(number)
    return real(*args, **kwargs)

  monkeypatch.setattr(module, name, wrapped)


def in_the_preview_of(monkeypatch, wanted):
  """Sends SIGTERM, once, while what is due after a step is being shown."""
  make, sent = previews.make, []

  def made(*args):
    preview = make(*args)

    def show(state, step):
      shown = preview.show(state, step)
      if step == wanted and not sent:
        sent.append(step)
        signal.raise_signal(signal.SIGTERM)
      return shown

    return preview._replace(show=show)

  monkeypatch.setattr(resume.previews, "make", made)


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 6])
def test_a_preview_made_up_for_is_the_one_that_was_cut_short(step, tmp_path, monkeypatch, undisturbed):
  in_the_preview_of(monkeypatch, step)
  assert train_main(tmp_path, REQUEUE)[0] == AGAIN
  (tmp_path / "samples" / f"{step:07d}.png").unlink()
  assert train_main(tmp_path, REQUEUE)[0] == 0
  assert picture(tmp_path, step) == picture(undisturbed, step)
  assert equal(last_state(tmp_path), last_state(undisturbed))


def test_sigterm_in_a_preview_saves_and_the_preview_is_made_up_for(tmp_path, monkeypatch, capsys, step=6):
  in_the_preview_of(monkeypatch, step)
  status, text = train_main(tmp_path, REQUEUE, capsys=capsys)
  assert status == AGAIN and f"Stopped after step {step}, saved in" in text
  assert steps_saved(tmp_path)[-1] == step and (tmp_path / "unshown").read_text() == str(step)
  (tmp_path / "samples" / f"{step:07d}.png").unlink()
  status, text = train_main(tmp_path, REQUEUE, capsys=capsys)
  assert status == 0 and "Done: 6 steps" in text and re.search(r"Goodput \d+\.\d% of \d", text)
  assert picture(tmp_path, step)
  assert not (tmp_path / "unshown").exists() and (tmp_path / "loss.png").exists()
  assert "This run is complete" in train_main(tmp_path, capsys=capsys)[1]


def test_a_preview_that_fails_loses_no_step_and_is_made_up_for(tmp_path, monkeypatch, step=6):
  make = previews.make

  def failing(*args):
    preview = make(*args)

    def show(state, number):
      if number == step:
        raise MemoryError("as a device's would be")
      return preview.show(state, number)

    return preview._replace(show=show)

  with monkeypatch.context() as patch:
    patch.setattr(resume.previews, "make", failing)
    with pytest.raises(MemoryError):
      train_main(tmp_path)
  assert steps_saved(tmp_path)[-1] == step and not (tmp_path / "samples" / f"{step:07d}.png").exists()
  assert train_main(tmp_path)[0] == 0
  assert picture(tmp_path, step) and not (tmp_path / "unshown").exists()


@pytest.mark.parametrize(("module", "name"), [(train, "_compile"), (resume, "batches_from")])
def test_sigterm_before_the_first_step_ends_without_taking_one(module, name, tmp_path, monkeypatch, capsys):
  signal_at(monkeypatch, module, name)
  status, text = train_main(tmp_path, REQUEUE, capsys=capsys)
  assert status == AGAIN and "Stopped before a step was taken" in text
  assert steps_saved(tmp_path) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, AGAIN), (signal.SIGINT, 0)])
def test_only_sigterm_asks_to_be_run_again(number, status, tmp_path, monkeypatch, capsys):
  signal_at(monkeypatch, metrics.Window, "push", lambda self, step, values: step == 1, number)
  got, text = train_main(tmp_path, REQUEUE, capsys=capsys)
  assert got == status and "Stopped after step 1, saved in" in text
  assert steps_saved(tmp_path) == [1]


@pytest.mark.slow
def test_a_signal_during_the_last_step_leaves_its_pictures_to_the_next_start(tmp_path, monkeypatch, capsys):
  signal_at(monkeypatch, metrics.Window, "push", lambda self, step, values: step == 6)
  status, text = train_main(tmp_path, REQUEUE, "--config.train.sample_every=0", capsys=capsys)
  assert "Stopped after step 6" in text and status == AGAIN
  status, text = train_main(tmp_path, REQUEUE, "--config.train.sample_every=0", capsys=capsys)
  assert "Done: 6 steps" in text and status == 0


def test_sampling_ends_at_once_and_leaves_no_half_file(tmp_path, monkeypatch, capsys):
  small.run(tmp_path)
  signal_at(monkeypatch, sample.pictures, "save_npz")
  status, text = run("--mode", "sample", "--workdir", str(tmp_path), REQUEUE, capsys=capsys)
  assert status == AGAIN and "Stopped. The same command goes on" in text
  assert not (tmp_path / "samples.npz").exists()
  assert run("--mode", "sample", "--workdir", str(tmp_path), REQUEUE)[0] == 0
  assert np.load(tmp_path / "samples.npz")["arr_0"].shape == (10, 8, 8, 1)


def test_scoring_ends_at_once_and_the_same_command_scores(tmp_path, monkeypatch, capsys):
  small.run(tmp_path)
  signal_at(monkeypatch, evaluate.scorer, "score")
  command = ("--mode", "evaluate", "--workdir", str(tmp_path), REQUEUE, "--config.eval.num=20",
             "--config.eval.features=pixels")  # fmt: skip
  assert run(*command, capsys=capsys)[0] == AGAIN
  assert not (tmp_path / "evaluation.json").exists()
  assert run(*command, capsys=capsys)[0] == 0
  assert (tmp_path / "evaluation.json").exists()


def test_an_evaluation_goes_on_with_the_batches_it_had_drawn(tmp_path, monkeypatch, capsys):
  small.run(tmp_path)
  saved = []
  save = pictures.save_npz

  def counted(path, *arrays):
    if len(saved) == 2:
      saved.append("killed")
      signal.raise_signal(signal.SIGTERM)
    saved.append(path.name)
    save(path, *arrays)

  monkeypatch.setattr(drawn.pictures, "save_npz", counted)
  command = ("--mode", "evaluate", "--workdir", str(tmp_path), REQUEUE, "--config.eval.num=40",
             "--config.eval.features=pixels", "--config.sample.batch_size=8")  # fmt: skip
  assert run(*command, capsys=capsys)[0] == AGAIN
  assert run(*command, capsys=capsys)[0] == 0
  assert saved == [f"{i:08d}.npz" for i in (0, 8)] + ["killed"] + [f"{i:08d}.npz" for i in (16, 24, 32)]


def test_the_watchdog_sleeps_while_a_run_shows_and_saves(tmp_path, monkeypatch):
  dogs, seen = [], set()

  class Known(watchdog.Watchdog):
    def __init__(self, *args):
      super().__init__(*args)
      dogs.append(self)

  def watch(module, name):
    real = getattr(module, name)

    def wrapped(*args, **kwargs):
      seen.add((name, dogs[0]._pauses > 0))
      return real(*args, **kwargs)

    monkeypatch.setattr(module, name, wrapped)

  monkeypatch.setattr(watchdog, "Watchdog", Known)
  for module, name in (
    (checkpoints, "save"),
    (checkpoints, "finish"),
    (sample.pictures, "grid"),
    (metrics.Window, "push"),
  ):
    watch(module, name)
  assert train_main(tmp_path)[0] == 0
  assert seen == {("save", True), ("finish", True), ("grid", True), ("push", False)}
  assert dogs[0].is_on and dogs[0]._beats >= 6
