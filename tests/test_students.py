"""A distillation from the command line: what each round leaves, and that it goes on exactly where it was stopped."""

import json
import os
import shutil

import jax
import numpy as np
import pytest

from jaxdiff import checkpoints, configuration, data, draw, optim, parallel, runs, stores, students, tasks
from jaxdiff.evaluation import figures, reference
from jaxdiff.main import main
from tests import small

STEPS = (4, 2, 1)


def train(workdir, teacher, *more):
  lines = [*small.arguments("distill"), f"config.teacher.workdir={teacher}", "config.train.steps=0", *more]
  arguments = [f"--{line}" for line in lines]
  return main(["--config", "configs/distill_cfg.py", "--workdir", str(workdir), *arguments])


def state_of(workdir):
  config = configuration.of_run(workdir)
  task = tasks.make(config, tasks.optimizer(config))
  abstract = jax.eval_shape(lambda: tasks.initial_state(config, task))
  state, _ = checkpoints.restore(checkpoints.open_manager(workdir), abstract)
  return jax.tree.map(np.asarray, state.replace(rng=jax.random.key_data(state.rng)))


def equal(one, other):
  return jax.tree.all(jax.tree.map(np.array_equal, one, other))


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
  """(workdir, workdir of the teacher)."""
  os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
  teacher, workdir = tmp_path_factory.mktemp("teacher"), tmp_path_factory.mktemp("students")
  small.run(teacher, "dit")
  assert train(workdir, teacher) == 0
  return workdir, teacher


def test_each_round_leaves_its_student_as_a_run(distilled):
  workdir, _ = distilled
  for count in STEPS:
    folder = students.folder_of(workdir, count)
    own = configuration.of_run(folder)
    assert (own.task, own.sample.steps, own.sample.only_steps) == ("denoise", count, count)
    assert "teacher" not in own and "distill" not in own
    assert np.load(folder / "samples.npz")["arr_0"].shape == (12, 8, 8, 1)
    assert (folder / "samples.png").stat().st_size > 0
  assert (workdir / "rounds.png").stat().st_size > 0
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert [row["student/num_steps"] for row in rows if "student/num_steps" in row] == list(STEPS)
  head, _, *table = [
    line.strip("| ").split(" | ") for line in (workdir / "rounds.md").read_text().splitlines()
  ]
  assert head == ["steps", "loss", "seconds an image"]
  assert [line[0] for line in table] == [str(count) for count in STEPS]
  losses = [row["loss"] for row in rows if row["step"] in (2, 5, 8) and "loss" in row]
  assert [float(line[1]) for line in table] == pytest.approx(losses, rel=1e-3)


def test_a_student_lies_beside_the_checkpoints_of_its_run(distilled, tmp_path):
  folder, store = students.folder_of(distilled[0], 2), tmp_path / "disk" / "steps_0002"
  own = configuration.of_run(folder)
  student = runs.restore(own, folder, runs.one_device()).state
  config = small.config("distill", f"train.checkpoint_dir={tmp_path}/disk/")
  own.train.checkpoint_dir = students.config_of(config, 2).train.checkpoint_dir
  assert stores.of(own, tmp_path) == store
  for _ in range(2):  # the second time as when a round is taken again
    students.export(tmp_path / "steps_0002", own, student, 4, ("a", "b"))
  assert [path.name for path in (store / "checkpoints").iterdir()] == ["4"]
  found = runs.restore(own, tmp_path / "steps_0002", runs.one_device())
  assert found.label_names == ("a", "b") and equal(found.state.params, student.params)


def test_students_are_scored_against_statistics_that_are_made_once(distilled, tmp_path, monkeypatch):
  monkeypatch.setattr(figures, "KID_SUBSETS", 5)
  made, of_gathered = [], reference.of_gathered
  monkeypatch.setattr(reference, "of_gathered", lambda *given: made.append(given) or of_gathered(*given))
  config = configuration.of_run(distilled[0])
  strategy = runs.one_device()
  run = runs.restore(config, distilled[0], strategy)
  config.data.split, config.sample.num = "train[:100]", 10
  config.eval.update({"every": 1, "features": "pixels", "quick_num": 10})
  source = data.load(config.data.source, config.data.split)
  preview = students.make_preview(config, run.task, strategy, source, tmp_path)
  for step, count in enumerate(STEPS[:2]):
    shown = preview(run.state.replace(num_steps=np.int32(count)), step)
    assert shown.numbers["eval/frechet"] > 0
  assert len(made) == 1
  assert [path.parent for path in tmp_path.rglob("reference-*.npz")] == [tmp_path / "evaluation"]


def test_the_last_student_is_the_runs_average(distilled):
  workdir, _ = distilled
  student = state_of(students.folder_of(workdir, 1))
  assert equal(student.params, optim.ema_params(state_of(workdir)))
  assert equal(student.params, optim.ema_params(student))


