"""Model files: what is exported draws what the run draws, and what does not fit or is damaged is told."""

import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

from jaxdiff import configuration, exported, optim, runs
from jaxdiff.errors import UserError
from jaxdiff.main import main
from tests import small


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  small.run(workdir)
  return workdir


def export(run, out, *more):
  arguments = ["--mode", "export", "--workdir", str(run), f"--config.export.out={out}", *more]
  return main(arguments)


def drawn(workdir):
  assert main(["--mode", "sample", "--workdir", str(workdir)]) == 0
  return np.load(workdir / "samples.npz")["arr_0"]


def test_an_exported_model_draws_what_the_run_draws(run, tmp_path):
  assert export(run, tmp_path, "--config.export.dtype=float32") == 0
  np.testing.assert_array_equal(drawn(tmp_path), drawn(run))


@pytest.mark.parametrize(("dtype", "error"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_half_precision_halves_the_file_and_rounds_once(run, tmp_path, dtype, error):
  assert export(run, tmp_path, f"--config.export.dtype={dtype}") == 0
  config = configuration.of_run(run)
  exact, rounded = (runs.averaged_params(config, folder) for folder in (run, tmp_path))
  for one, other in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
    assert other.dtype == np.float32
    np.testing.assert_allclose(other, one, rtol=error, atol=1e-7)
  size = sum(2 * leaf.size for leaf in jax.tree.leaves(exact))
  assert size < (tmp_path / exported.FILE).stat().st_size < size + 10_000
  assert runs.restore(config, tmp_path, runs.one_device()).label_names[3] == "3"


@pytest.mark.parametrize(
  ("damage", "told"),
  [
    (
      lambda tensors: tensors.pop("params/final/out/bias"),
      "params/final/out/bias is absent in the file and [4]",
    ),
    (lambda tensors: tensors.update(more=np.zeros(2)), "more is [2] in the file and absent in this network"),
    (
      lambda tensors: tensors.update({"params/final/out/bias": np.zeros(8)}),
      "params/final/out/bias is [8] in the file and [4] in this network",
    ),
  ],
)
def test_a_model_of_another_network_is_refused(run, tmp_path, capsys, damage, told):
  export(run, tmp_path)
  tensors = load_file(tmp_path / exported.FILE)
  damage(tensors)
  save_file(tensors, tmp_path / exported.FILE, metadata={"step": "6", "label_names": "[]"})
  assert main(["--mode", "sample", "--workdir", str(tmp_path)]) == 2
  assert told in capsys.readouterr().err


def test_a_truncated_model_is_told(run, tmp_path, capsys):
  export(run, tmp_path)
  path = tmp_path / exported.FILE
  path.write_bytes(path.read_bytes()[:-100])
  assert main(["--mode", "sample", "--workdir", str(tmp_path)]) == 2
  assert "cannot be read as a model file" in capsys.readouterr().err


def test_an_export_that_cannot_be_is_told(run, tmp_path, capsys):
  assert export(run, "") == 2
  assert export(run, run) == 2
  assert "name a folder for the model" in capsys.readouterr().err
  assert export(run, tmp_path, "--config.export.dtype=float61") == 2
  assert "Did you mean 'float16'?" in capsys.readouterr().err


def test_numbers_that_half_precision_cannot_hold_are_told(run, tmp_path):
  config = configuration.of_run(run)
  state = runs.restore(config, run, runs.one_device()).state
  huge = jax.tree.map(lambda leaf: leaf + 1e5, optim.ema_params(state))
  state = state.replace(opt_state=optax.tree.set(state.opt_state, ema_params=huge))
  with pytest.raises(UserError, match="float16 .config.export.dtype. cannot hold"):
    exported.write(tmp_path, config, state, (), "float16")
  assert not (tmp_path / "config.json").exists()


def test_a_model_is_not_trained_on_and_stays(run, tmp_path, capsys):
  export(run, tmp_path)
  before = {path: path.read_bytes() for path in tmp_path.iterdir()}
  for more in ([], ["--config", "configs/unet_cfg.py"]):
    assert main(["--workdir", str(tmp_path), *more]) == 2
    assert "holds a model (model.safetensors), which cannot be trained further" in capsys.readouterr().err
  assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_is_not_overwritten_by_a_model(run, tmp_path, capsys):
  small.run(tmp_path)
  before = (tmp_path / "config.json").read_bytes()
  assert export(run, tmp_path) == 2
  assert "which holds a run; name a folder for the model" in capsys.readouterr().err
  assert (tmp_path / "config.json").read_bytes() == before and not (tmp_path / exported.FILE).exists()
