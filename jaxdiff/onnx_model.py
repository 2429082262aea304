"""Features of images from any network in an ONNX file, for scores on data that Inception knows nothing of.

How images reach the network is told in data/onnx_file.py. They are not resized (how that is done changes scores: let the
exported graph do it as the network was trained).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxdiff.data import onnx_file
from jaxdiff.errors import UserError


def features(path: str | os.PathLike[str], scaling: str = "unit") -> Callable[[Any], np.ndarray]:
  """The network in an ONNX file as a function u8[N,H,W,C] -> f32[N,D]: its first output.

  Gray images are repeated for a network that reads three channels.

  Raises: UserError, here, for a file that cannot be read, an input that is not images, an unknown scaling and where
    onnxruntime is missing; from the function, for images that do not fit and outputs that are not a vector an image.
  """
  network = onnx_file.open_network(path, scaling)
  return lambda images: onnx_file.apply(network, images, functools.partial(vectors, path))


def vectors(path: Any, out: np.ndarray, number: int) -> np.ndarray:
  """A network's output for `number` images, f32[N,D]. Raises UserError where it is no vector an image, or not finite."""
  if out.ndim < 2 or len(out) != number or max(out.shape[1:]) != np.prod(out.shape[1:]):
    raise UserError(
      f"the first output of {path} has shape {list(out.shape)} for {number} images; it should be [N,D], a vector "
      "an image: export the network up to its pooled features."
    )
  found = out.reshape(number, -1).astype(np.float32)
  if not np.isfinite(found).all():
    raise UserError(
      f"the first output of {path} is not finite for some of the images: there is no distance between such."
    )
  return found