def test_a_student_samples_in_its_steps_and_in_no_others(distilled, capsys):
  folder = students.folder_of(distilled[0], 2)
  before = np.load(folder / "samples.npz")["arr_0"]
  assert main(["--mode", "sample", "--workdir", str(folder), "--config.sample.num=12"]) == 0
  assert np.array_equal(np.load(folder / "samples.npz")["arr_0"], before)
  for setting, right in (
    ("steps=4", "steps=2"),
    ("sampler=dpmpp_2m", "sampler=ddim"),
    ("grid=quadratic", "grid=uniform"),
  ):
    assert main(["--mode", "sample", "--workdir", str(folder), f"--config.sample.{setting}"]) == 2
    told = capsys.readouterr().err
    assert (
      "this student has learned 2 steps of ddim on the uniform grid" in told
      and f"--config.sample.{right}" in told
    )


@pytest.mark.parametrize("kept", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_goes_on_exactly_across_the_end_of_a_round(distilled, tmp_path, kept):
  """Step 2 ends the first round; step 4 lies in the middle of the second."""
  workdir, teacher = distilled
  again = tmp_path / "again"
  assert train(again, teacher, "config.train.keep_checkpoints=10", "config.train.checkpoint_every=1") == 0
  one = state_of(again)
  assert equal(one, state_of(workdir))
  for step in (again / "checkpoints").iterdir():
    if int(step.name) > kept:
      shutil.rmtree(step)
  shutil.rmtree(students.folder_of(again, 1))
  assert train(again, teacher, "config.train.keep_checkpoints=10", "config.train.checkpoint_every=1") == 0
  assert equal(one, state_of(again))
  assert students.folder_of(again, 1).is_dir()


@pytest.mark.slow
def test_a_round_that_was_killed_while_it_was_left_is_left_again(distilled, tmp_path):
  workdir, teacher = distilled
  again = tmp_path / "again"
  broken = students.folder_of(again, 4)
  (broken / "checkpoints" / "2").mkdir(parents=True)
  (broken / "checkpoints" / "2" / "half").write_text("written")
  assert train(again, teacher) == 0
  assert equal(state_of(broken), state_of(students.folder_of(workdir, 4)))


@pytest.mark.parametrize(
  ("setting", "told"),
  [
    (("eval.every=1", "eval.features=classifier:nowhere"), "there is no run in 'nowhere'"),
    (("sample.labels=12",), "label 12 (config.sample.labels) is not one of this model's 10 classes"),
    (("distill.guidance_range=3",), "give the lowest scale and the highest, as 1.0,4.0"),
  ],
)
def test_what_a_round_could_not_show_is_told_before_it(distilled, tmp_path, capsys, setting, told):
  more = [f"config.{line}" for line in setting]
  assert train(tmp_path / "students", distilled[1], *more) == 2
  text = capsys.readouterr().err
  assert told in text and "train " not in text


def test_a_teacher_that_is_not_there_is_told_with_the_command_that_makes_it(tmp_path, capsys):
  assert train(tmp_path / "students", tmp_path / "none") == 2
  told = capsys.readouterr().err
  assert "(config.teacher.workdir)" in told and "--config configs/dit_cfg.py" in told


def test_a_student_is_no_base_of_a_control_branch(distilled, tmp_path, capsys):
  student = students.folder_of(distilled[0], 2)
  arguments = [
    "--config",
    "configs/controlnet_cfg.py",
    "--workdir",
    str(tmp_path),
    f"--config.base.workdir={student}",
  ]
  assert main(arguments) == 2
  told = capsys.readouterr().err
  assert "is a student of 2 steps" in told and "Train the branch on its teacher" in told


@pytest.mark.slow
def test_a_student_teaches_from_half_its_steps_on(distilled, tmp_path, capsys):
  student = students.folder_of(distilled[0], 4)
  assert train(tmp_path, student) == 2
  assert (
    "is a student of 4 steps, so its own student takes 2, not 4 (config.distill.start_steps)"
    in capsys.readouterr().err
  )
  assert train(tmp_path, student, "config.distill.start_steps=2") == 0
  assert students.folder_of(tmp_path, 2).is_dir()


@pytest.mark.slow
def test_students_of_any_scale_draw_at_the_cost_of_one(distilled, tmp_path, capsys):
  assert (
    train(tmp_path, distilled[1], "config.distill.guidance_range=1.0,3.0", "config.sample.guidance=2.0") == 0
  )
  student = students.folder_of(tmp_path, 1)
  config, calls = configuration.of_run(student), []
  assert config.model.guidance_range == (1.0, 3.0) and config.sample.guidance == 2.0
  config.sample.guidance = 3.0
  run = runs.restore(config, student, parallel.mesh(config.parallel, 4))

  def counted(params, state):
    def denoise(z, t, cond):
      calls.append((z.shape[0], cond.guidance))
      return run.task.denoiser(params, state)(z, t, cond)

    return denoise

  drawing = draw.make_draw(config, run.task._replace(denoiser=counted), lambda rows: rows)
  state = jax.tree.map(np.asarray, run.state.replace(rng=jax.random.key_data(run.state.rng)))
  drawing(state, np.arange(4), np.arange(4))
  assert [rows for rows, _ in calls] == [4]
  assert main(["--mode", "sample", "--workdir", str(student), "--config.sample.guidance=5"]) == 2
  assert "outside what this student has learned, 1 to 3" in capsys.readouterr().err
