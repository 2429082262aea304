"""The command line: what a user types, in this process; for signals and exit codes see test_processes.py."""

import json
import os
import pathlib
import re

import jax
import numpy as np
import pytest

from jaxdiff import checkpoints, configuration, locks, runs, tasks
from jaxdiff import main as main_module
from jaxdiff.main import main
from tests import small


def run(*arguments, capsys=None):
  status = main([*arguments])
  return status, capsys.readouterr().err if capsys else ""


def train(workdir, *arguments, name="dit", capsys=None):
  tiny = [f"--{line}" for line in small.arguments(name)]
  return run(
    "--config", f"configs/{name}_cfg.py", "--workdir", str(workdir), *tiny, *arguments, capsys=capsys
  )


def last_state(workdir):
  """The newest checkpoint's state as NumPy arrays."""
  config = configuration.from_json((workdir / "config.json").read_text())
  task = tasks.make(config, tasks.optimizer(config))
  abstract = runs.one_device().abstract(lambda: tasks.initial_state(config, task))
  state, _ = checkpoints.restore(checkpoints.open_manager(workdir), abstract)
  return jax.tree.map(np.asarray, state.replace(rng=jax.random.key_data(state.rng)))


def equal(a, b):
  return jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype and bool((x == y).all()), a, b))


@pytest.fixture(scope="module", params=["dit", pytest.param("unet", marks=pytest.mark.slow)])
def trained(request, tmp_path_factory):
  workdir = tmp_path_factory.mktemp(request.param)
  os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
  assert train(workdir, name=request.param)[0] == 0
  return request.param, workdir


def test_training_leaves_what_it_promises(trained):
  _, workdir = trained
  for name in (
    "config.json",
    "metrics.jsonl",
    "loss.png",
    "denoising.png",
    "samples/0000003.png",
    "samples/0000006.png",
  ):
    assert (workdir / name).stat().st_size > 0, name
  assert sorted(int(p.name) for p in (workdir / "checkpoints").iterdir()) == [4, 6]
  assert list((workdir / "tensorboard").glob("events*"))
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert rows[-1]["step"] == 6
  assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
  assert {"loss", "grad_norm", "learning_rate", "images_per_s", "skipped", "goodput"} <= set(rows[0])
  assert rows[-1].keys() >= {
    f"time/{kind}" for kind in ("start", "compile", "data", "checkpoint", "preview", "step")
  }
  assert 0 < rows[-1]["goodput"] < 1


def test_a_complete_run_started_again_changes_nothing(trained, capsys):
  name, workdir = trained
  before = last_state(workdir)
  status, text = train(workdir, name=name, capsys=capsys)
  assert status == 0 and "This run is complete: 6 of 6 steps" in text
  assert equal(before, last_state(workdir))


@pytest.mark.parametrize("mode", ["train", "sample"])
def test_a_bucket_is_not_taken_for_a_folder(mode, capsys):
  given = ("--config", "configs/dit_cfg.py") if mode == "train" else ()
  status, text = run("--mode", mode, *given, "--workdir", "gs://bucket/run", capsys=capsys)
  assert (
    status == 2
    and "--workdir gs://bucket/run is an address" in text
    and "--config.train.checkpoint_dir=gs://" in text
  )
  assert not os.path.exists("gs:")


def test_sampling_needs_the_workdir_alone(trained, capsys):
  _, workdir = trained
  with locks.hold(workdir):  # as while a run trains there
    status, text = run(
      "--mode", "sample", "--workdir", str(workdir), "--config.sample.num=7", "--config.sample.labels=3,1",
      "--config.sample.batch_size=4", capsys=capsys,
    )  # fmt: skip
  assert status == 0, text
  arrays = np.load(workdir / "samples.npz", allow_pickle=False)
  assert arrays["arr_0"].shape == (7, 8, 8, 1) and arrays["arr_0"].dtype == np.uint8
  assert arrays["arr_1"].tolist() == [3, 1, 3, 1, 3, 1, 3]
  assert (workdir / "samples.png").stat().st_size > 0


def test_images_do_not_depend_on_the_batch_size_but_on_the_seed(trained):
  _, workdir = trained
  drawn = {}
  for key, options in {
    "4": ["--config.sample.batch_size=4"],
    "12": ["--config.sample.batch_size=12"],
    "seed": ["--config.sample.batch_size=4", "--config.sample.seed=1"],
    "guided": ["--config.sample.batch_size=4", "--config.sample.guidance=1000"],
  }.items():
    assert run("--mode", "sample", "--workdir", str(workdir), "--config.sample.num=12", *options)[0] == 0
    drawn[key] = np.load(workdir / "samples.npz")["arr_0"].astype(int)
  assert np.abs(drawn["4"] - drawn["12"]).max() <= 1  # float rounding of another batch shape, then uint8
  assert (drawn["seed"] != drawn["4"]).mean() > 0.1
  assert (drawn["guided"] != drawn["4"]).any()


