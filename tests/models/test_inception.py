"""FID's Inception against torch-fidelity's and a second writing of it, and its details by hand."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.models import inception
from tests.models import inception_again


@pytest.fixture(scope="module")
def tensors():
  return inception_again.random_tensors()


@pytest.fixture(scope="module")
def params(tensors):
  return inception.from_torch(tensors)


@pytest.fixture(scope="module")
def fidelity(tensors):
  """torch-fidelity's network with the same weights, read from a file as it reads its own."""
  torch = pytest.importorskip("torch")
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "weights.pth"
    torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, path)
    return inception_again.fidelity(str(path), ["2048", "logits_unbiased", "logits"])


def draw(height, width, channels=3, number=2):
  rng = np.random.default_rng(height)
  return rng.integers(0, 256, (number, height, width, channels), dtype=np.uint8)


@jax.jit
def apply(params, images):
  return inception.InceptionV3().apply({"params": params}, images)


def assert_equal_but_for_rounding(result, expected):
  """Within 3e-6 of the largest number; the result is in float32, what is expected in float64.

  Rounding by 6e-8 in each of some 50 layers leaves 5e-7; a norm's eps of 1e-5 instead of 1e-3 makes 2e-2.
  """
  np.testing.assert_allclose(result, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize("size", [(32, 32), (299, 299), (40, 61)])
def test_is_the_network_of_torch_fidelity(tensors, params, fidelity, size):
  import torch

  images = draw(*size)
  features, unbiased, logits = fidelity(torch.from_numpy(images).permute(0, 3, 1, 2))
  result = apply(params, images)
  assert_equal_but_for_rounding(result[0], features.numpy())
  assert_equal_but_for_rounding(result[1], unbiased.numpy())
  assert_equal_but_for_rounding(result[1] + tensors["fc.bias"], logits.numpy())


def test_is_the_network_written_in_plain_torch(tensors, params):
  images = draw(40, 61)
  features, logits = inception_again.features_and_logits(tensors, images)
  assert features.std() > 0.5 and logits.std() > 0.5  # neither vanished nor
  assert features.max() < 100  # exploded
  result = apply(params, images)
  assert [(r.shape, r.dtype) for r in result] == [((2, 2048), np.float32), ((2, 1008), np.float32)]
  assert_equal_but_for_rounding(result[0], features)
  assert_equal_but_for_rounding(result[1], logits)


def test_has_the_parameters_of_torch_fidelity(params):
  shapes = inception.torch_shapes()
  trainable = sum(int(np.prod(shape)) for name, shape in shapes.items() if "running" not in name)
  norm_scales = sum(int(np.prod(shape)) for name, shape in shapes.items() if name.endswith("bn.weight"))
  assert trainable == 23_850_960  # counted in torch-fidelity 0.4.0
  assert norm_scales == 17_216
  assert sum(p.size for p in jax.tree.leaves(params)) == trainable - norm_scales  # they are folded in
  assert all(p.dtype == np.float32 for p in jax.tree.leaves(params))


def test_names_and_shapes_are_torch_fidelitys_as_a_digest():
  """So that a kernel turned by 90 degrees is seen where torch-fidelity is not installed; the next test makes it."""
  assert digest(inception.torch_shapes()) == "61093f3898ff55ee"


def test_names_and_shapes_are_torch_fidelitys(fidelity):
  state = fidelity.state_dict()
  shapes = {name: tuple(t.shape) for name, t in state.items() if not name.endswith("num_batches_tracked")}
  assert inception.torch_shapes() == shapes
  assert digest(shapes) == "61093f3898ff55ee"
  assert sum(p.numel() for p in fidelity.parameters()) == 23_850_960


def digest(shapes):
  return hashlib.sha256(repr(sorted(shapes.items())).encode()).hexdigest()[:16]


def test_logits_with_bias_on_request(tensors, params):
  images = draw(32, 32)
  _, logits = apply(params, images)
  biased = inception.InceptionV3(logit_bias=True)
  _, result = jax.jit(biased.apply)({"params": params}, images)
  np.testing.assert_allclose(result - logits, np.tile(tensors["fc.bias"], (2, 1)), atol=1e-4)


def test_gray_images_are_read_as_rgb(params):
  gray = draw(32, 32, channels=1)
  for one, other in zip(apply(params, gray), apply(params, gray.repeat(3, axis=-1)), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("size", [(32, 32), (1, 1), (5, 400), (611, 3), (299, 299)])
def test_resizes_as_tensorflow_1_does(size):
  images = draw(*size, number=1)
  expected = inception_again.resized(images[0])
  np.testing.assert_allclose(inception.resize(images)[0], expected, rtol=0, atol=255 * 3e-7)


def test_resize_of_two_pixels_by_hand():
  """p = 2i / 299: a ramp from the first pixel on, which reaches the second half-way and stays there."""
  image = np.array([0.0, 299.0], np.float32).reshape(1, 1, 2, 1)
  row = inception.resize(image)[0, 0, :, 0]
  np.testing.assert_allclose(row, np.minimum(2.0 * np.arange(299), 299), rtol=1e-6)


def test_resize_leaves_an_image_of_the_right_size_as_it_is():
  images = draw(299, 299, number=1)
  np.testing.assert_array_equal(inception.resize(images), images)


def test_average_pool_does_not_count_padding():
  x = np.random.default_rng(0).normal(size=(1, 4, 5, 2)).astype(np.float32)
  expected = np.empty_like(x)
  for i in range(4):
    for j in range(5):
      expected[0, i, j] = x[0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean(axis=(0, 1))
  np.testing.assert_allclose(inception.average_pool(x), expected, atol=1e-6)


def test_max_pool_takes_no_padding_for_a_pixel():
  x = -1 - np.random.default_rng(0).random((1, 4, 5, 2)).astype(np.float32)
  expected = np.empty_like(x)
  for i in range(4):
    for j in range(5):
      expected[0, i, j] = x[0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].max(axis=(0, 1))
  np.testing.assert_array_equal(inception.max_pool(x, stride=1), expected)
  np.testing.assert_array_equal(inception.max_pool(x)[0, 0], expected[0, 1, [1, 3]])


def test_multiplies_full_floats_on_every_device(params):
  """TPUs and GPUs round factors unless each convolution and product asks them not to."""
  jaxpr = jax.make_jaxpr(lambda x: inception.InceptionV3().apply({"params": params}, x))(draw(32, 32))
  precisions = [
    eqn.params["precision"]
    for eqn in _equations(jaxpr.jaxpr)
    if eqn.primitive.name in ("conv_general_dilated", "dot_general")
  ]
  assert len(precisions) == 95
  assert set(precisions) == {(jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)}


def _equations(jaxpr):
  """The equations of a jaxpr and of those inside it."""
  found = []
  for eqn in jaxpr.eqns:
    found.append(eqn)
    for inner in eqn.params.values():
      if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
        found += _equations(getattr(inner, "jaxpr", inner))
  return found


@pytest.mark.parametrize(
  ("images", "error", "words"),
  [
    (np.zeros((1, 8, 8, 3), np.float32), TypeError, r"uint8\[N,H,W,C\], not float32\[1, 8, 8, 3\]"),
    (np.zeros((8, 8, 3), np.uint8), TypeError, r"not uint8\[8, 8, 3\]"),
    (np.zeros((1, 8, 8, 4), np.uint8), UserError, "1 or 3 channels; these have 4"),
  ],
)
def test_refuses_other_images(params, images, error, words):
  with pytest.raises(error, match=words):
    inception.InceptionV3().apply({"params": params}, images)


def test_refuses_other_networks():
  shapes = inception.torch_shapes()
  right = {name: np.broadcast_to(np.float32(1), shape) for name, shape in shapes.items()}
  torchvisions = np.zeros((1000, 2048))
  with pytest.raises(UserError, match=r"'fc.weight' has shape \[1000, 2048\], not \[1008, 2048\]"):
    inception.from_torch(right | {"fc.weight": torchvisions})
  with pytest.raises(UserError, match="no tensor 'AuxLogits.fc.weight'"):
    inception.from_torch(right | {"AuxLogits.fc.weight": torchvisions})
  del right["Mixed_7c.branch_pool.bn.running_var"]
  with pytest.raises(UserError, match="tensor 'Mixed_7c.branch_pool.bn.running_var' is missing"):
    inception.from_torch(right)
