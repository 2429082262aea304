"""Scoring a run and others' images, from the command line and in parts; pixels as features, so that it takes seconds."""

import importlib
import json
import os
import shutil

import numpy as np
import pytest

from jaxdiff import draw, runs
from jaxdiff.evaluation import drawn, evaluate, figures, images, report
from jaxdiff.main import main
from tests import small

FEW = ("--config.eval.features=pixels", "--config.data.split=train[:300]", "--config.eval.num=50")


@pytest.fixture(autouse=True)
def _few_subsets(monkeypatch):
  monkeypatch.setattr(figures, "KID_SUBSETS", 5)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("made")
  small.run(workdir)
  return workdir


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("judge")
  small.run(workdir, "classifier")
  return workdir


@pytest.fixture
def workdir(made, tmp_path):
  """A copy of the run that a test may write to."""
  return shutil.copytree(made, tmp_path / "run")


def score(workdir, *arguments, few=FEW):
  """The rows of evaluation.json after one evaluation."""
  assert main(["--mode", "evaluate", "--workdir", str(workdir), *few, *arguments]) == 0
  return report.read(workdir)


def close(a, b, rtol=1e-6):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=1e-9, err_msg=name)


def samples(workdir):
  """All images and labels that evaluations have drawn, batch by batch."""
  files = sorted(path for path in workdir.glob("evaluation/*/*.npz"))
  parts = [np.load(file) for file in files]
  return np.concatenate([p["arr_0"] for p in parts]), np.concatenate([p["arr_1"] for p in parts])


def test_a_set_compared_with_itself_is_perfect(workdir):
  """Also with images that are stored as others would: the run's own training images in an .npz."""
  config = small.config("dit")
  pixels = images.take(config.data, "train[:300]", np.arange(300))
  np.savez(workdir / "own.npz", pixels)
  for spec in ("data:train[:300]", f"{workdir}/own.npz"):
    found = score(workdir, f"--config.eval.images={spec}")[-1]["figures"]
    assert abs(found["frechet"]) < 1e-6 and found["kid"] <= 1e-6
    assert found["precision"] == found["recall"] == found["coverage"] == found["near_copies"] == 1
    assert found["density"] >= 1 and "accuracy" not in found and "inception_score" not in found


def test_a_run_is_scored_and_its_settings_are_told(workdir, judge):
  (row,) = score(workdir, f"--config.eval.classifier={judge}")
  assert row["settings"]["step"] == 6 and row["settings"]["num"] == 50
  assert row["settings"]["sample.guidance"] == 1.5 and row["settings"]["extractor"] == "pixels"
  wanted = {
    "frechet",
    "kid",
    "kid_error",
    "precision",
    "recall",
    "density",
    "coverage",
    "accuracy",
    "near_copies",
  }
  assert row["figures"].keys() == wanted and row["figures"]["frechet"] > 1
  assert set(row["accuracy_per_class"]) == set("0123456789")
  for name in ("report.html", "evaluation/grid.png", "evaluation/neighbours.png"):
    assert (workdir / name).stat().st_size > 0
  drawn_images, labels = samples(workdir)
  assert len(drawn_images) == 50 and labels.tolist() == [i % 10 for i in range(50)]
  assert np.mean(list(row["accuracy_per_class"].values())) == pytest.approx(row["figures"]["accuracy"])


def test_the_samples_of_a_run_score_as_the_run_does(workdir, judge):
  arguments = (f"--config.eval.features=classifier:{judge}",)
  (of_run,) = score(workdir, *arguments)
  np.savez(workdir / "samples.npz", *samples(workdir))
  of_file = score(workdir, *arguments, f"--config.eval.images={workdir}/samples.npz")[-1]
  close(of_file["figures"], of_run["figures"])
  assert of_file["accuracy_per_class"] == of_run["accuracy_per_class"]


def test_figures_do_not_depend_on_the_batches(workdir):
  (one,) = score(workdir, "--config.sample.batch_size=7")
  (again,) = score(workdir, "--config.sample.batch_size=50")
  close(one["figures"], again["figures"], rtol=0.02)  # another batch shape rounds a few bytes differently
  assert one["settings"] == again["settings"]


def count_draws(monkeypatch, dies_after=None):
  """The numbers of the first images of all batches that are drawn from now on."""
  make_draw, firsts = draw.make_draw, []

  def counted(*arguments):
    drawing = make_draw(*arguments)

    def one(state, index, label, record=False):
      if len(firsts) == dies_after:
        raise KeyboardInterrupt
      firsts.append(int(index[0]))
      return drawing(state, index, label, record)

    return one

  monkeypatch.setattr(draw, "make_draw", counted)
  return firsts


