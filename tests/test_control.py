"""A control branch from the command line: trained on a base, resumed, drawn with by files, folders, data and several branches."""

import json
import os
import re
import shutil
from types import SimpleNamespace

import cv2
import jax
import numpy as np
import pytest

from jaxdiff import checkpoints, configuration, control, draw, fidelity, hint_reader, optim, sample, tasks
from jaxdiff.errors import UserError
from jaxdiff.main import main
from tests import small


def tiny(base, *more):
  lines = (
    *small.arguments("controlnet"),
    f"config.base.workdir={base}",
    *(f"config.{line}" for line in more),
  )
  return [f"--{line}" for line in lines]


def train(workdir, base, *more):
  return main(["--config", "configs/controlnet_cfg.py", "--workdir", str(workdir), *tiny(base, *more)])


def restored(workdir):
  """(config, task, state) of a run."""
  config = configuration.of_run(workdir)
  task = tasks.make(config, tasks.optimizer(config))
  abstract = jax.eval_shape(lambda: tasks.initial_state(config, task))
  state, _ = checkpoints.restore(checkpoints.open_manager(workdir), abstract)
  return config, task, state


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """(workdir of a branch, workdir of its base)."""
  os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
  base, workdir = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("branch")
  small.run(base, "dit")
  assert train(workdir, base) == 0
  return workdir, base


@pytest.fixture(scope="module")
def opened(trained):
  return restored(trained[0])


@pytest.fixture
def config(opened):
  return opened[0].copy_and_resolve_references()


@pytest.fixture(scope="module")
def hint_files(tmp_path_factory):
  """A folder with an image and, apart, a map of edges of the model's size."""
  folder, maps = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("maps")
  image = np.zeros((40, 40, 3), np.uint8)
  image[10:30, 10:30] = 255
  cv2.imwrite(str(folder / "square.png"), image)
  image[:20] = 255
  cv2.imwrite(str(folder / "step.png"), image)
  edges = np.zeros((8, 8), np.uint8)
  edges[2, 1:7] = 255
  cv2.imwrite(str(maps / "line.png"), edges)
  return folder, maps


def test_training_leaves_pictures_and_figures_of_obedience(trained):
  workdir, _ = trained
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  named = set().union(*rows)
  assert {"hint/canny", "hint/canny/without", "hint/canny/real", "zero/0"} <= named
  last = {name: row[name] for row in rows for name in row}
  assert last["hint/canny/real"] == 1.0
  assert 0 <= last["hint/canny"] <= 1
  assert (workdir / "samples" / "0000006.png").stat().st_size > 0


def test_the_base_is_in_the_checkpoint_bit_for_bit(trained, opened):
  _, base = trained
  given = optim.ema_params(restored(base)[2])
  assert jax.tree.all(jax.tree.map(np.array_equal, opened[2].base_params, given))


def test_a_run_goes_on_exactly_where_it_stopped(trained, tmp_path):
  workdir, base = trained
  again = tmp_path / "again"
  shutil.copytree(workdir, again)
  shutil.rmtree(again / "checkpoints" / "6")
  assert train(again, base) == 0
  one, other = (restored(path)[2] for path in (workdir, again))
  same = jax.tree.map(np.array_equal, one.replace(rng=0), other.replace(rng=0))
  assert jax.tree.all(same)


def test_pictures_show_hint_image_and_what_is_found_in_it(config):
  look, number = fidelity.make(config), np.arange(3)
  images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
  tiles = look(images, number).tiles(3)
  hints, found = control.own_hints(config)(number), hint_reader.make_reader(config)(images)
  assert tiles.shape == (3, 8, 3 * 8 + 2, 3)
  assert np.array_equal(tiles[..., :8, 0], hints[..., 0])
  assert np.array_equal(tiles[..., 9:17, 1], images[..., 0])
  assert np.array_equal(tiles[..., 18:, 2], found[..., 0])


def test_a_preview_finds_the_hints_of_its_images_once(config, tmp_path, monkeypatch):
  reader, hints_of, read, asked = hint_reader.make_reader(config), control.own_hints(config), [], []
  read_by = lambda images: read.append(len(images)) or reader(images)
  monkeypatch.setattr(fidelity, "make_reader", lambda config: read_by)
  monkeypatch.setattr(
    control, "own_hints", lambda config: lambda number: asked.append(len(number)) or hints_of(number)
  )
  images = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 1), np.uint8)
  monkeypatch.setattr(sample, "make_draw", lambda *given: lambda state, index, label: images[: len(label)])
  strategy, source = SimpleNamespace(place_rows=None), SimpleNamespace(label_names=())
  preview = sample.make_preview(config, None, strategy, source, tmp_path)
  for step in (1, 2):
    assert set(preview(None, step).numbers) == {"hint/canny"}
  assert read == asked == [len(sample.preview_labels(config))] * 2


