"""Runs that start from a trained one: what they take over, what they may not change, and their first state."""

import jax
import numpy as np
import optax
import pytest

from jaxdiff import configuration, optim, parallel, runs, starts, tasks, train
from jaxdiff.errors import UserError
from jaxdiff.main import main
from tests import small

DIGITS = tuple("0123456789")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """(workdir, config) of a base."""
  workdir = tmp_path_factory.mktemp("base")
  return workdir, small.run(workdir, "dit", "diffusion.schedule=sigmoid", "data.random_flip=True")


def started(workdir, *overrides):
  """The config of a branch on the base in workdir, as the command line makes it."""
  lines = [f"--config.{line}" for line in (f"base.workdir={workdir}", "control.blocks=1", *overrides)]
  c = configuration.load("configs/controlnet_cfg.py")
  starts.override(c, lines)
  return c


def test_network_process_and_data_are_the_bases(base):
  workdir, given = base
  c = started(workdir)
  assert c.model == given.model
  assert c.diffusion.schedule == "sigmoid"
  assert c.data.source == "digits" and c.data.image_size == 8 and c.data.channels == 1 and c.data.random_flip


def test_what_is_the_branchs_own_stays(base):
  c = started(base[0])
  assert c.data.hint == "canny" and c.data.heldout == "test"
  assert c.control.label_dropout == 0.5 and c.diffusion.label_dropout == 0.1


def test_the_command_line_wins_over_the_base(base):
  c = started(base[0], "data.random_flip=False", "diffusion.time_density=low_discrepancy")
  assert not c.data.random_flip and c.diffusion.time_density == "low_discrepancy"


def test_a_workdir_alone_goes_on_with_what_was_overridden(base, tmp_path, monkeypatch):
  own = started(base[0], "data.random_flip=False", "data.split=train[:50%]")
  (tmp_path / "config.json").write_text(configuration.to_json(own))
  seen = []
  monkeypatch.setattr(train, "train", lambda config, *others: seen.append(config))
  assert main(["--workdir", str(tmp_path), "--config.train.steps=9"]) == 0
  assert configuration.differences(own.to_dict(), seen[0].to_dict()) == ["train.steps: 2000 -> 9"]


@pytest.mark.parametrize(
  ("override", "told"),
  [
    ("model.width=32", "config.model.width: 16 -> 32: this is settled by the run in"),
    ("data.image_size=16", "config.data.image_size: 8 -> 16: this is settled"),
    ("diffusion.parameterization=eps", "config.diffusion.parameterization: 'v' -> 'eps': this is settled"),
    ("model.blocks=3", "there is no config.model.blocks"),
  ],
)
def test_what_contradicts_the_base_is_refused(base, override, told):
  with pytest.raises(UserError, match=told):
    started(base[0], override)


def test_a_base_that_is_not_there_is_told_with_the_command_that_makes_it(tmp_path):
  with pytest.raises(
    UserError, match=r"no run in .*none.* \(config.base.workdir\).* --config configs/dit_cfg.py:shapes"
  ):
    started(tmp_path / "none")


@pytest.mark.parametrize("task", ["controlnet", "classifier", "distill"])
def test_a_base_of_another_task_is_refused(base, tmp_path, task):
  other = base[1].copy_and_resolve_references()
  other.task = task
  (tmp_path / "config.json").write_text(configuration.to_json(other))
  with pytest.raises(
    UserError, match=rf"\(config.base.workdir\) is of the task '{task}'; .* starts from a denoiser"
  ):
    started(tmp_path)


def test_a_config_for_other_images_than_the_bases_is_refused(base):
  c = configuration.load("configs/controlnet_cfg.py:fashion_mnist")
  with pytest.raises(UserError, match="learnt from 'digits', and this config is for 'idx:"):
    starts.override(c, [f"--config.base.workdir={base[0]}"])


def test_tasks_that_start_from_nothing_are_left_alone():
  one, other = small.config("dit"), small.config("dit")
  starts.override(one, ["--config.model.width=48"])
  configuration.override(other, ["--config.model.width=48"])
  assert one.to_dict() == other.to_dict()


def test_what_a_run_starts_from_is_shared_as_its_state_is(base, monkeypatch):
  workdir, _ = base
  monkeypatch.setattr(parallel, "SMALL_LEAF", 64)
  given, restore = [], starts.runs.restore
  monkeypatch.setattr(starts.runs, "restore", lambda *args: given.append(restore(*args)) or given[-1])
  c = started(workdir)
  c.parallel.fsdp = 4
  task = tasks.make(c, optim.make_optimizer(c.optim, c.train.steps))
  state = starts.fresh_state(c, task, parallel.mesh(c.parallel, 8), DIGITS)
  for params in (given[0].state.params, state.base_params):
    assert max(leaf.size // leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(params)) == 4


def test_classes_of_other_names_are_told(base, caplog):
  c = started(base[0])
  task, strategy = tasks.make(c, tasks.optimizer(c)), parallel.mesh(c.parallel, 8)
  starts.fresh_state(c, task, strategy, DIGITS)
  assert not caplog.text
  starts.fresh_state(c, task, strategy, ("cat", "dog"))
  assert "learnt the classes 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, the data has cat, dog" in caplog.text


@pytest.mark.parametrize("strategy", ["mesh", "pmap"])
def test_the_first_state_is_the_trained_one_and_copies_of_it(base, strategy):
  workdir, given = base
  c = started(workdir)
  task = tasks.make(c, optim.make_optimizer(c.optim, c.train.steps))
  under = parallel.STRATEGIES[strategy](c.parallel, 8)
  state = under.fetch(starts.fresh_state(c, task, under, DIGITS))
  averaged = runs.averaged_params(given, workdir)
  same = lambda a, b: jax.tree.all(jax.tree.map(np.array_equal, a, b))
  assert same(state.base_params, averaged)
  assert same(state.params["control"]["block_0"], averaged["block_0"])
  assert same(optax.tree.get(state.opt_state, "ema_params"), state.params)
  assert int(state.step) == 0
