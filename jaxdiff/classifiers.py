"""The classifier that config.sample.classifier names: a run of configs/classifier_cfg.py, or a function of the user's."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import configuration, runs
from jaxdiff.errors import UserError, first_line, unknown
from jaxdiff.tasks import classifier, process
from jaxdiff.types import NULL_LABEL, Array, PyTree

SEES = ("auto", "z", "x")
EXAMPLE = 2  # images on which a user's function is tried


class Classifier(NamedTuple):
  """A function (params, z, t, label) -> log p(label | z_t), f32[B], its parameters, and what it is to be shown.

  Without a label (NULL_LABEL) it is the log of a certainty, 0, which steers nowhere; functions of the user's get the label as it is.
  """

  log_prob: Callable[[PyTree, Array, Array, Array], Array]
  params: PyTree
  sees_x: bool  # the predicted clean image, at t = 0, instead of z_t


def check(config: Any) -> None:
  """Raises UserError where config.sample.classifier cannot steer this config's model."""
  s = config.sample
  if s.classifier_sees not in SEES:
    raise unknown("value of config.sample.classifier_sees", s.classifier_sees, SEES)
  if not s.classifier:
    return
  if _workdir(s).is_dir():
    _check_fits(_steering_config(s), config)
  else:
    _try(_function(s.classifier), config)


def load(config: Any) -> Classifier:
  """The classifier, ready to steer this config's model.  Raises UserError as `check`, and where it has no checkpoint."""
  s = config.sample
  if not _workdir(s).is_dir():
    function = _function(s.classifier)
    return Classifier(lambda params, z, t, label: function(z, t, label), {}, s.classifier_sees == "x")
  own = _steering_config(s)
  # Through the host, so that they go wherever the rows to draw lie.
  params = jax.tree.map(jnp.asarray, runs.averaged_params(own, _workdir(s)))
  sees_x = process.is_clean(own.diffusion) if s.classifier_sees == "auto" else s.classifier_sees == "x"
  foreign = None if sees_x or _same_schedule(own, config) else process.build_schedule(config.diffusion)
  log_probs = classifier.make_log_probs(own, noised_by=foreign)

  def log_prob(params: PyTree, z: Array, t: Array, label: Array) -> Array:
    asked = jnp.take_along_axis(log_probs(params, z, t), jnp.maximum(label, 0)[:, None], axis=1)[:, 0]
    return jnp.where(label == NULL_LABEL, 0.0, asked)

  return Classifier(log_prob, params, sees_x)


def num_classes(config: Any) -> int:
  """How many classes can be asked for: the model's, or, if it knows none, those of its classifier; 0: unknown."""
  s = config.sample
  if config.model.num_classes or not s.classifier or not _workdir(s).is_dir():
    return config.model.num_classes
  return _steering_config(s).model.num_classes


def read_config(workdir: Path, key: str) -> Any:
  """The config of a classifier's run.  Raises UserError for another task's; key says where the workdir was given."""
  own = configuration.of_run(workdir)
  if own.task != "classifier":
    raise UserError(
      f"{str(workdir)!r} ({key}) holds a run of the task {own.task!r}, not of a classifier. Train one: "
      "python -m jaxdiff.main --config configs/classifier_cfg.py"
    )
  return own


def _workdir(s: Any) -> Path:
  return Path(s.classifier).expanduser()


def _steering_config(s: Any) -> Any:
  own = read_config(_workdir(s), "config.sample.classifier")
  if s.classifier_sees == "z" and process.is_clean(own.diffusion):
    raise UserError(
      f"{s.classifier!r} (config.sample.classifier) was trained on clean images alone and cannot be shown z. "
      "Use --config.sample.classifier_sees=x."
    )
  return own


def _same_schedule(one: Any, other: Any) -> bool:
  return all(one.diffusion[key] == other.diffusion[key] for key in ("schedule", "shift", "zero_terminal_snr"))


def _check_fits(own: Any, config: Any) -> None:
  """Raises UserError where a classifier was trained on other images or classes than the model."""
  name = f"the classifier in {config.sample.classifier!r} (config.sample.classifier)"
  for key, unit in (("image_size", "pixels"), ("channels", "channels")):
    if own.data[key] != config.data[key]:
      raise UserError(
        f"{name} was trained on images of {own.data[key]} {unit} (config.data.{key}), the model on {config.data[key]}."
      )
  classes = config.model.num_classes
  if classes and own.model.num_classes != classes:
    raise UserError(f"{name} knows {own.model.num_classes} classes, the model {classes}.")


def _function(spec: str) -> Callable[[Array, Array, Array], Array]:
  """What `module:function` names.  Raises UserError where there is no such thing."""
  module, colon, name = spec.partition(":")
  if not colon:
    raise UserError(
      f"there is no folder {spec!r} (config.sample.classifier). Give the workdir of a classifier, or module:function."
    )
  try:
    function = getattr(importlib.import_module(module), name)
  except (ImportError, AttributeError) as error:
    raise UserError(f"cannot import {spec!r} (config.sample.classifier): {error}.") from error
  if not callable(function):
    raise UserError(f"{spec!r} (config.sample.classifier) is not a function but {function!r}.")
  return function


def _try(function: Callable[[Array, Array, Array], Array], config: Any) -> None:
  """Raises UserError where a function does not return one number an image for images of this config's shape."""
  side, spec = config.data.image_size, config.sample.classifier
  z = jax.ShapeDtypeStruct((EXAMPLE, side, side, config.data.channels), jnp.float32)
  t = jax.ShapeDtypeStruct((EXAMPLE,), jnp.float32)
  label = jax.ShapeDtypeStruct((EXAMPLE,), jnp.int32)
  wanted = (
    f"take (z f32{list(z.shape)}, t f32[{EXAMPLE}], label i32[{EXAMPLE}]) and return log p, f32[{EXAMPLE}]"
  )
  try:
    said = jax.eval_shape(function, z, t, label)
  except Exception as error:
    raise UserError(
      f"{spec!r} (config.sample.classifier) failed with {type(error).__name__}: {first_line(error)}. It must {wanted}."
    ) from error
  if getattr(said, "shape", None) != (EXAMPLE,):
    shape = getattr(said, "shape", type(said).__name__)
    raise UserError(f"{spec!r} (config.sample.classifier) returned {shape}. It must {wanted}.")
