"""A classifier's accuracy by noise level: how it is measured, and where a run leaves it."""

import json

import numpy as np
import pytest

from jaxdiff import accuracy, data
from jaxdiff.diffusion import schedules
from jaxdiff.main import main
from jaxdiff.types import NULL_LABEL
from tests import small
from tests.test_main import equal, last_state


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_a_level_is_the_angle_of_noise_to_signal_in_every_schedule(name):
  schedule, levels = schedules.SCHEDULES[name](), np.linspace(0.1, 0.9, 9)
  t = accuracy.times_of(schedule, levels)
  found = np.arctan2(schedule.sigma(t), schedule.alpha(t)) * 2 / np.pi
  np.testing.assert_allclose(found, levels, atol=1e-9)
  assert accuracy.times_of(schedule, np.array([0.0, 1.0])).tolist() == [0, 1]


def test_in_the_cosine_schedule_a_level_is_the_time():
  """Which truncates log-SNR at +-20, so that t and the angle differ by 6e-5 at its ends."""
  levels = np.linspace(0, 1, 11)
  np.testing.assert_allclose(accuracy.times_of(schedules.cosine(), levels), levels, atol=1e-4)


def test_a_perfect_reader_is_right_where_there_is_no_noise_and_guesses_where_there_is_nothing_else(
  monkeypatch,
):
  """One that compares z with the clean images: 100% at level 0, about 10% at level 1."""
  import jax
  import jax.numpy as jnp

  source = data.load("digits")
  config = small.config("classifier")
  batch = next(data.epoch(source, config.data, 500))
  clean = jnp.asarray(batch["image"], jnp.float32).reshape(500, -1) / 127.5 - 1
  by_class = jnp.asarray(np.eye(10, dtype=np.float32)[batch["label"]])

  def nearest(config):
    def log_probs(params, z, t):
      flat = z.reshape(len(z), -1)
      distance = ((flat[:, None] - clean[None]) ** 2).sum(-1)
      return jax.nn.one_hot(jnp.argmin(distance, axis=1), 500) @ by_class

    return log_probs

  monkeypatch.setattr(accuracy.classifier, "make_log_probs", nearest)
  shares = np.asarray(accuracy.make_measure(config)({}, batch)["top1"])
  assert shares[0] == 1 and abs(shares[-1] - 0.1) < 4 * (0.09 / 500) ** 0.5
  assert (np.diff(shares) <= 0.03).all()


def test_examples_are_labelled_of_all_classes_and_divide_by_the_devices():
  """Four devices here; a source sorted by class, with some labels missing."""
  labels = np.repeat(np.arange(10), 301)
  labels[::7] = NULL_LABEL
  images = np.zeros((3010, 8, 8, 1), np.uint8)
  source = data.base.from_arrays("sorted", images, labels, tuple(map(str, range(10))))
  batch = accuracy._examples(source, small.config("classifier").data)
  assert len(batch["label"]) % 4 == 0 and 800 < len(batch["label"]) <= accuracy.EXAMPLES
  assert sorted(set(batch["label"].tolist())) == list(range(10))


def train(workdir, *arguments):
  tiny = [f"--{line}" for line in small.arguments("classifier")]
  return main(["--config", "configs/classifier_cfg.py", "--workdir", str(workdir), *tiny, *arguments])


def rows(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


CONSTANT = "--config.optim.decay=constant"  # so that what a step does is free of when the run ends


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("classifier")
  assert train(workdir, CONSTANT) == 0
  return workdir


def test_a_run_logs_and_draws_its_accuracy_by_noise(trained):
  for name in ("config.json", "loss.png", "accuracy.png"):
    assert (trained / name).stat().st_size > 0
  assert not (trained / "samples").exists() and not (trained / "denoising.png").exists()
  kept_back = [row for row in rows(trained) if "heldout/top1" in row]
  assert [row["step"] for row in kept_back] == [3, 6]
  by_level = [kept_back[-1][f"heldout/top1/noise_{level:.1f}"] for level in np.linspace(0, 1, 11)]
  assert kept_back[-1]["heldout/top1"] == pytest.approx(np.mean(by_level))
  assert all(kept_back[-1][f"heldout/top5/noise_{i / 10:.1f}"] >= by_level[i] for i in range(11))
  trained_on = [row for row in rows(trained) if "loss" in row]
  assert {"top1", "top5"} <= set(trained_on[0])


@pytest.mark.slow
def test_a_stopped_run_ends_as_one_that_never_stopped(trained, tmp_path):
  for steps in (3, 6):
    assert train(tmp_path, f"--config.train.steps={steps}", CONSTANT, "--allow_config_change") == 0
  ends = [last_state(folder) for folder in (trained, tmp_path)]
  assert ends[0].step == 6 and equal(*ends)


@pytest.mark.slow
def test_without_a_held_out_split_it_is_told_that_the_training_data_was_measured(tmp_path):
  options = ["--config.data.heldout=", "--config.train.steps=2", "--config.parallel.strategy=pmap"]
  assert train(tmp_path, *options) == 0
  names = set().union(*rows(tmp_path))
  assert "train/top1" in names and not [name for name in names if name.startswith("heldout")]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--config.data.heldout=test"], "has one split, 'train', and no 'test'"),
    (["--config.model.num_classes=0"], "config.model.num_classes"),
    (["--config.model.patch_size=2"], "there is no config.model.patch_size"),
    (["--config.diffusion.time_density=cleen"], "Did you mean 'clean'?"),
  ],
)
def test_bad_input_is_one_clear_line(arguments, message, tmp_path, capsys):
  assert train(tmp_path, *arguments) == 2
  lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("jaxdiff: ")]
  assert len(lines) == 1 and message in lines[0]


def test_a_classifier_draws_no_images(trained, capsys):
  assert main(["--mode", "sample", "--workdir", str(trained)]) == 2
  assert "draws no images" in capsys.readouterr().err
