"""What scores read of images: the networks that config.eval.features names, each as one function of uint8 images.

`inception`           FID's Inception: 2048 features and 1008 logits; the weights of the cache, downloaded once
`inception:FILE`      the same with the weights in this .pth or .npz file
`classifier:WORKDIR`  a run of configs/classifier_cfg.py at t = 0: what its last layer reads, and its logits
`onnx:FILE[?SCALING]` any network in an ONNX file; SCALING of pixels as in data.onnx_file.SCALINGS
`pixels`              the pixels in [0, 1], for tests and tiny images
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdiff import classifiers, onnx_model, runs, sums, weights
from jaxdiff.data.base import digest
from jaxdiff.errors import UserError, unknown
from jaxdiff.models import inception
from jaxdiff.tasks import classifier
from jaxdiff.types import PyTree

PER_DEVICE = 64  # images a device is given at a time
MOST_PIXELS = 4096  # numbers of an image whose covariance is still a matter of seconds

Shape = tuple[int, int, int]  # height, width, channels


class Seen(NamedTuple):
  """What a network sees in images."""

  features: np.ndarray  # f32[N,D]
  logits: np.ndarray | None  # f32[N,K], where the network has any


class Extractor(NamedTuple):
  """A network to score with."""

  name: str  # as config.eval.features gives it
  fingerprint: str  # the same network with the same parameters gives the same string, wherever its file lies
  resize: str  # what it does to an image's size
  apply: Callable[[np.ndarray], Seen]  # u8[N,H,W,C] on the host, any N >= 1
  check: Callable[[Shape], None]  # raises UserError for images it cannot read

  @property
  def kind(self) -> str:
    return self.name.partition(":")[0]


def load(spec: str, key: str = "config.eval.features") -> Extractor:
  """The network that spec names, ready to run.  Raises UserError, which names `key`, for one that cannot be had."""
  kind, _, where = spec.partition(":")
  if kind not in KINDS:
    raise unknown(f"features ({key})", spec, KINDS)
  return KINDS[kind](spec, where, key)


def _inception(spec: str, where: str, key: str) -> Extractor:
  del key
  params = weights.inception_weights(where)
  module = inception.InceptionV3()
  return Extractor(
    spec,
    f"inception-{_mark(params)}",
    "to 299x299 in the network, bilinear as in TensorFlow 1.x",
    _compiled(lambda params, images: module.apply({"params": params}, images), params),
    lambda shape: None,
  )


def _classifier(spec: str, where: str, key: str) -> Extractor:
  if not where:
    raise UserError(f"{spec!r} ({key}) does not say which: write classifier:<workdir of a classifier>.")
  workdir = Path(where).expanduser()
  own = classifiers.read_config(workdir, key)
  params = runs.averaged_params(own, workdir)
  wanted = (own.data.image_size, own.data.image_size, own.data.channels)

  def check(shape: Shape) -> None:
    if shape != wanted:
      raise UserError(
        f"the classifier in {where!r} ({key}) reads images of {size(wanted)}, these are of {size(shape)}."
      )

  mark = _mark(params, sorted(own.model.to_dict().items()))
  run = _compiled(classifier.make_features(own), params)
  return Extractor(spec, f"classifier-{mark}", "none", run, check)


def _onnx(spec: str, where: str, key: str) -> Extractor:
  file, _, scaling = where.partition("?")
  if not file:
    raise UserError(f"{spec!r} ({key}) does not say which: write onnx:<file>.")
  run = onnx_model.features(file, scaling or "unit")

  def check(shape: Shape) -> None:
    run(np.zeros((1, *shape), np.uint8))  # says itself what does not fit

  mark = sums.sha256(Path(file).expanduser())[:12]
  return Extractor(
    spec, f"onnx-{mark}-{scaling or 'unit'}", "none", lambda images: Seen(run(images), None), check
  )


def _pixels(spec: str, where: str, key: str) -> Extractor:
  if where:
    raise UserError(f"{spec!r} ({key}): pixels take no argument.")

  def check(shape: Shape) -> None:
    if np.prod(shape) > MOST_PIXELS:
      raise UserError(
        f"{spec!r} ({key}) is for tiny images; {size(shape)} makes {np.prod(shape)} features. Use inception, or a classifier."
      )

  def apply(images: np.ndarray) -> Seen:
    return Seen(images.reshape(len(images), -1).astype(np.float32) / 255, None)

  return Extractor(spec, "pixels", "none", apply, check)


KINDS: dict[str, Callable[[str, str, str], Extractor]] = {
  "inception": _inception,
  "classifier": _classifier,
  "onnx": _onnx,
  "pixels": _pixels,
}


def dimension(extractor: Extractor, shape: Shape) -> int:
  """How many features the network gives of an image of this shape."""
  return extractor.apply(np.zeros((1, *shape), np.uint8)).features.shape[1]


def size(shape: Shape) -> str:
  """A shape for people: 32x32x3."""
  return "x".join(map(str, shape))


def _mark(params: PyTree, *more: Any) -> str:
  return digest(*(np.asarray(leaf) for leaf in jax.tree.leaves(params)), *more)


def _compiled(network: Callable[[PyTree, Any], tuple[Any, Any]], params: PyTree) -> Callable[..., Seen]:
  """The network over this process's devices, each with the same share of a batch of one size: it is compiled once."""
  devices = jax.local_devices()
  grid = Mesh(np.asarray(devices), ("data",))
  split = NamedSharding(grid, P("data"))
  placed = jax.device_put(params, NamedSharding(grid, P()))
  run, step = jax.jit(network), PER_DEVICE * len(devices)

  def apply(images: np.ndarray) -> Seen:
    parts = []
    for start in range(0, len(images), step):
      batch = images[start : start + step]
      filler = np.zeros((step - len(batch), *images.shape[1:]), np.uint8)
      seen = run(placed, jax.device_put(np.concatenate([batch, filler]), split))
      parts.append([np.asarray(values, np.float32)[: len(batch)] for values in seen])
    features, logits = (np.concatenate(values) for values in zip(*parts, strict=True))
    return Seen(features, logits)

  return apply