def test_labels_are_those_of_the_examples_whose_hints_are_asked_for(config):
  source = hint_reader.source_of(config, "train")
  assert sample.labels(config, 12).tolist() == [source[i]["label"] for i in range(12)]
  config.sample.labels = (3,)
  assert sample.labels(config, 2).tolist() == [3, 3]


def draws(opened, config, label=3, count=4):
  _, task, state = opened
  draw.check(config)
  return draw.make_draw(config, task, lambda rows: rows)(state, np.arange(count), np.full(count, label))


def test_an_image_is_a_function_of_its_number_and_hint_alone(opened, config):
  _, task, state = opened
  drawing = draw.make_draw(config, task, lambda rows: rows)
  four = drawing(state, np.arange(4), np.full(4, 3))
  two = drawing(state, np.arange(2, 6), np.full(4, 3))
  assert np.array_equal(four[2:], two[:2])


def test_files_and_folders_are_asked_for_in_turn(opened, config, hint_files):
  folder, maps = hint_files
  config.sample.hint = str(folder)
  of_image = control.own_hints(config)(np.arange(3))
  assert of_image.shape == (3, 8, 8, 1) and of_image.any()
  assert np.array_equal(of_image[0], of_image[2]) and not np.array_equal(of_image[0], of_image[1])
  config.sample.hint, config.sample.hint_is_map = str(maps / "line.png"), True
  ready = control.own_hints(config)(np.arange(1))[0, ..., 0]
  assert ready[2, 1:7].all() and ready.sum() == 6 * 255
  assert draws(opened, config).shape == (4, 8, 8, 1)


def test_strength_zero_draws_as_the_base(opened, trained, config):
  config.sample.control_scale = (0.0,)
  silent = draws(opened, config)
  base_config, base_task, base_state = restored(trained[1])
  base_config.sample = config.sample
  base_config.sample.hint, base_config.sample.control_scale = "", (1.0,)
  alone = draw.make_draw(base_config, base_task, lambda rows: rows)(base_state, np.arange(4), np.full(4, 3))
  assert np.abs(silent.astype(int) - alone).max() <= 1
  assert alone.std() > 10


def test_two_branches_at_half_strength_are_one(opened, trained, config):
  whole = draws(opened, config)
  config.sample.branches, config.sample.control_scale = str(trained[0]), (0.5, 0.5)
  assert np.abs(draws(opened, config).astype(int) - whole).max() <= 1
  config.sample.control_scale = (0.0, 0.0)
  assert (draws(opened, config) != whole).any()


def test_each_branch_obeys_a_hint_of_its_own_kind(opened, trained, config, tmp_path):
  """The same branch once more, which takes its hint for a scribble."""
  other = shutil.copytree(trained[0], tmp_path / "scribble")
  own = config.copy_and_resolve_references()
  own.data.hint = "scribble"
  (other / "config.json").write_text(configuration.to_json(own))
  by_edges, by_strokes = draws(opened, config), draws(opened, own)
  assert (by_edges != by_strokes).any()
  config.sample.branches = str(other)
  for scales, alone in (((1.0, 0.0), by_edges), ((0.0, 1.0), by_strokes)):
    config.sample.control_scale = scales
    assert np.abs(draws(opened, config).astype(int) - alone).max() <= 1


def test_figures_without_control_are_those_of_the_base(opened, config, monkeypatch):
  _, task, state = opened
  looked = []
  monkeypatch.setattr(
    fidelity, "make", lambda config: lambda images, number: looked.append(images) or fidelity.Look((), {})
  )
  strategy = SimpleNamespace(place_rows=lambda rows: rows)
  assert config.sample.hint_guidance == 2.0
  sample.make_bounds_preview(config, task, strategy, None, None)(state, 0)
  number, label = np.arange(len(looked[0])), sample.preview_labels(config)
  config.sample.control_scale, config.sample.hint_guidance = (0.0,), 1.0
  assert np.array_equal(looked[0], draw.make_draw(config, task, lambda rows: rows)(state, number, label))