def test_a_killed_evaluation_goes_on_without_drawing_again(made, workdir, tmp_path, monkeypatch):
  ten = "--config.sample.batch_size=10"
  whole = shutil.copytree(made, tmp_path / "whole")
  undisturbed = score(whole, ten)
  with monkeypatch.context() as patched:
    firsts = count_draws(patched, dies_after=3)
    assert main(["--mode", "evaluate", "--workdir", str(workdir), *FEW, ten]) == 130
    assert firsts == [0, 10, 20]
  (damaged,) = workdir.glob("evaluation/*/00000010.npz")
  damaged.write_bytes(damaged.read_bytes()[:100])
  firsts = count_draws(monkeypatch)
  assert score(workdir, ten) == undisturbed
  assert firsts == [10, 30, 40]
  assert (workdir / "evaluation.json").read_bytes() == (whole / "evaluation.json").read_bytes()
  assert score(workdir, ten, "--config.eval.num=60")[-1]["settings"]["num"] == 60
  assert firsts[3:] == [50]  # more images of the same kind go on from there
  score(workdir, ten, "--config.sample.seed=1")
  assert firsts[4:] == [0, 10, 20, 30, 40]  # others do not


def test_another_checkpoint_of_the_same_step_is_drawn_anew(workdir, monkeypatch):
  score(workdir)
  firsts = count_draws(monkeypatch)
  score(workdir)
  assert not firsts
  shutil.rmtree(workdir / "checkpoints")
  small.run(workdir, "dit", "seed=3")
  score(workdir)
  assert firsts


def test_labels_as_in_the_data_are_as_frequent_as_there():
  config = small.config("dit", "eval.labels=data")
  label = drawn.labels(config, 1797)
  every = np.concatenate([batch[1] for batch in images.of_split(config.data, "train").batches()])
  np.testing.assert_array_equal(np.bincount(label), np.bincount(every))
  np.testing.assert_array_equal(drawn.labels(config, 30), label[:30])
  assert (drawn.labels(config, 2000)[1797:] == label[:203]).all()


@pytest.mark.slow
def test_a_sweep_is_an_evaluation_for_each_value(workdir):
  rows = score(workdir, "--config.eval.sweep_guidance=0,1,1.5,3", "--config.eval.sweep_steps=2,3")
  varied = [(row["settings"]["sample.guidance"], row["settings"]["sample.steps"]) for row in rows]
  # guidance 1.5 with 3 steps is in both sweeps, and in the table once
  assert varied == [(0, 3), (1, 3), (3, 3), (1.5, 2), (1.5, 3)]
  alone = score(workdir, "--config.sample.guidance=1")
  assert len(alone) == 5 and alone[-1] == rows[1]
  assert len({row["figures"]["frechet"] for row in rows}) == 5


def test_a_reference_is_made_and_compared_with(workdir, tmp_path, capsys):
  file = tmp_path / "reference.npz"
  status = main(
    ["--mode", "evaluate", "--workdir", str(workdir), *FEW, f"--config.eval.make_reference={file}"]
  )
  assert status == 0 and "pixels of 300 images (train[:300])" in capsys.readouterr().err
  (made,) = score(workdir, f"--config.eval.reference={file}")
  (again,) = score(workdir)
  close(made["figures"], again["figures"])
  foreign = score(workdir, f"--config.eval.reference={file}", "--config.data.split=train[300:]")
  assert "near_copies" not in foreign[-1]["figures"]
  assert "Copies of training images are not looked for" in capsys.readouterr().err


def test_copies_are_looked_for_among_the_training_images_whatever_is_compared_with(workdir):
  row = score(
    workdir, "--config.eval.reference_split=train[300:600]", "--config.eval.images=data:train[:300]"
  )[-1]
  assert row["figures"]["near_copies"] == 1 and row["figures"]["precision"] < 1


def test_a_run_from_before_there_were_evaluations_can_be_scored(workdir):
  config = json.loads((workdir / "config.json").read_text())
  del config["eval"], config["sample"]["classifier"]
  (workdir / "config.json").write_text(json.dumps(config))
  assert len(score(workdir)) == 1


