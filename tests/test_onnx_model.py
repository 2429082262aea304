"""Features from ONNX files: layout, scaling and batches by hand; each misfit is one clear line."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from jaxdiff import onnx_model
from jaxdiff.data import onnx_file
from jaxdiff.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
MEANS = IMAGES.astype(np.float64).mean(axis=(1, 2)) / 255


@pytest.fixture
def export(tmp_path):
  """Writes a network that takes the mean over some axes of its input, or gives it back."""
  onnx = pytest.importorskip("onnx")
  pytest.importorskip("onnxruntime")
  from onnx import TensorProto, helper

  def make(shape, axes=(2, 3), keepdims=0, dtype="FLOAT", more_inputs=()):
    nodes = [helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT)]
    if axes:
      nodes.append(helper.make_node("ReduceMean", ["x"], ["y"], axes=list(axes), keepdims=keepdims))
    else:
      nodes.append(helper.make_node("Identity", ["x"], ["y"]))
    inputs = [helper.make_tensor_value_info("images", getattr(TensorProto, dtype), shape)]
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in more_inputs]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    model = helper.make_model(
      helper.make_graph(nodes, "tiny", inputs, outputs),
      opset_imports=[helper.make_opsetid("", 17)],
      ir_version=9,  # what onnxruntime of 2023 reads
    )
    onnx.save(model, tmp_path / "tiny.onnx")
    return tmp_path / "tiny.onnx"

  return make


@pytest.mark.parametrize("batch", ["n", None, 1, 2, 5, 8])
@pytest.mark.parametrize(("sides", "axes"), [((3, "h", "w"), (2, 3)), ((4, 6, 3), (1, 2))])
def test_means_in_either_layout_and_any_batch(export, batch, sides, axes):
  result = onnx_model.features(export([batch, *sides], axes))(IMAGES)
  assert result.dtype == np.float32
  np.testing.assert_allclose(result, MEANS, rtol=1e-5)


@pytest.mark.parametrize(
  ("scaling", "expected"),
  [
    ("unit", MEANS),
    ("symmetric", 2 * MEANS - 1),
    ("imagenet", (MEANS - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
    ("bytes", 255 * MEANS),
  ],
)
def test_scalings(export, scaling, expected):
  result = onnx_model.features(export(["n", 3, 4, 6]), scaling)(IMAGES)
  np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_every_scaling_is_tested():
  assert set(onnx_file.SCALINGS) == {"unit", "symmetric", "imagenet", "bytes"}


@pytest.mark.parametrize(("dtype", "expected"), [("UINT8", 255 * MEANS), ("FLOAT16", MEANS)])
def test_other_types_of_input(export, dtype, expected):
  result = onnx_model.features(export(["n", 3, 4, 6], dtype=dtype))(IMAGES)
  np.testing.assert_allclose(result, expected, rtol=1e-3)


def test_gray_images(export):
  gray = IMAGES[..., :1]
  as_rgb = onnx_model.features(export(["n", 3, "h", "w"]))(gray)
  np.testing.assert_allclose(as_rgb, MEANS[:, [0, 0, 0]], rtol=1e-5)
  alone = onnx_model.features(export(["n", 1, "h", "w"]))(gray)
  np.testing.assert_allclose(alone, MEANS[:, :1], rtol=1e-5)


def test_pooled_maps_of_one_pixel_are_vectors(export):
  result = onnx_model.features(export(["n", 3, "h", "w"], keepdims=1))(IMAGES)
  np.testing.assert_allclose(result, MEANS, rtol=1e-5)


@pytest.mark.parametrize(
  ("shape", "words"),
  [
    (["n", "c", "h", "w"], "either axis 1 or axis 3 should be 1 or 3"),
    (["n", 3, 8, 3], "either axis 1 or axis 3 should be 1 or 3"),
    (["n", 3, 8], "has 3 axes; images have 4"),
  ],
)
def test_inputs_that_are_not_images(export, shape, words):
  with pytest.raises(UserError, match=f"the input 'images' of .*tiny.onnx.*{words}"):
    onnx_model.features(export(shape, axes=(1,)))


def test_other_inputs(export):
  with pytest.raises(UserError, match=r"has 2 inputs \(images, time\), not one"):
    onnx_model.features(export(["n", 3, 4, 6], more_inputs=["time"]))
  with pytest.raises(UserError, match=r"is tensor\(int32\); it should be one of tensor\(float\), "):
    onnx_model.features(export(["n", 3, 4, 6], dtype="INT32"))


def test_images_that_do_not_fit(export):
  fixed = onnx_model.features(export(["n", 3, 8, "w"]))
  with pytest.raises(UserError, match="reads images of 8xany, these have 4x6"):
    fixed(IMAGES)
  gray = onnx_model.features(export(["n", 1, "h", "w"]))
  with pytest.raises(UserError, match="reads images of 1 channels, these have 3"):
    gray(IMAGES)
  with pytest.raises(TypeError, match=r"uint8\[N,H,W,C\], not float64"):
    gray(IMAGES / 255)


def test_outputs_that_are_no_vectors(export):
  with pytest.raises(UserError, match=r"shape \[5, 3, 4, 6\] for 5 images; it should be \[N,D\]"):
    onnx_model.features(export(["n", 3, "h", "w"], axes=None))(IMAGES)
  with pytest.raises(UserError, match=r"shape \[3\] for 5 images"):
    onnx_model.features(export(["n", 3, "h", "w"], axes=(0, 2, 3)))(IMAGES)


def test_features_that_are_not_finite():
  found = np.array([[1.0, 2.0], [np.inf, 0.0]])
  with pytest.raises(UserError, match=r"the first output of a\.onnx is not finite"):
    onnx_model.vectors("a.onnx", found, 2)


class Failing:
  def run(self, outputs, feed):
    del outputs, feed
    raise RuntimeError("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : too small\nmore of it")


def test_a_network_that_fails_on_these_images():
  feed = {"images": np.zeros((5, 3, 4, 6), np.float32)}
  with pytest.raises(UserError, match=r"a.onnx fails on images \[5, 3, 4, 6\]: .*too small$"):
    onnx_file.run(Failing(), feed, "a.onnx")


def test_settings_that_do_not_fit(export):
  with pytest.raises(UserError, match="Did you mean 'imagenet'"):
    onnx_model.features("any.onnx", "image_net")
  with pytest.raises(UserError, match="reads one channel: scaling 'imagenet' is for three"):
    onnx_model.features(export(["n", 1, "h", "w"]), "imagenet")


def test_files_that_are_not_there_or_not_onnx(tmp_path):
  with pytest.raises(UserError, match="there is no ONNX file"):
    onnx_model.features(tmp_path / "none.onnx")
  pytest.importorskip("onnxruntime")
  (tmp_path / "text.onnx").write_text("not a network")
  with pytest.raises(UserError, match="cannot read .*text.onnx as an ONNX network: "):
    onnx_model.features(tmp_path / "text.onnx")


def test_without_onnxruntime(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "onnxruntime", None)
  (tmp_path / "a.onnx").write_text("")
  with pytest.raises(UserError, match="pip install onnxruntime"):
    onnx_model.features(tmp_path / "a.onnx")