def test_guessing_weakens_shallow_controls():
  """Zhang et al. 2023: 0.825 to the number of controls that are deeper."""
  branch = {"zero_0": {}, "zero_1": {}, "zero_2": {}, "block_0": {}}
  scales = np.asarray(control._scales(True, np.float32(2.0), branch, 2))
  np.testing.assert_allclose(scales, 2 * [[2 * 0.825**2, 2 * 0.825, 2.0]], rtol=1e-6)
  assert np.array_equal(control._scales(False, np.float32(2.0), branch, 2), np.full((2, 3), 2.0))


def test_guessing_guides_by_the_hint_without_a_label(opened, config):
  """At no label classifier-free guidance has nothing to say, unless the hint is what it drops."""
  config.sample.guidance, config.sample.hint_guidance = 3.0, 1.0
  plain = draws(opened, config, label=-1)
  config.sample.guidance = 1.5
  assert np.array_equal(plain, draws(opened, config, label=-1))
  config.sample.guess = True
  guessed = draws(opened, config, label=-1)
  config.sample.guidance = 3.0
  assert (guessed != draws(opened, config, label=-1)).any()


@pytest.mark.parametrize(("guidance", "label"), [(0.0, -1), (0.0, 3), (1.0, 3), (1.5, 3)])
def test_a_hint_guides_by_a_scale_of_its_own(opened, config, guidance, label):
  config.sample.guidance, config.sample.hint_guidance = guidance, 1.0
  plain = draws(opened, config, label=label)
  config.sample.hint_guidance = 3.0
  guided = draws(opened, config, label=label)
  assert (guided != plain).any()
  config.sample.control_scale = (0.0,)
  away = draws(opened, config, label=label)
  config.sample.hint_guidance = 1.0
  assert np.abs(away.astype(int) - draws(opened, config, label=label)).max() <= 1, (
    "no hint, no guidance by it"
  )


@pytest.mark.parametrize(
  ("settings", "told"),
  [
    ({"hint": ""}, "a control branch draws by a hint: --config.sample.hint=FILE"),
    ({"hint": "nowhere.png"}, "cannot read the image 'nowhere.png'"),
    ({"hint": "data,data,data"}, "config.sample.hint has 3 values, but 1 branches act"),
    ({"control_scale": (1.0, 2.0)}, "config.sample.control_scale has 2 values, but 1 branches act"),
    ({"branches": "nowhere"}, "there is no run in 'nowhere'"),
    ({"hint": "data:tset"}, "'digits' has one split, 'train', and no 'tset'"),
    ({"control_scale": (float("nan"),)}, "config.sample.control_scale is nan, which is no strength"),
    ({"hint_guidance": float("inf")}, "config.sample.hint_guidance is inf, which is no strength"),
  ],
)
def test_a_hint_that_cannot_be_is_one_line(opened, config, settings, told):
  config.sample.update(settings)
  with pytest.raises(UserError, match=told):
    draws(opened, config)


def test_hints_that_the_branch_learns_from_are_told(opened, config, caplog):
  hint_reader._opened.cache_clear()
  assert len(hint_reader.source_of(config, config.data.heldout)) == len(
    hint_reader.source_of(config, "train")
  )
  assert "digits has no split 'test' (config.data.heldout): hints are those of 'train'" in caplog.text
  assert hint_reader.source_of(config, config.data.heldout) is hint_reader.source_of(config, "train")


def test_a_further_branch_with_a_decoder_of_its_own_is_refused(opened, trained, config, tmp_path):
  other = config.copy_and_resolve_references()
  other.control.unlock_decoder = True
  (tmp_path / "config.json").write_text(configuration.to_json(other))
  config.sample.branches = str(tmp_path)
  with pytest.raises(UserError, match="has a decoder of its own"):
    draw.check(config)


def test_a_branch_with_a_decoder_of_its_own_is_not_led_away_from_its_base(config):
  config.control.unlock_decoder = True
  config.sample.hint_guidance = 1.0
  draw.check(config)
  config.sample.hint_guidance = 2.0
  with pytest.raises(UserError, match=r"Use --config.sample.hint_guidance=1\."):
    draw.check(config)


def test_one_branch_may_act_twice_by_two_hints(opened, trained, config):
  whole = draws(opened, config)
  config.sample.branches, config.sample.control_scale = f"{trained[0]},{trained[0]}", (0.5, 0.25, 0.25)
  assert np.abs(draws(opened, config).astype(int) - whole).max() <= 1


