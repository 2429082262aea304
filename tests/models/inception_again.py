"""FID's Inception once more, in plain torch and float64: to compare with, where torch-fidelity is not installed.

`fidelity` is the original, `random_tensors` a state dict for all of them. Only what uses PyTorch asks for it.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import numpy as np
import pytest

from jaxdiff.models import inception


def random_tensors(seed: int = 0) -> dict[str, np.ndarray]:
  """A state dict whose activations stay near 1, with a batch norm that does something. f32, name -> array."""
  rng = np.random.default_rng(seed)

  def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name.endswith(("running_var", "bn.weight")):
      return rng.uniform(0.5, 1.5, shape)
    if len(shape) == 1:
      return rng.normal(0, 0.2, shape)
    return rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)

  return {name: draw(name, shape).astype(np.float32) for name, shape in inception.torch_shapes().items()}


def features_and_logits(tensors: dict[str, np.ndarray], images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The last pool's features and the logits without bias, computed in float64. Images: u8[N,H,W,3]."""
  torch = pytest.importorskip("torch")
  state = {name: torch.from_numpy(tensor).double() for name, tensor in tensors.items()}
  x = torch.from_numpy(np.stack([resized(image) for image in images])).permute(0, 3, 1, 2)
  with torch.no_grad():
    x = pooled(state, (x - 128) / 128)
  return x.numpy(), (x @ state["fc.weight"].T).numpy()


def resized(image: np.ndarray) -> np.ndarray:
  """TensorFlow 1.x's bilinear resize, row by row, then column by column. u8[H,W,C] -> f64[299,299,C]."""
  x = image.astype(np.float64)
  for axis in (0, 1):
    x = np.moveaxis(x, axis, 0)
    size = len(x)
    result = np.empty((299, *x.shape[1:]))
    for i in range(299):
      position = np.float32(i) * np.float32(size / 299)  # float32 there
      low = int(position)
      part = float(position) - low
      result[i] = x[low] * (1 - part) + x[min(low + 1, size - 1)] * part
    x = np.moveaxis(result, 0, axis)
  return x


def pooled(state: dict[str, Any], x: Any) -> Any:
  """From scaled images [N,3,299,299] to features [N,2048]."""
  import torch
  import torch.nn.functional as F

  def conv(x: Any, name: str, stride: int = 1, same: bool = True) -> Any:
    weight = state[f"{name}.conv.weight"]
    padding = tuple(n // 2 for n in weight.shape[2:]) if same and stride == 1 else 0
    x = F.conv2d(x, weight, stride=stride, padding=padding)
    norm = [state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return F.relu(F.batch_norm(x, *norm, eps=0.001))

  def average(x: Any) -> Any:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

  def block(x: Any, name: str, *branches: str, pool: Any, stride: int = 1) -> Any:
    """Each branch is a chain of convolutions, separated by spaces; a slash parts the two ends of a fork."""
    found = []
    for branch in branches:
      *chain, ends = branch.split()
      h = x
      for part in chain:
        h = conv(h, f"{name}.{part}")
      found += [conv(h, f"{name}.{end}", stride) for end in ends.split("/")]
    end = pool(x)
    found.append(conv(end, f"{name}.branch_pool") if stride == 1 else end)
    return torch.cat(found, 1)

  x = conv(x, "Conv2d_1a_3x3", stride=2)
  x = conv(x, "Conv2d_2a_3x3", same=False)
  x = F.max_pool2d(conv(x, "Conv2d_2b_3x3"), 3, stride=2)
  x = conv(x, "Conv2d_3b_1x1")
  x = F.max_pool2d(conv(x, "Conv2d_4a_3x3", same=False), 3, stride=2)
  dbl = "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3"
  for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
    x = block(x, name, "branch1x1", "branch5x5_1 branch5x5_2", dbl, pool=average)
  x = block(x, "Mixed_6a", "branch3x3", dbl, pool=lambda x: F.max_pool2d(x, 3, 2), stride=2)
  for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
    seven = " ".join(f"branch7x7_{i}" for i in (1, 2, 3))
    double = " ".join(f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5))
    x = block(x, name, "branch1x1", seven, double, pool=average)
  seven = " ".join(f"branch7x7x3_{i}" for i in (1, 2, 3, 4))
  x = block(x, "Mixed_7a", "branch3x3_1 branch3x3_2", seven, pool=lambda x: F.max_pool2d(x, 3, 2), stride=2)
  ends = (
    "branch3x3_1 branch3x3_2a/branch3x3_2b",
    "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a/branch3x3dbl_3b",
  )
  x = block(x, "Mixed_7b", "branch1x1", *ends, pool=average)
  x = block(x, "Mixed_7c", "branch1x1", *ends, pool=lambda x: F.max_pool2d(x, 3, stride=1, padding=1))
  return x.mean((2, 3))


def fidelity(path: str, outputs: list[str]) -> Any:
  """torch-fidelity's network in float64 with the weights of a file; skips the test where it is not installed.

  Its package imports torchvision, which need not work beside this torch; the module asked for does not need it.
  """
  torch = pytest.importorskip("torch")
  if "torch_fidelity" not in sys.modules:
    if (spec := importlib.util.find_spec("torch_fidelity")) is None:
      pytest.skip("torch-fidelity is not installed (pip install --no-deps torch-fidelity)")
    sys.modules["torch_fidelity"] = importlib.util.module_from_spec(spec)  # its __init__ is not run
  from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

  network = FeatureExtractorInceptionV3("inception-v3", outputs, feature_extractor_weights_path=path).double()
  network.feature_extractor_internal_dtype = torch.float64
  return network
