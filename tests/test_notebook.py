"""What notebooks use beside the commands."""

import json

import numpy as np
import pytest

from jaxdiff import data, notebook, pictures
from jaxdiff.errors import UserError
from tests import small


@pytest.fixture(params=[False, True], ids=["whole", "fast"])
def is_fast(request, monkeypatch):
  monkeypatch.setattr(notebook, "FAST", request.param)
  return request.param


def test_fast_mode(is_fast):
  assert notebook.fast("train.steps=6") == (["--config.train.steps=6"] if is_fast else [])
  assert list(notebook.few((1, 2, 3))) == ([1, 3] if is_fast else [1, 2, 3])
  where = notebook.folder("x")
  assert where.is_dir() == is_fast and (is_fast or where == notebook.RUNS / "x")


def test_a_command_that_fails_raises(tmp_path, capsys):
  with pytest.raises(UserError, match="status 2"):
    notebook.run("--mode", "sample", "--workdir", tmp_path)
  assert "there is no run in" in capsys.readouterr().err


def test_pictures_of_a_run(tmp_path):
  small.run(tmp_path)
  pictures.save_png(tmp_path / "samples" / "0000003.png", np.zeros((4, 5, 3), np.uint8))
  assert [(name, p.shape) for name, p in notebook.progress(tmp_path).items()] == [("step 3", (4, 5, 3))]
  drawn = notebook.sheets(tmp_path, "guidance", (1, 4), "--config.sample.num=4")
  assert list(drawn) == ["guidance 1", "guidance 4"]
  assert (drawn["guidance 1"] != drawn["guidance 4"]).any()


def test_pictures_one_below_the_other(monkeypatch):
  monkeypatch.setattr(notebook.importlib.util, "find_spec", lambda name: None)
  sheets = {"a": np.zeros((4, 6, 3), np.uint8), "b": np.zeros((3, 2, 3), np.uint8)}
  shown = notebook.slider(sheets)
  assert (
    shown.size == (6, 7) and shown.getpixel((5, 3)) == (0, 0, 0) and shown.getpixel((5, 4)) == pictures.PAPER
  )


def test_a_slider(monkeypatch):
  """As ipywidgets would be called: it takes a function of the chosen name and a widget that has all names."""
  made = {}

  class Widgets:
    SelectionSlider = staticmethod(lambda options, **settings: options)
    interactive = staticmethod(lambda function, name: made.update({n: function(n) for n in name}))

  monkeypatch.setitem(__import__("sys").modules, "ipywidgets", Widgets)
  monkeypatch.setattr(notebook.importlib.util, "find_spec", lambda name: True)
  notebook.slider({"a": np.zeros((4, 6, 3), np.uint8)})
  assert made["a"].size == (6, 4)


def test_what_runs_have_measured(tmp_path, monkeypatch):
  """Runs may have logged at other steps, and not everything each time."""
  rows = {
    "a": [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0, "hint": 0.5}],
    "b": [{"step": 2, "loss": 4.0}],
  }
  for name, found in rows.items():
    (tmp_path / name).mkdir()
    (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
  asked = {}
  monkeypatch.setattr(
    notebook.plots,
    "curves",
    lambda x, panels, **_: asked.update(x=x, panels=panels) or np.zeros((1, 1, 3), np.uint8),
  )
  notebook.measured({name: tmp_path / name for name in rows}, "loss", "hint")
  assert asked["x"] == [1, 2]
  np.testing.assert_equal(
    asked["panels"],
    {"loss": {"a": [3.0, 2.0], "b": [np.nan, 4.0]}, "hint": {"a": [np.nan, 0.5], "b": [np.nan, np.nan]}},
  )


def test_written_images_are_read_as_they_were(tmp_path):
  source = data.load(f"folder:{notebook.write_images('digits', tmp_path, 12)}")
  before = data.load("digits").take(range(12))
  after = {name.rpartition("/")[2]: source[i]["image"] for i, name in enumerate(source.files)}
  assert len(source) == 12
  for number, example in enumerate(before):
    assert (after[f"{number:05d}.png"] == example["image"]).all()


@pytest.mark.parametrize(("fsdp", "share"), [(1, 1), (4, 4)])
def test_where_arrays_lie(fsdp, share):
  """Four devices: each has a quarter of a batch, and all or a quarter of a large parameter."""
  params, batch = notebook.placed(
    "configs/dit_cfg.py",
    f"--config.parallel.fsdp={fsdp}",
    "--config.model.depth=1",
    "--config.train.batch_size=8",
  )
  kernel = params["block_0"]["mlp"]["in"]["kernel"]
  assert batch.sharding.shard_shape(batch.shape) == (2, 64)
  assert np.prod(kernel.sharding.shard_shape(kernel.shape)) * share == kernel.size


def test_simulated_devices_are_a_flag_and_the_only_ones(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  notebook.simulate_devices(8)
  assert notebook.os.environ["JAX_PLATFORMS"] == "cpu"
  assert notebook.os.environ["XLA_FLAGS"] == "--xla_a=1 --xla_force_host_platform_device_count=8"


def test_a_drawing_is_strokes():
  drawn = pictures.drawing(32, [[(0.0, 0.5), (1.0, 0.5)]], width=0.1)
  assert drawn.shape == (32, 32, 1) and drawn.dtype == np.uint8
  assert (drawn[15:17] == 255).all() and not drawn[:13].any() and not drawn[19:].any()