def test_a_second_run_in_a_workdir_is_refused(tmp_path, capsys):
  with locks.hold(tmp_path):
    status, text = train(tmp_path, capsys=capsys)
  lines = [line for line in text.splitlines() if line.startswith("jaxdiff: ")]
  assert status == 2 and "Traceback" not in text and len(lines) == 1
  assert re.match(rf"jaxdiff: process {os.getpid()} on \S+ trains in '{tmp_path}'\. .*--workdir", lines[0])
  assert not (tmp_path / "checkpoints").exists()


def test_a_changed_config_is_refused_and_can_be_insisted_on(tmp_path, capsys):
  assert train(tmp_path, "--config.train.steps=2", capsys=capsys)[0] == 0
  status, text = train(tmp_path, "--config.train.steps=4", "--config.optim.ema_decay=0.9", capsys=capsys)
  assert status == 2
  assert "optim.ema_decay: 0.995 -> 0.9; train.steps: 2 -> 4" in text and "--allow_config_change" in text
  assert train(tmp_path, "--config.train.steps=4", "--allow_config_change")[0] == 0
  assert last_state(tmp_path).step == 4
  assert configuration.from_json((tmp_path / "config.json").read_text()).train.steps == 4


def test_a_flipped_bit_in_the_newest_checkpoint_costs_only_its_steps(tmp_path, capsys):
  assert train(tmp_path)[0] == 0
  wanted = last_state(tmp_path)
  largest = max((tmp_path / "checkpoints" / "6" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 1
  largest.write_bytes(data)
  status, text = train(tmp_path, capsys=capsys)
  assert status == 0 and "The checkpoint of step 6 is damaged" in text
  assert equal(last_state(tmp_path), wanted)
  steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert steps == sorted(set(steps)) and steps[-1] == 6


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, capsys):
  status, text = train(
    tmp_path, "--config.optim.learning_rate=1e30", "--config.optim.clip_norm=0", "--config.train.checkpoint_every=1",
    "--config.optim.warmup_steps=0", capsys=capsys,
  )  # fmt: skip
  assert status == 2
  step = int(re.search(r"is not finite at step (\d+)\. The last good checkpoint is step (\d+)", text)[1])
  assert step == 2
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(last_state(tmp_path).params))
  assert "config.optim.learning_rate" in text and "Traceback" not in text


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["mesh", "pmap"])
def test_pmap_and_mesh_resume_each_others_runs(tmp_path, strategy):
  other = {"mesh": "pmap", "pmap": "mesh"}[strategy]
  assert train(tmp_path, f"--config.parallel.strategy={strategy}", "--config.train.steps=2")[0] == 0
  status, _ = train(
    tmp_path, f"--config.parallel.strategy={other}", "--config.train.steps=4", "--allow_config_change"
  )
  assert status == 0 and last_state(tmp_path).step == 4