BAD = {
  "labels": (["--config.eval.labels=balance"], "unknown value of config.eval.labels 'balance'. Did you mean 'balanced'?"),
  "features": (["--config.eval.features=pixel"], "unknown features (config.eval.features) 'pixel'. Did you mean 'pixels'?"),
  "few": (["--config.eval.num=9"], "config.eval.num is 9; scores need at least 10 images."),
  "few images": (["--config.eval.images=data:train[:9]"], "config.eval.images is 9; scores need at least 10 images."),
  "sweep": (["--config.eval.sweep_guidance=1,x"], "config.eval.sweep_guidance is '1,x'; give numbers as in 1,2,3."),
  "sweep of steps": (["--config.eval.sweep_steps=1.5"], "config.eval.sweep_steps is '1.5'"),
  "wrong sweep": (["--config.eval.sweep_steps=0"], "config.sample.steps is 0; it must be at least 1."),
  "sweep of images": (["--config.eval.sweep_steps=1", "--config.eval.images=a.npz"], "config.eval.sweep_steps draws images"),
  "two references": (["--config.eval.reference=a.npz", "--config.eval.reference_split=test"], "both say what to compare with"),
  "reference": (["--config.eval.reference={tmp}/none.npz"], "there is no file '{tmp}/none.npz' (config.eval.reference)"),
  "split": (["--config.eval.reference_split=test"], "no 'test'"),
  "name of the reference": (["--config.eval.make_reference={tmp}/a.txt"], "'{tmp}/a.txt' (config.eval.make_reference) should end in .npz."),
  "images": (["--config.eval.images={tmp}/none.npz"], "there is no file '{tmp}/none.npz' (config.eval.images)"),
  "split of images": (["--config.eval.images=data:test"], "no 'test'"),
  "classifier": (["--config.eval.classifier={tmp}"], "there is no run in '{tmp}'"),
  "sampler": (["--config.sample.sampler=dddim"], "Did you mean 'ddim'?"),
  "guidance": (["--config.eval.sweep_classifier_scale=1,2"], "config.sample.classifier_scale"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_status_2(case, made, tmp_path, capsys):
  arguments, message = BAD[case]
  fill = lambda text: text.replace("{tmp}", str(tmp_path))
  assert main(["--mode", "evaluate", "--workdir", str(made), *FEW, *map(fill, arguments)]) == 2
  text = capsys.readouterr().err
  lines = [line for line in text.splitlines() if line.startswith("jaxdiff: ")]
  assert len(lines) == 1 and fill(message) in lines[0], text
  assert "Traceback" not in text


def test_what_cannot_be_scored_is_told(made, judge, tmp_path, capsys):
  assert main(["--mode", "evaluate", "--workdir", str(judge), *FEW]) == 2
  assert "draws no images: its task is 'classifier'" in capsys.readouterr().err
  (tmp_path / "config.json").write_bytes((made / "config.json").read_bytes())
  assert main(["--mode", "evaluate", "--workdir", str(tmp_path), *FEW]) == 2
  assert "there is no checkpoint in" in capsys.readouterr().err
  (tmp_path / "evaluation.json").write_text("[]")
  assert (
    main(["--mode", "evaluate", "--workdir", str(tmp_path), *FEW, "--config.eval.images=data:train[:50]"])
    == 2
  )
  assert "is not what an evaluation wrote" in capsys.readouterr().err


def test_images_need_no_run(tmp_path):
  arguments = ["--config", "configs/dit_cfg.py", "--workdir", str(tmp_path / "new"), *FEW]
  assert main(["--mode", "evaluate", *arguments, "--config.eval.images=data:train[300:400]"]) == 0
  (row,) = report.read(tmp_path / "new")
  assert row["figures"]["frechet"] > 0 and row["settings"]["images"] == "digits train[300:400]"


def test_settings_that_a_sweep_compiles_anew_are_told_apart():
  config = small.config("dit")
  kinds = []
  for guidance in (0.0, 1.0, 1.5, 3.0):
    config.sample.guidance = guidance
    kinds.append(evaluate.compiled_as(config.sample))
  assert len(set(kinds)) == 3 and kinds[2] == kinds[3]


@pytest.mark.parametrize("more", [(), ("eval.labels=data",), ("sample.labels=3",)])
def test_where_no_label_has_a_part_there_are_none(more):
  label = drawn.labels(small.config("dit", "sample.guidance=0", *more), 20)
  assert label.dtype == np.int32 and (label == -1).all()


def test_images_are_drawn_again_where_what_they_are_drawn_by_has_changed(made, tmp_path, monkeypatch):
  """A file of several, one in a folder, the module of a function: each makes another folder of batches."""
  config = small.config("dit")
  state = runs.restore(config, made, runs.one_device()).state
  monkeypatch.syspath_prepend(tmp_path)
  paths = [tmp_path / name for name in ("a.png", "b.png", "many/c.png", "my_judge.py")]
  paths[2].parent.mkdir()
  for path in paths:
    path.write_text("")
  importlib.import_module("my_judge")
  config.sample.hint, config.sample.classifier = (
    f"{paths[0]}, {paths[1]},{paths[2].parent}",
    "my_judge:brightness",
  )
  place = drawn.folder(tmp_path, config, state)
  assert drawn.folder(tmp_path, config, state) == place
  for i, path in enumerate(paths):
    os.utime(path, ns=(0, (2**62 + i)))
    assert drawn.folder(tmp_path, config, state) != place, path
    place = drawn.folder(tmp_path, config, state)


def test_a_branchs_images_are_a_function_of_how_hints_are_made(made, tmp_path):
  config = small.config("dit")
  state = runs.restore(config, made, runs.one_device()).state
  of = lambda task, hint: drawn.folder(tmp_path, changed(config, task, hint), state)
  assert of("controlnet", "canny(low=20.0)") != of("controlnet", "canny")
  assert of("denoise", "canny(low=20.0)") == of("denoise", "canny"), "no hint has a part"


def changed(config, task, hint):
  own = config.copy_and_resolve_references()
  own.task, own.data.hint = task, hint
  return own