def test_a_branch_on_another_base_is_refused(opened, trained, config):
  _, task, state = opened
  config.sample.branches = str(trained[0])
  other = state.replace(base_params=jax.tree.map(lambda a: 1.1 * a, state.base_params))
  with pytest.raises(UserError, match=r"\(config.sample.branches\) is a branch on another base"):
    draws((config, task, other), config)
  half = lambda a: a.astype(np.float16).astype(np.float32)
  rounded = state.replace(base_params=jax.tree.map(half, state.base_params))
  assert draws((config, task, rounded), config).any()


def test_strength_zero_leaves_out_a_decoder_that_was_trained_too(config):
  own = {"control": {}, "unlocked": {}}
  assert "unlocked" in control.make(config).params(None, own)
  config.sample.control_scale = (0.0,)
  assert "unlocked" not in control.make(config).params(None, own)


def test_a_base_is_no_branch(opened, trained, config):
  config.sample.branches = str(trained[1])
  with pytest.raises(UserError, match="holds a run of the task 'denoise', not a control branch"):
    draw.check(config)


@pytest.mark.parametrize("setting", ["hint=data", "guess=True", "control_scale=0.5", "hint_guidance=2.0"])
def test_a_model_without_a_branch_follows_no_hint(setting):
  with pytest.raises(UserError, match=r"needs a control branch; this run is of the task 'denoise'"):
    draw.check(small.config("dit", f"sample.{setting}"))


@pytest.mark.parametrize("size", [(12, 12), (8, 16)])
def test_a_ready_map_of_another_size_is_refused(opened, config, tmp_path, size):
  cv2.imwrite(str(tmp_path / "map.png"), np.eye(*size, dtype=np.uint8) * 255)
  config.sample.hint, config.sample.hint_is_map = str(tmp_path / "map.png"), True
  with pytest.raises(UserError, match=f"{size[1]}x{size[0]}"):
    draws(opened, config)


def test_sampling_from_the_command_line(trained, hint_files, capsys):
  workdir, _ = trained
  status = main(
    [
      "--mode",
      "sample",
      "--workdir",
      str(workdir),
      f"--config.sample.hint={hint_files[0]}",
      "--config.sample.num=4",
    ]
  )
  told = capsys.readouterr().err
  assert status == 0 and re.search(r"hint/canny [01]\.", told)
  assert np.load(workdir / "samples.npz")["arr_0"].shape == (4, 8, 8, 1)


@pytest.mark.slow
def test_a_branch_of_a_unet_with_a_decoder_of_its_own(hint_files, tmp_path, capsys):
  base, workdir = tmp_path / "base", tmp_path / "branch"
  base.mkdir()
  small.run(base, "unet", "model.channel_mults=1")
  own = (
    "control.unlock_decoder=True",
    "sample.hint_guidance=1",
    "train.steps=2",
    "train.sample_every=0",
    "sample.num=4",
  )
  assert train(workdir, base, *own) == 0
  assert main(["--mode", "sample", "--workdir", str(workdir), f"--config.sample.hint={hint_files[0]}"]) == 0
  assert re.search(r"hint/canny [01]\.", capsys.readouterr().err)
  assert np.load(workdir / "samples.npz")["arr_0"].shape == (4, 8, 8, 1)


def test_drawing_by_a_picture_needs_no_data_set(trained, hint_files):
  arguments = ["--config.data.source=idx:/nowhere", f"--config.sample.hint={hint_files[0]}"]
  more = ["--config.sample.num=2", "--config.sample.labels=3"]
  assert main(["--mode", "sample", "--workdir", str(trained[0]), *arguments, *more]) == 0


@pytest.mark.parametrize(
  ("source", "hint", "settings", "is_read"),
  [
    ("digits", "canny", {}, True),
    ("digits", "segmentation", {}, True),
    ("digits", "segmentation", {"data.hint_maps": "folder"}, False),
    ("digits", "depth", {}, False),
    ("shapes", "segmentation", {}, True),
    ("shapes", "depth", {}, True),
    ("shapes", "segmentation", {"data.hint_maps": "folder"}, False),
    ("shapes", "segmentation", {"data.channels": 1}, False),
  ],
)
def test_a_reader_is_there_where_hints_can_be_found_in_images(
  config, source, hint, settings, is_read, caplog
):
  config.data.update(source=source, hint=hint, channels=3 if source == "shapes" else 1)
  config.update_from_flattened_dict(settings)
  assert (hint_reader.make_reader(config) is not None) == is_read
  fidelity.warn_if_blind(config)
  assert (f"nothing finds the hint '{hint}' in an image" in caplog.text) != is_read


