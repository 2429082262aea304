import shutil

import numpy as np
import pytest

from jaxdiff.data import pixels
from jaxdiff.errors import UserError
from jaxdiff.evaluation import features
from jaxdiff.tasks import classifier
from tests import small

IMAGES = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("judge")
  return workdir, small.run(workdir, "classifier")


def test_a_classifier_gives_what_its_last_layer_reads_and_its_logits_whatever_the_batches(judge):
  workdir, config = judge
  extractor = features.load(f"classifier:{workdir}")
  seen = extractor.apply(IMAGES)
  assert seen.features.shape == (300, 8) and seen.logits.shape == (300, 10)
  few = extractor.apply(IMAGES[:5])
  np.testing.assert_allclose(few.features, seen.features[:5], atol=1e-5)
  own, params = config, features.runs.averaged_params(config, workdir)
  said = classifier.make_log_probs(own)(params, pixels.to_signed(IMAGES[:5]), np.zeros(5, np.float32))
  log_probs = few.logits - np.logaddexp.reduce(few.logits, axis=1, keepdims=True)
  np.testing.assert_allclose(log_probs, said, atol=1e-5)
  kernel, bias = params["out"]["kernel"], params["out"]["bias"]
  np.testing.assert_allclose(few.features @ kernel + bias, few.logits, atol=1e-4)


def test_a_network_is_known_by_its_parameters_not_by_its_place(judge, tmp_path):
  workdir, _ = judge
  shutil.copytree(workdir, tmp_path / "copy")
  here = features.load(f"classifier:{workdir}")
  assert features.load(f"classifier:{tmp_path}/copy").fingerprint == here.fingerprint
  small.run(other := tmp_path, "classifier", "model.width=16")
  assert features.load(f"classifier:{other}").fingerprint != here.fingerprint


def test_pixels_are_numbers_between_0_and_1():
  seen = features.load("pixels").apply(IMAGES)
  np.testing.assert_allclose(seen.features, IMAGES.reshape(300, 64) / 255.0, rtol=1e-6)
  assert seen.logits is None
  assert features.dimension(features.load("pixels"), (8, 8, 1)) == 64


BAD = {
  "inseption": "unknown features (config.eval.features) 'inseption'. Did you mean 'inception'?",
  "pixels:8": "pixels take no argument",
  "classifier:": "does not say which: write classifier:<workdir of a classifier>",
  "classifier:{tmp}": "there is no run in '{tmp}'",
  "classifier:{tmp}/dit": "holds a run of the task 'denoise', not of a classifier",
  "onnx:": "does not say which: write onnx:<file>",
  "onnx:{tmp}/none.onnx": "there is no ONNX file '{tmp}/none.onnx'",
  "inception:{tmp}/none.pth": "there is no file '{tmp}/none.pth' with Inception's weights",
}


@pytest.mark.parametrize("spec", BAD)
def test_features_that_cannot_be_had_are_told(spec, tmp_path):
  (tmp_path / "dit").mkdir()
  (tmp_path / "dit" / "config.json").write_text(
    features.classifiers.configuration.to_json(small.config("dit"))
  )
  fill = lambda text: text.replace("{tmp}", str(tmp_path))
  with pytest.raises(UserError) as told:
    features.load(fill(spec))
  assert fill(BAD[spec]) in str(told.value)


def test_images_that_a_network_cannot_read_are_told_before_it_runs(judge):
  with pytest.raises(UserError, match="reads images of 8x8x1, these are of 16x16x3"):
    features.load(f"classifier:{judge[0]}").check((16, 16, 3))
  with pytest.raises(UserError, match="64x64x3 makes 12288 features"):
    features.load("pixels").check((64, 64, 3))
