"""Hints by a user's network in an ONNX file."""

from __future__ import annotations

import functools
from typing import Any

import cv2
import numpy as np

from jaxdiff.data import onnx_file, transforms
from jaxdiff.data.hints import inputs
from jaxdiff.errors import UserError


@functools.lru_cache(maxsize=4)
def opened(path: str, scaling: str) -> onnx_file.Network:
  """The network of a file, opened once in each process: a session cannot be sent to another one."""
  return onnx_file.open_network(path, scaling)


def labels(image: np.ndarray, path: str, scaling: str) -> np.ndarray:
  """The class of each pixel by a network: uint8[H,W].

  The network gives logits with the classes on the axis of the input's channels, or labels [N,h,w] (or with an axis of 1
  for the channels). Raises UserError for another output, or labels outside 0..255.
  """
  network = opened(path, scaling)

  def read(out: np.ndarray, number: int) -> np.ndarray:
    classes = 3 if network.reads.channels_last else 1
    out = _maps(out, number, path, "logits [N,C,h,w] or labels [N,h,w]")
    found = out.argmax(classes) if out.ndim == 4 else out
    if found.min() < 0 or found.max() > 255:
      raise UserError(
        f"{path} gives labels of {found.min():g} to {found.max():g} (config.data.hint). Use 0 to 255."
      )
    return found.astype(np.uint8)

  found = onnx_file.apply(network, _fitted(image, network.reads), read)[0]
  return transforms.nearest(found[..., None], *image.shape[:2])[..., 0]


def depths(image: np.ndarray, path: str, scaling: str) -> np.ndarray:
  """What a network says of the depth of each pixel, in its own units: f32[H,W].  Raises UserError for another output."""
  network = opened(path, scaling)

  def read(out: np.ndarray, number: int) -> np.ndarray:
    out = _maps(out, number, path, "depths [N,h,w] or [N,1,h,w]")
    if out.ndim == 4:
      raise UserError(
        f"the first output of {path} has shape {list(out.shape)}; a depth hint wants [N,h,w] or [N,1,h,w]."
      )
    return out.astype(np.float32)

  found = onnx_file.apply(network, _fitted(image, network.reads), read)[0]
  if not np.isfinite(found).all():
    raise UserError(f"{path} gives depths that are not finite (config.data.hint).")
  return cv2.resize(found, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def _fitted(image: np.ndarray, reads: onnx_file.Input) -> np.ndarray:
  """The image as a batch of one, of the size and channels that a network reads."""
  inputs.check(image)
  height, width = reads.height or image.shape[0], reads.width or image.shape[1]
  return transforms.scale(transforms.with_channels(image, reads.channels), height, width)[None]


def _maps(out: np.ndarray, number: int, path: Any, wanted: str) -> np.ndarray:
  """A network's output as [N,h,w], or as it is where it has several channels."""
  if out.ndim not in (3, 4) or len(out) != number:
    raise UserError(
      f"the first output of {path} has shape {list(out.shape)} for {number} images; a hint wants {wanted}."
    )
  single = [axis for axis in (1, 3) if out.ndim == 4 and out.shape[axis] == 1]
  return out.squeeze(single[0]) if single else out
