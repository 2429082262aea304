"""Guidance by labels and by classifiers, as config.sample asks for it."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import classifiers, configuration, draw, sample, steering
from jaxdiff.errors import UserError
from jaxdiff.tasks import process
from jaxdiff.types import NULL_LABEL, Cond, Prediction
from tests import small

UNLABELLED = ("diffusion.label_dropout=1.0", "sample.guidance=0")
INDEX, LABEL = np.arange(4), np.arange(4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Classifiers of noised and of clean images, and a run that is none."""
  root = tmp_path_factory.mktemp("classifiers")
  found = {name: root / name for name in ("noised", "clean", "images")}
  for folder in found.values():
    folder.mkdir()
  small.run(found["noised"], "classifier")
  small.run(found["clean"], "classifier", "diffusion.time_density=clean")
  small.run(found["images"], "dit")
  return found


def drawn(config, state=None):
  task, fresh = small.made(config)
  config.sample.ema = False
  draws = draw.make_draw(config, task, lambda rows: rows)
  return draws(small.woken(fresh) if state is None else state, INDEX, LABEL).astype(int)


def test_without_labels_a_label_changes_nothing():
  for overrides in (UNLABELLED, ("sample.guidance=0",), ("diffusion.label_dropout=1.0", "sample.guidance=1")):
    config = small.config("dit", *overrides)
    seen = []

    def watched(z, t, cond, seen=seen):
      seen.append(cond.label)
      return Prediction(z, z)

    steer = steering.make(config, process.build_schedule(config.diffusion))
    steer.wrap(watched, steer.values())(jnp.zeros((4, 8, 8, 1)), jnp.ones(4), Cond(jnp.asarray(LABEL)))
    assert len(seen) == 1 and seen[0].tolist() == [NULL_LABEL] * 4
    assert (sample.labels(config, 3) == NULL_LABEL).all()


@pytest.fixture(scope="module")
def plain():
  return drawn(small.config("dit", *UNLABELLED))


@pytest.mark.parametrize("kind", ["noised", "clean"])
def test_a_classifier_steers_and_not_at_scale_zero(folders, kind, plain):
  name = f"sample.classifier={folders[kind]}"
  off = drawn(small.config("dit", *UNLABELLED, name, "sample.classifier_scale=0"))
  steered = drawn(small.config("dit", *UNLABELLED, name, "sample.classifier_scale=30"))
  assert (off == plain).all()
  assert (steered != plain).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(("kind", "sees_x"), [("noised", False), ("clean", True)])
def test_a_classifier_sees_what_it_was_trained_on(folders, kind, sees_x):
  config = small.config("dit", f"sample.classifier={folders[kind]}")
  assert classifiers.load(config).sees_x == sees_x
  config.sample.classifier_sees = "x"
  assert classifiers.load(config).sees_x


def test_steering_raises_the_labels_probability_more_at_a_larger_scale(folders):
  """By the classifier itself, of images as they are drawn."""
  name = f"sample.classifier={folders['noised']}"
  config = small.config("dit", *UNLABELLED, name, "sample.ema=False")
  judge, found = classifiers.load(config), []
  task, state = small.made(config)
  draws = draw.make_draw(config, task, lambda rows: rows)
  for scale in (0.0, 5.0, 50.0):
    config.sample.classifier_scale = scale
    images = draws(small.woken(state), INDEX, LABEL)
    z = jnp.asarray(images, jnp.float32) / 127.5 - 1
    found.append(float(judge.log_prob(judge.params, z, jnp.zeros(4), jnp.asarray(LABEL)).mean()))
  assert found[0] < found[1] < found[2]


def test_another_scale_traces_nothing(folders):
  config = small.config("dit", f"sample.classifier={folders['noised']}", "sample.guidance_interval=0.1,50")
  task, state = small.made(config)
  config.sample.ema = False
  traces = []

  def counted(params, state):
    traces.append(1)
    return task.denoiser(params, state)

  draws = draw.make_draw(config, task._replace(denoiser=counted), lambda rows: rows)
  images = []
  for guidance, scale in ((1.5, 1.0), (3.0, 1.0), (3.0, 40.0)):
    config.sample.guidance, config.sample.classifier_scale = guidance, scale
    images.append(draws(small.woken(state), INDEX, LABEL))
  assert len(traces) == 1
  assert (images[0] != images[1]).any() and (images[1] != images[2]).any()


@pytest.mark.slow
def test_outside_its_interval_neither_guidance_acts(folders):
  plain = drawn(small.config("dit", "sample.guidance=1"))
  both = ("sample.guidance=4", f"sample.classifier={folders['noised']}", "sample.classifier_scale=30")
  beyond = drawn(small.config("dit", *both, "sample.guidance_interval=1e8,1e9"))
  inside = drawn(small.config("dit", *both, "sample.guidance_interval=0.01,1e9"))
  assert np.abs(beyond - plain).max() <= 1  # another program, which may round differently before uint8
  assert (inside != plain).any()


