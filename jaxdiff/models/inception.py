"""The InceptionV3 of 2015-12-05 that Frechet distances (FID), Inception Scores and precision and recall are read from.

It is the network of Szegedy et al. 2015 (arXiv 1512.00567) as TensorFlow published it, which differs from that of
other libraries and from the paper: padding does not count in average pools, the last block pools by maximum, and
there are 1008 logits. Scores compare only between programs that agree on this and on how images are resized:

- Here images are resized in the network, as in the reference graph (TensorFlow 1.x, bilinear). The evaluator of
  ADM (guided-diffusion), TTUR, torch-fidelity and clean-fid's mode "legacy_tensorflow" do so too.
- pytorch-fid has the same weights but resizes with half-pixel centres; clean-fid's mode "clean" resizes before the
  network with PIL's bicubic filter, smoothed where it shrinks. Their scores are others, most so for small images.

Weights are read by jaxdiff.weights; `from_torch` makes parameters of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import traverse_util

from jaxdiff.errors import UserError
from jaxdiff.types import Array

SIZE = 299
NUM_CLASSES = 1008  # ImageNet's 1000 among them
BATCH_NORM_EPS = 1e-3
BATCH_NORM = ("weight", "bias", "running_mean", "running_var")  # torch's names, in fold's order

# Products of full float32s also where the hardware would round factors first (bfloat16 on a TPU, TF32 on a GPU).
PRECISION = jax.lax.Precision.HIGHEST

Layer = tuple[int, int, int]  # features, height and width of the kernel


def resize(images: Array) -> Array:
  """Images at 299x299, bilinear as TensorFlow 1.x does it by default.

  Pixel i of an output row lies at p = i W / 299 of the input row: corners are not aligned, pixels are points
  without half-pixel centres, and an image that shrinks is not smoothed. Its value is
  (1 - d) x[floor p] + d x[min(floor p + 1, W - 1)],  d = p - floor p.

  Shapes: images: u8 or f32[N,H,W,C].  Returns f32[N,299,299,C], in the units of `images`.
  Source: tensorflow/core/kernels/resize_bilinear_op.cc (2015); its positions are float32, and so are these.
  """
  x = jnp.asarray(images).astype(jnp.float32)
  for axis in (2, 1):  # within rows first, as there: the other order rounds differently
    low, high, weight = neighbours(x.shape[axis])
    shape = [-1 if i == axis else 1 for i in range(4)]
    near, far = jnp.take(x, low, axis), jnp.take(x, high, axis)
    x = near + (far - near) * weight.reshape(shape)
  return x


def neighbours(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """For each of 299 output pixels: the two input pixels between which it lies, and the weight of the second.

  Shapes: returns i32[299], i32[299] in [0, size) and f32[299] in [0, 1).
  """
  position = np.arange(SIZE, dtype=np.float32) * np.float32(size / SIZE)
  low = position.astype(np.int32)
  return low, np.minimum(low + 1, size - 1), position - low.astype(np.float32)


def average_pool(x: Array) -> Array:
  """The mean of the 3x3 pixels around each; beyond the border there are none to count. [N,H,W,C] -> the same."""
  return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def max_pool(x: Array, stride: int = 2) -> Array:
  """The maximum of 3x3 pixels: around each one (stride 1), or of every second square that lies inside."""
  return nn.max_pool(x, (3, 3), (stride, stride), padding="SAME" if stride == 1 else "VALID")


def conv(x: Array, layer: Layer, name: str, stride: int = 1, padding: str = "") -> Array:
  """relu(batch_norm(convolution)), the norm folded into the convolution. Pads where it has stride 1, unless told."""
  features, *size = layer
  padding = padding or ("SAME" if stride == 1 else "VALID")
  module = nn.Conv(features, size, (stride, stride), padding, precision=PRECISION, name=name)
  return nn.relu(module(x))


def tower(x: Array, name: str, *layers: Layer, stride: int = 1) -> Array:
  """Convolutions one after the other, named name_1, name_2, ...; the last has the stride."""
  for i, layer in enumerate(layers, start=1):
    x = conv(x, layer, f"{name}_{i}", stride if i == len(layers) else 1)
  return x


def join(*branches: Array) -> Array:
  """The branches of a block, by channels."""
  return jnp.concatenate(branches, axis=-1)


class BlockA(nn.Module):
  """At 35x35: a small, a middle and a large window, and a pool.  [N,35,35,C] -> f32[N,35,35,224+pool_features]."""

  pool_features: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return join(
      conv(x, (64, 1, 1), "branch1x1"),
      tower(x, "branch5x5", (48, 1, 1), (64, 5, 5)),
      tower(x, "branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3)),
      conv(average_pool(x), (self.pool_features, 1, 1), "branch_pool"),
    )


class BlockB(nn.Module):
  """From 35x35 to 17x17.  Shapes: x: [N,35,35,288].  Returns f32[N,17,17,768]."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return join(
      conv(x, (384, 3, 3), "branch3x3", stride=2),
      tower(x, "branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3), stride=2),
      max_pool(x),
    )


