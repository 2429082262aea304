"""Networks in ONNX files that read images: opening them, and bringing images to what they read.

The file says what it reads; from its only input's shape and type follow
- the layout: channels, 1 or 3, are axis 1 (NCHW) or axis 3 (NHWC), and have to be a number in the file;
- the size of a batch and of an image, where they are fixed: batches are cut and the last one filled up, images are
  not resized here.
It cannot say how pixels are scaled: that is `scaling`. A network that reads uint8 gets bytes as they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdiff import errors
from jaxdiff.errors import UserError, first_line, require

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)

# name -> what is done to pixels in [0, 1], by channel; torchvision's networks and DINO read "imagenet"
SCALINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  "unit": lambda x: x,
  "symmetric": lambda x: 2 * x - 1,
  "imagenet": lambda x: (x - IMAGENET_MEAN) / IMAGENET_STD,
  "bytes": lambda x: 255 * x,
}
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


class Input(NamedTuple):
  """What a network reads. None: any."""

  name: str
  dtype: Any  # of TYPES
  channels: int  # 1 or 3
  channels_last: bool
  batch: int | None
  height: int | None
  width: int | None


class Network(NamedTuple):
  """An opened file. Not to be pickled: a worker process opens its own."""

  path: str | os.PathLike[str]
  session: Any  # onnxruntime's
  reads: Input
  scale: Callable[[np.ndarray], np.ndarray]  # of SCALINGS


def open_network(path: str | os.PathLike[str], scaling: str) -> Network:
  """The network in an ONNX file.

  Raises: UserError for a file that cannot be read, an input that is not images, an unknown scaling and where
    onnxruntime is missing.
  """
  if scaling not in SCALINGS:
    raise errors.unknown("scaling of an ONNX network's images", scaling, SCALINGS)
  session = open_session(path)
  reads = describe(session, path)
  if scaling == "imagenet" and reads.channels != 3:
    raise UserError(f"{path} reads one channel: scaling 'imagenet' is for three. Use 'unit' or 'symmetric'.")
  return Network(path, session, reads, SCALINGS[scaling])


def apply(network: Network, images: Any, read: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
  """The network's first output for all images, batch by batch.

  `read` brings the output for n images to an array of length n, or raises.
  Shapes: images: u8[N,H,W,1 or 3]; gray ones are repeated for a network that reads three channels.  Returns [N,...].
  Raises: as prepare and run.
  """
  x = prepare(np.asarray(images), network.reads, network.scale, network.path)
  size = network.reads.batch or max(1, len(x))
  found = []
  for start in range(0, max(1, len(x)), size):
    batch = x[start : start + size]
    filler = np.zeros((size - len(batch), *x.shape[1:]), x.dtype)
    feed = {network.reads.name: np.concatenate([batch, filler])}
    found.append(read(run(network.session, feed, network.path), size)[: len(batch)])
  return np.concatenate(found)


def existing(path: str | os.PathLike[str]) -> Path:
  """The path with the user's home in place of ~.  Raises UserError where there is no such file."""
  found = Path(path).expanduser()
  if not found.is_file():
    raise UserError(f"there is no ONNX file {str(found)!r}.")
  return found


def open_session(path: str | os.PathLike[str]) -> Any:
  """onnxruntime's session of a file. Raises UserError where there is no such file or it is not ONNX."""
  path = existing(path)
  onnxruntime = require("onnxruntime", "onnxruntime", "reading an ONNX network")
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3  # errors only: they are raised here as well
  try:
    return onnxruntime.InferenceSession(str(path), options, providers=onnxruntime.get_available_providers())
  except Exception as error:  # noqa: BLE001 - onnxruntime has an exception of its own for each status
    raise UserError(f"cannot read {path} as an ONNX network: {first_line(error)}") from None


def describe(session: Any, path: str | os.PathLike[str]) -> Input:
  """What the network reads. Raises UserError where that is not one batch of images."""
  inputs = session.get_inputs()
  if len(inputs) != 1:
    raise UserError(
      f"{path} has {len(inputs)} inputs ({', '.join(i.name for i in inputs)}), not one of images."
    )
  (given,) = inputs
  what = f"the input {given.name!r} of {path}"
  if given.type not in TYPES:
    raise UserError(f"{what} is {given.type}; it should be one of {', '.join(TYPES)}.")
  shape = [side if isinstance(side, int) and side > 0 else None for side in given.shape]
  if len(shape) != 4:
    raise UserError(f"{what} has {len(shape)} axes; images have 4, [N,C,H,W] or [N,H,W,C].")
  first, last = shape[1] in (1, 3), shape[3] in (1, 3)
  if first == last:
    raise UserError(
      f"{what} has shape {given.shape}: either axis 1 or axis 3 should be 1 or 3, the channels. Export it so."
    )
  batch, height, width, channels = shape if last else [shape[i] for i in (0, 2, 3, 1)]
  assert channels is not None  # for mypy: it is 1 or 3
  return Input(given.name, TYPES[given.type], channels, last, batch, height, width)


def prepare(images: np.ndarray, reads: Input, scale: Callable[..., Any], path: Any) -> np.ndarray:
  """Images as the network reads them.

  Shapes: images: u8[N,H,W,1 or 3].  Returns dtype[N,C,H,W] or [N,H,W,C].
  Raises: TypeError for images that are not uint8; UserError for a size or channels that do not fit.
  """
  if images.ndim != 4 or images.dtype != np.uint8:
    raise TypeError(f"an ONNX network reads images uint8[N,H,W,C], not {images.dtype}{list(images.shape)}")
  height, width, channels = images.shape[1:]
  if (reads.height or height, reads.width or width) != (height, width):
    wanted = f"{reads.height or 'any'}x{reads.width or 'any'}"
    raise UserError(
      f"{path} reads images of {wanted}, these have {height}x{width}. Export it with a resize, or free axes."
    )
  if channels not in (1, reads.channels):
    raise UserError(f"{path} reads images of {reads.channels} channels, these have {channels}.")
  x = images.repeat(reads.channels // channels, axis=-1)
  if reads.dtype != np.uint8:
    x = scale(x.astype(np.float32) / 255).astype(reads.dtype)
  return x if reads.channels_last else np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def run(session: Any, feed: dict[str, np.ndarray], path: Any) -> np.ndarray:
  """The first output. Raises UserError where the network fails on these images."""
  try:
    return np.asarray(session.run(None, feed)[0])
  except Exception as error:  # noqa: BLE001 - as in open_session
    shape = next(iter(feed.values())).shape
    raise UserError(f"{path} fails on images {list(shape)}: {first_line(error)}") from None