MODULE = """
import jax.numpy as jnp

def bright(z, t, label):
  return (z.mean((1, 2, 3)) * (label + 1)).astype(jnp.float32)

def of_one_image(z, t, label):
  return z.mean()

def broken(z, t, label):
  raise TypeError("it takes latents")

number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
  (tmp_path / "my_judge.py").write_text(MODULE)
  monkeypatch.syspath_prepend(str(tmp_path))
  sys.modules.pop("my_judge", None)
  yield "my_judge"
  sys.modules.pop("my_judge", None)


@pytest.mark.parametrize("sees", ["auto", "x"])
def test_a_function_of_the_users_steers(module, sees, plain):
  spec = (f"sample.classifier={module}:bright", f"sample.classifier_sees={sees}")
  strong = drawn(small.config("dit", *UNLABELLED, *spec, "sample.classifier_scale=300"))
  assert (strong.mean(axis=(1, 2, 3)) > plain.mean(axis=(1, 2, 3))).all()


def test_a_model_without_classes_asks_for_those_of_its_classifier(folders):
  config = small.config(
    "unet", "model.num_classes=0", "sample.guidance=0", f"sample.classifier={folders['noised']}"
  )
  assert sample.labels(config, 12).tolist() == [*range(10), 0, 1]
  assert not steering.is_labelled(config) and steering.asks_for_labels(config)


def test_what_is_left_to_the_model_alone_is_its_own_prediction():
  """guidance 1 and no classifier: the denoiser itself, so no evaluation is added."""
  config = small.config("dit", "sample.guidance=1", "sample.threshold=none")
  own = lambda z, t, cond: Prediction(z, z)
  steer = steering.make(config, None)
  assert steer.wrap(own, steer.values()) is own


@pytest.mark.parametrize("setting", ["guidance_interval=0.2,5", "guidance_rescale=0.7"])
def test_what_a_guided_student_cannot_do_is_told(setting):
  config = small.config("dit")
  with config.unlocked():
    config.model.guidance_range = (1.0, 4.0)
  draw.check(config)
  configuration.override(config, [f"--config.sample.{setting}"])
  with pytest.raises(UserError, match="this student has learned guidance itself, over all of its steps"):
    draw.check(config)


@pytest.mark.parametrize("kind", ["noised", "clean"])
def test_without_a_label_a_classifier_steers_nowhere(folders, kind):
  config = small.config("dit", "sample.guidance=0", f"sample.classifier={folders[kind]}")
  judge = classifiers.load(config)
  z, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.full(2, 0.0 if judge.sees_x else 0.3)
  slope = jax.grad(lambda z, label: jnp.sum(judge.log_prob(judge.params, z, t, label)))
  assert not np.any(slope(z, jnp.full(2, NULL_LABEL)))
  mixed, both = slope(z, jnp.array([NULL_LABEL, 9])), slope(z, jnp.array([9, 9]))
  assert not np.any(mixed[0]) and np.any(both[0]) and (mixed[1] == both[1]).all()


BAD = {
  "never saw labels": (["diffusion.label_dropout=1.0"], "guidance 1.5 (config.sample.guidance) needs a model that has seen labels"),
  "no null": (["diffusion.label_dropout=0", "sample.guidance=0"], "Use --config.sample.guidance=1."),
  "no folder": (["sample.classifier={tmp}/none"], "there is no folder '{tmp}/none' (config.sample.classifier). Give the workdir of a classifier, or module:function."),
  "empty folder": (["sample.classifier={tmp}"], "there is no run in '{tmp}' (no config.json)"),
  "another task": (["sample.classifier={images}"], "holds a run of the task 'denoise', not of a classifier. Train one:"),
  "image size": (["sample.classifier={noised}", "data.image_size=16"], "was trained on images of 8 pixels (config.data.image_size), the model on 16."),
  "channels": (["sample.classifier={noised}", "data.channels=3"], "was trained on images of 1 channels (config.data.channels), the model on 3."),
  "classes": (["sample.classifier={noised}", "model.num_classes=12"], "knows 10 classes, the model 12."),
  "clean shown z": (["sample.classifier={clean}", "sample.classifier_sees=z"], "was trained on clean images alone and cannot be shown z. Use --config.sample.classifier_sees=x."),
  "sees": (["sample.classifier={noised}", "sample.classifier_sees=y"], "unknown value of config.sample.classifier_sees 'y'."),
  "scale alone": (["sample.classifier_scale=3"], "config.sample.classifier_scale is 3.0, which needs a --config.sample.classifier too."),
  "sees alone": (["sample.classifier_sees=x"], "which needs a --config.sample.classifier too."),
  "no module": (["sample.classifier=no_such:f"], "cannot import 'no_such:f' (config.sample.classifier): No module named 'no_such'."),
  "no function": (["sample.classifier=my_judge:dark"], "has no attribute 'dark'"),
  "no function but a number": (["sample.classifier=my_judge:number"], "is not a function but 3."),
  "one number": (["sample.classifier=my_judge:of_one_image"], "returned (). It must take (z f32[2, 8, 8, 1], t f32[2], label i32[2]) and return log p, f32[2]"),
  "broken": (["sample.classifier=my_judge:broken"], "failed with TypeError: it takes latents. It must"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_steer_is_told_in_one_line(case, folders, module, tmp_path):
  overrides, message = BAD[case]
  fill = lambda text: text.format(tmp=tmp_path, **folders) if "{" in text else text
  with pytest.raises(UserError) as error:
    draw.check(small.config("dit", *map(fill, overrides)))
  assert fill(message) in str(error.value) and "\n" not in str(error.value)


def test_a_classifier_without_checkpoint_is_told(tmp_path):
  (tmp_path / "config.json").write_text(configuration.to_json(small.config("classifier")))
  with pytest.raises(UserError, match="there is no checkpoint in"):
    steering.make(small.config("dit", f"sample.classifier={tmp_path}"), None)
