"""Trained models as two small files to keep or pass on: config.json, and model.safetensors with what draws images.

A checkpoint holds all that training needs. A model file holds the averaged parameters, and those of the base where the run is a
control branch, often in half precision. Reading it runs no code: a safetensors file is a table of names, shapes and numbers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors
import safetensors.numpy

from jaxdiff import configuration, optim
from jaxdiff.errors import UserError, unknown
from jaxdiff.files import write_atomically
from jaxdiff.parallel import Strategy
from jaxdiff.types import DistillState, PyTree, TrainState

FILE = "model.safetensors"
DTYPES = ("float32", "float16", "bfloat16")
OF_TRAINING = {field.name for field in dataclasses.fields(TrainState)}


def write(folder: Path, config: Any, state: Any, label_names: tuple[str, ...], dtype: str) -> Path:
  """Writes a run's model into a folder; config.json last, so that a folder with one is whole.  Returns the model file.

  Numbers are rounded to dtype.  Raises UserError for an unknown dtype, a model that does not fit it, a run in the middle of a
  distillation, and a folder that cannot be written.
  """
  if dtype not in DTYPES:
    raise unknown("number format (config.export.dtype)", dtype, DTYPES)
  if isinstance(state, DistillState):
    raise UserError(
      "a distillation is many models: export a student of it, as --workdir checkpoints/distill_digits/steps_0004."
    )
  leaves = {name: np.asarray(leaf) for name, leaf in _leaves(model_of(state)).items()}
  with np.errstate(over="ignore"):  # told below
    kept = {name: leaf.astype(jnp.dtype(dtype)) for name, leaf in leaves.items()}
  for name, leaf in kept.items():
    if not np.isfinite(leaf.astype(np.float32)).all():
      raise UserError(
        f"{name} has numbers that {dtype} (config.export.dtype) cannot hold. Use bfloat16 or float32."
      )
  told = {"step": str(int(state.step)), "label_names": json.dumps(label_names)}
  data = safetensors.numpy.save(kept, metadata=told)
  write_atomically(folder / FILE, lambda file: file.write(data))
  text = configuration.to_json(config).encode()
  write_atomically(folder / "config.json", lambda file: file.write(text))
  return folder / FILE


def read(folder: Path, make: Callable[[], Any], strategy: Strategy) -> tuple[Any, dict[str, Any]]:
  """(state, {"label_names"}) of a model file: what make() makes, placed by the strategy, with the file's numbers in float32.

  The optimizer's state is a fresh one.  Raises UserError for a file that is damaged or of another network.
  """
  path = folder / FILE
  try:
    with safetensors.safe_open(path, framework="np") as file:
      told, names = file.metadata(), file.keys()
      tensors = {name: file.get_tensor(name) for name in names}
    record = {"label_names": json.loads(told["label_names"])}
    step = int(told["step"])
  except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
    raise UserError(f"{path} cannot be read as a model file ({error}). Get it again.") from error
  state = strategy.init(make)
  wanted = _leaves(model_of(state))
  _check(path, tensors, wanted)
  placed = {
    name: jax.device_put(tensors[name].astype(leaf.dtype), leaf.sharding) for name, leaf in wanted.items()
  }
  model = jax.tree.unflatten(jax.tree.structure(model_of(state)), list(placed.values()))
  opt_state = optax.tree.set(state.opt_state, ema_params=model["params"])
  return state.replace(**model, opt_state=opt_state, step=jnp.asarray(step, jnp.int32)), record


def model_of(state: Any) -> dict[str, PyTree]:
  """What of a state draws images: the averaged parameters, and what a variant of the state has beside them, as a base's."""
  others = {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if f.name not in OF_TRAINING}
  return {"params": optim.ema_params(state), **others}


def _leaves(tree: PyTree) -> dict[str, Any]:
  """name -> leaf, in the tree's order."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _check(path: Path, tensors: dict[str, np.ndarray], wanted: dict[str, Any]) -> None:
  """Raises UserError naming the first array that is missing, not known, or of another shape than the network's."""
  for name in sorted(tensors.keys() | wanted.keys()):
    here, there = (list(found[name].shape) if name in found else "absent" for found in (wanted, tensors))
    if here != there:
      raise UserError(
        f"{path} does not fit the config.json beside it: {name} is {there} in the file and {here} in this network."
      )