class BlockC(nn.Module):
  """At 17x17: 7x7 windows as a row and a column.  Shapes: x: [N,17,17,768].  Returns f32[N,17,17,768]."""

  features: int  # inside the towers

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = self.features
    return join(
      conv(x, (192, 1, 1), "branch1x1"),
      tower(x, "branch7x7", (c, 1, 1), (c, 1, 7), (192, 7, 1)),
      tower(x, "branch7x7dbl", (c, 1, 1), (c, 7, 1), (c, 1, 7), (c, 7, 1), (192, 1, 7)),
      conv(average_pool(x), (192, 1, 1), "branch_pool"),
    )


class BlockD(nn.Module):
  """From 17x17 to 8x8.  Shapes: x: [N,17,17,768].  Returns f32[N,8,8,1280]."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return join(
      tower(x, "branch3x3", (192, 1, 1), (320, 3, 3), stride=2),
      tower(x, "branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3), stride=2),
      max_pool(x),
    )


class BlockE(nn.Module):
  """At 8x8: towers that end in a row and a column side by side.  Shapes: x: [N,8,8,C].  Returns f32[N,8,8,2048].

  The reference pools the first of its two such blocks by average, the second by maximum.
  """

  max_pooled: bool

  @nn.compact
  def __call__(self, x: Array) -> Array:
    three = conv(x, (384, 1, 1), "branch3x3_1")
    double = tower(x, "branch3x3dbl", (448, 1, 1), (384, 3, 3))
    pooled = max_pool(x, stride=1) if self.max_pooled else average_pool(x)
    return join(
      conv(x, (320, 1, 1), "branch1x1"),
      conv(three, (384, 1, 3), "branch3x3_2a"),
      conv(three, (384, 3, 1), "branch3x3_2b"),
      conv(double, (384, 1, 3), "branch3x3dbl_3a"),
      conv(double, (384, 3, 1), "branch3x3dbl_3b"),
      conv(pooled, (192, 1, 1), "branch_pool"),
    )


class InceptionV3(nn.Module):
  """Features and logits of images, for scores.  For inference only: its batch norm is folded into its convolutions.

  The features are the last block's mean over pixels ("pool3"). The logits are without the classifier's bias, as the
  Inception Score has been computed since its first program (Salimans et al. 2016), in ADM's evaluator and as
  "logits_unbiased" in torch-fidelity; logit_bias=True adds it, for the class probabilities as they were trained.

  Shapes: images: u8[N,H,W,1 or 3] of any size; gray ones are read as RGB.  Returns (f32[N,2048], f32[N,1008]).
  Raises: TypeError for images that are not uint8; UserError for another number of channels.
  Source: Szegedy et al. 2015, section 6, as in the graph inception-2015-12-05 and FID's port of it to PyTorch.
  """

  logit_bias: bool = False

  @nn.compact
  def __call__(self, images: Array) -> tuple[Array, Array]:
    check_images(images)
    x = (resize(images) - 128) / 128
    if x.shape[-1] == 1:
      x = jnp.repeat(x, 3, axis=-1)
    x = conv(x, (32, 3, 3), "Conv2d_1a_3x3", stride=2)
    x = conv(x, (32, 3, 3), "Conv2d_2a_3x3", padding="VALID")
    x = max_pool(conv(x, (64, 3, 3), "Conv2d_2b_3x3"))
    x = conv(x, (80, 1, 1), "Conv2d_3b_1x1")
    x = max_pool(conv(x, (192, 3, 3), "Conv2d_4a_3x3", padding="VALID"))
    for name, pool_features in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
      x = BlockA(pool_features, name=name)(x)
    x = BlockB(name="Mixed_6a")(x)
    for name, features in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
      x = BlockC(features, name=name)(x)
    x = BlockD(name="Mixed_7a")(x)
    x = BlockE(max_pooled=False, name="Mixed_7b")(x)
    x = BlockE(max_pooled=True, name="Mixed_7c")(x)
    x = x.mean(axis=(1, 2))
    return x, nn.Dense(NUM_CLASSES, use_bias=self.logit_bias, precision=PRECISION, name="fc")(x)


def check_images(images: Array) -> None:
  """Raises TypeError or UserError for images that the network cannot read."""
  if images.ndim != 4 or images.dtype != jnp.uint8:
    raise TypeError(f"Inception reads images uint8[N,H,W,C], not {images.dtype}{list(images.shape)}")
  if images.shape[-1] not in (1, 3):
    raise UserError(f"Inception reads images of 1 or 3 channels; these have {images.shape[-1]}.")


def from_torch(tensors: Mapping[str, Any]) -> dict[str, Any]:
  """The parameters that the tensors of a PyTorch state dict make, batch norm folded in.

  pytorch-fid and torch-fidelity name them alike: Mixed_5b.branch1x1.conv.weight, ...bn.running_var, fc.bias.
  Counters that torch keeps beside a batch norm (num_batches_tracked) have no part.

  Shapes: tensors: name -> an array of floats, as torch_shapes() has them.
  Raises: UserError for a tensor that is missing, unknown or of another shape.
  """
  expected = torch_shapes()
  check_tensors({name: np.shape(tensor) for name, tensor in tensors.items()}, expected)
  params: dict[str, Any] = {}
  for name in expected:
    module, _, kind = name.rpartition(".")
    if kind != "weight" or module.endswith(".bn"):
      continue
    if module.endswith(".conv"):
      module = module.removesuffix(".conv")
      kernel, bias = fold(tensors[name], *(tensors[f"{module}.bn.{part}"] for part in BATCH_NORM))
    else:
      kernel, bias = np.asarray(tensors[name]).T, np.asarray(tensors[f"{module}.bias"])
    params |= {f"{module}.kernel": kernel, f"{module}.bias": bias}
  return traverse_util.unflatten_dict({k: jnp.asarray(v, jnp.float32) for k, v in params.items()}, sep=".")


def fold(weight: Any, scale: Any, bias: Any, mean: Any, var: Any) -> tuple[np.ndarray, np.ndarray]:
  """Kernel and bias of the convolution that is equal to one without bias and the batch norm after it.

  scale (w * x - mean) / sqrt(var + eps) + bias  =  (r w) * x + (bias - r mean),  r = scale / sqrt(var + eps)

  Shapes: weight: f32[O,I,H,W], torch's order; the others f32[O].  Returns (f64[H,W,I,O], f64[O]).
  Source: Ioffe & Szegedy 2015 (arXiv 1502.03167), algorithm 2, line 11.
  """
  weight, scale, bias, mean, var = (np.asarray(a, np.float64) for a in (weight, scale, bias, mean, var))
  ratio = scale / np.sqrt(var + BATCH_NORM_EPS)
  return rearrange(weight, "o i h w -> h w i o") * ratio, bias - ratio * mean


def torch_shapes() -> dict[str, tuple[int, ...]]:
  """The tensors that the network has in PyTorch: name -> shape."""
  images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.uint8)
  params = jax.eval_shape(InceptionV3().init, jax.random.key(0), images)["params"]
  found: dict[str, tuple[int, ...]] = {}
  for path, array in traverse_util.flatten_dict(params, sep=".").items():
    module, _, kind = path.rpartition(".")
    if module == "fc":
      found |= {"fc.weight": array.shape[::-1], "fc.bias": (NUM_CLASSES,)}
    elif kind == "kernel":
      height, width, inputs, outputs = array.shape
      found[f"{module}.conv.weight"] = (outputs, inputs, height, width)
      found |= {f"{module}.bn.{part}": (outputs,) for part in BATCH_NORM}
  return found


def check_tensors(shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
  """Raises UserError for the first tensor that is missing, of another shape than expected, or unknown."""
  for name, shape in expected.items():
    if name not in shapes:
      raise another_network(f"tensor {name!r} is missing")
    if shapes[name] != shape:
      raise another_network(f"tensor {name!r} has shape {list(shapes[name])}, not {list(shape)}")
  for name in shapes:
    if name not in expected and not name.endswith(".num_batches_tracked"):
      raise another_network(f"Inception has no tensor {name!r}")


def another_network(wrong: str) -> UserError:
  """The UserError for tensors of which something is wrong."""
  return UserError(
    f"these are not the weights of FID's Inception: {wrong}. torchvision's own is another network."
  )