BAD = {
  "unknown dataset": (["--config.data.source=digitz"], "digits"),
  "empty folder": (["--config.data.source=folder:{tmp}/empty"], "{tmp}/empty"),
  "label outside": (["--config.sample.labels=3,12"], "label 12 (config.sample.labels) is not one of this model's 10 classes"),
  "classes": (["--config.model.num_classes=5"], "config.model.num_classes"),
  "patch": (["--config.data.image_size=9", "--config.train.batch_size=8"], "image size 9 is not divisible by patch size 2"),
  "batch": (["--config.train.batch_size=6"], "batch size 6 (config.train.batch_size) is not divisible by 4 devices. Use 8."),
  "more than data": (["--config.train.batch_size=4000"], "1797"),
  "workdir": (["--workdir", "{tmp}/file/run"], "Give another with --workdir"),
  "no dropout": (["--config.diffusion.label_dropout=0"], "guidance 1.5 (config.sample.guidance) needs a model trained with label dropout"),
  "sampler": (["--config.sample.sampler=dddim"], "unknown sampler 'dddim'. Did you mean 'ddim'?"),
  "grid": (["--config.sample.grid=unifrom"], "Did you mean 'uniform'?"),
  "few steps": (["--config.sample.grid=leading", "--config.sample.steps=2000"], "do not make a falling grid within [0, 1] (config.sample.grid='leading', config.sample.steps=2000)"),
  "threshold": (["--config.sample.threshold=dinamic"], "unknown threshold 'dinamic'. Did you mean 'dynamic'?"),
  "interval": (["--config.sample.guidance_interval=5,1"], "config.sample.guidance_interval is (5.0, 1.0); give two noise levels"),
  "variance": (["--config.sample.sampler=ddpm(variance=learned)"], "needs a model trained with config.model.learn_sigma=True"),
  "variance's name": (["--config.sample.sampler=ddpm(variance=lerned)"], "unknown variance 'lerned'"),
  "strength alone": (["--config.sample.strength=0.5"], "config.sample.strength is 0.5, which needs a --config.sample.image too."),
  "rescale alone": (["--config.sample.guidance_rescale=0.5", "--config.sample.guidance=1"], "which needs a --config.sample.guidance too."),
  "rescale": (["--config.sample.guidance_rescale=7"], "config.sample.guidance_rescale is 7; give a share from 0 to 1."),
  "eta": (["--config.sample.sampler=ddim(eta=2)"], "the sampler 'ddim(eta=2)' cannot be: eta 2.0 is not in [0, 1]."),
  "percentile": (["--config.sample.threshold=dynamic(percentile=99.5)"], "percentile 99.5 is not in (0, 1]"),
  "karras": (["--config.sample.grid=karras(rho=0)"], "rho must be above 0"),
  "mask alone": (["--config.sample.mask=a.png"], "config.sample.mask is 'a.png', which needs a --config.sample.image too."),
  "no image": (["--config.sample.image={tmp}/none.png"], "cannot read the image '{tmp}/none.png': No such file or directory."),
  "not an image": (["--config.sample.image={tmp}/file"], "'{tmp}/file' is not an image that can be read."),
  "strength": (["--config.sample.image={tmp}/file", "--config.sample.strength=1.5"], "config.sample.strength is 1.5."),
  "flag": (["--modes=sample"], "cannot read the argument '--modes=sample'. Did you mean --mode? Overrides are written"),
  "flag's type": (["--heartbeat_seconds", "soon"], "argument --heartbeat_seconds: invalid int value: 'soon'. See --help."),
  "latents": (["--config.data.channels=4"], "config.data.channels is 4. Use 1 (gray) or 3 (RGB); no source reads latents."),
  "mode": (["--mode", "trian"], "unknown mode 'trian'. Did you mean 'train'?"),
  "steps": (["--config.sample.steps=0"], "config.sample.steps is 0; it must be at least 1."),
  "schedule": (["--config.diffusion.schedule=linear(num_steps=0)"], "the schedule 'linear(num_steps=0)' cannot be: "),
  "model": (["--config.model.name=dot"], "'dot'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_status_2(case, tmp_path, capsys):
  arguments, message = BAD[case]
  (tmp_path / "empty").mkdir()
  (tmp_path / "file").write_text("")
  fill = lambda text: text.replace("{tmp}", str(tmp_path))
  status, text = train(tmp_path / "run", *map(fill, arguments), capsys=capsys)
  assert status == 2
  lines = [line for line in text.splitlines() if line.startswith("jaxdiff: ")]
  assert len(lines) == 1 and fill(message) in lines[0], text
  assert "Traceback" not in text


def test_the_unets_depth_and_an_image_that_does_not_fit_it(tmp_path, capsys):
  status, text = train(tmp_path, "--config.data.image_size=9", name="unet", capsys=capsys)
  assert status == 2 and "image size 9 is not divisible by" in text


def test_a_model_without_classes_is_drawn_from(tmp_path):
  small.run(tmp_path, "dit", "model.num_classes=0", "sample.guidance=1")
  assert run("--mode", "sample", "--workdir", str(tmp_path), "--config.sample.num=4")[0] == 0
  assert (np.load(tmp_path / "samples.npz")["arr_1"] == -1).all()


@pytest.mark.parametrize(
  ("arguments", "folder"),
  [
    ((), "checkpoints/dit_digits"),
    (("--config.name=mine",), "checkpoints/mine"),
    (("--config.name=mine", "--workdir=there"), "there"),
  ],
)
def test_a_run_lies_under_its_name_unless_a_workdir_is_given(arguments, folder, monkeypatch):
  found = {}
  monkeypatch.setitem(
    main_module.MODES, "train", lambda config, workdir, flags: found.update(workdir=workdir) or 0
  )
  assert run("--config", "configs/dit_cfg.py", *arguments)[0] == 0
  assert found["workdir"] == pathlib.Path(folder)


def test_sampling_where_there_is_nothing(tmp_path, capsys):
  status, text = run("--mode", "sample", "--workdir", str(tmp_path), capsys=capsys)
  assert status == 2 and "there is no run in" in text
  (tmp_path / "config.json").write_text(configuration.to_json(small.config("dit")))
  status, text = run("--mode", "sample", "--workdir", str(tmp_path), capsys=capsys)
  assert status == 2 and "there is no checkpoint in" in text
  status, text = run("--mode", "sample", capsys=capsys)
  assert status == 2 and "give a config" in text


@pytest.mark.slow
def test_a_prepared_set_trains_to_the_same_parameters_as_its_source(tmp_path, capsys):
  options = ["--config.prepare.name=copy", f"--config.prepare.out={tmp_path}"]
  status, text = run("--config", "configs/dit_cfg.py", "--mode", "prepare", *options, capsys=capsys)
  assert status == 0 and f"--config.data.source=tfds:{tmp_path}/copy/1.0.0" in text
  states = []
  for source in ("digits", f"tfds:{tmp_path}/copy/1.0.0"):
    workdir = tmp_path / source.split(":")[0]
    assert train(workdir, f"--config.data.source={source}", "--config.train.steps=2")[0] == 0
    states.append(last_state(workdir))
  assert equal(*states)
  status, text = run("--config", "configs/dit_cfg.py", "--mode", "prepare", *options, capsys=capsys)
  assert status == 2 and "is already there" in text