def scenes(config, hint, where):
  """The config of a branch on scenes that draws by this file."""
  config.data.update({"source": "shapes", "image_size": 32, "channels": 3, "hint": hint})
  config.sample.hint = str(where)
  return config


def test_what_nothing_finds_in_an_image_is_asked_for_as_a_map(config, hint_files):
  config.data.hint, config.sample.hint = "depth", str(hint_files[0] / "step.png")
  with pytest.raises(
    UserError, match=r"nothing finds in one. Give a ready map, --config.sample.hint_is_map=True, or a network"
  ):
    control.own_hints(config)
  config.data.hint, config.data.hint_maps = "segmentation", "folder"
  with pytest.raises(UserError, match=r"--config.control.reader='segmentation\(onnx="):
    control.own_hints(config)


def test_an_image_is_read_as_those_that_are_drawn(config, tmp_path):
  """Not by the detector of regions or a network that is missing, where the source has a detector for its own maps."""
  source = hint_reader.source_of(scenes(config, "depth", tmp_path / "scene.png"), "train")
  cv2.imwrite(str(tmp_path / "scene.png"), source[3]["image"][..., ::-1])
  found = control.own_hints(config)(np.arange(1))
  np.testing.assert_array_equal(found, hint_reader.make_reader(config)(source[3]["image"][None]))
  own = control.make_hints(config, control.Branch(config, "data:train"))(np.arange(3, 4))
  assert np.corrcoef(found.ravel(), own.ravel())[0, 1] > 0.9


def test_a_ready_map_needs_no_data(config, hint_files):
  scenes(config, "depth", hint_files[1] / "line.png")
  config.sample.hint_is_map, config.data.source, config.data.image_size = True, "idx:/nowhere", 8
  look = fidelity.make(config)
  assert len(look(np.zeros((2, 8, 8, 3), np.uint8), np.arange(2)).parts) == 2


@pytest.mark.parametrize("key", ["control.reader", "data.hint"])
def test_a_network_that_is_missing_is_told_before_anything_is_drawn(opened, config, key):
  config.data.hint = "depth"
  config[key.split(".")[0]][key.split(".")[1]] = "depth(onnx='nowhere.onnx')"
  with pytest.raises(UserError, match="there is no ONNX file 'nowhere.onnx'"):
    sample.make_preview(
      config, opened[1], SimpleNamespace(place_rows=None), SimpleNamespace(label_names=()), None
    )


def test_a_missing_network_is_one_line(trained, capsys, tmp_path):
  assert train(tmp_path, trained[1], "data.hint=depth(onnx='nowhere.onnx')") == 2
  assert "there is no ONNX file 'nowhere.onnx'" in capsys.readouterr().err


def test_the_maps_of_scenes_are_found_in_their_images(config):
  for hint in ("segmentation", "depth"):
    config.data.update(source="shapes", hint=hint, channels=3, image_size=32)
    assert fidelity.of_real_images(config, np.arange(20))[f"hint/{hint}/real"] > 0.9


def test_a_reader_of_another_hint_is_refused(config):
  config.control.reader = "scribble"
  with pytest.raises(UserError, match="finds the hint 'scribble', but this branch follows 'canny'"):
    hint_reader.make_reader(config)


def test_each_branch_reads_the_maps_of_its_own_hints(config):
  with config.unlocked():
    config.data.hint_maps = "/nowhere"
  own = configuration.load("configs/controlnet_cfg.py")
  hint_of = control.make_hints(config, control.Branch(own, "data:train"))
  plain = control.make_hints(own_data(config), control.Branch(own, "data:train"))
  np.testing.assert_array_equal(hint_of(np.arange(3)), plain(np.arange(3)))


def own_data(config):
  without = config.copy_and_resolve_references()
  without.data.hint_maps = ""
  return without


def test_an_exported_branch_takes_its_base_along(trained, tmp_path):
  arguments = [
    "--workdir",
    str(trained[0]),
    f"--config.export.out={tmp_path}",
    "--config.export.dtype=float32",
  ]
  assert main(["--mode", "export", *arguments]) == 0
  for folder in (trained[0], tmp_path):
    assert main(["--mode", "sample", "--workdir", str(folder), "--config.sample.num=4"]) == 0
  one, other = (np.load(folder / "samples.npz")["arr_0"] for folder in (trained[0], tmp_path))
  assert np.array_equal(one, other)
