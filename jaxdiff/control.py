"""What images are drawn under beside their label: the hints that config.sample names, and how strongly branches act.

Several branches of one base act together (config.sample.branches); each reads a hint of its own kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import configuration, data, distributed, optim, runs
from jaxdiff.data import pixels
from jaxdiff.errors import UserError
from jaxdiff.hint_reader import make_reader, network_for, source_of
from jaxdiff.models.controlnet import num_controls
from jaxdiff.types import Array, Cond, PyTree

ROUNDING = 2**-7  # of a base's values, where one of two branches was exported in half precision
GUESS_DECAY = 0.825  # strength of a control over that of the next deeper one
NEEDED_BY = {
  "hint": "", "hint_is_map": False, "hint_guidance": 1.0, "control_scale": (1.0,), "branches": "", "guess": False,
}  # fmt: skip


class Control(NamedTuple):
  """What is asked of an image beside its label; the identity for models without a branch."""

  # numbers of images -> the hint of each branch, u8[B,S,S,Ch]
  rows: Callable[[np.ndarray], PyTree] = lambda number: ()
  # (a run's state, its parameters) -> those of all branches
  params: Callable[[Any, PyTree], PyTree] = lambda state, params: params
  # of each branch, as config.sample says now
  strengths: Callable[[], PyTree] = lambda: ()
  # (label, rows, strengths, params), inside what is compiled
  cond: Callable[..., Cond] = lambda label, rows, strengths, params: Cond(label)


class Branch(NamedTuple):
  """One branch: the config that it was trained with, and what it is asked for."""

  config: Any
  hint: str  # of config.sample.hint


def make(config: Any) -> Control:
  """The control of config.sample; reads further branches and the files it names.  Raises UserError for what cannot be."""
  if config.task != "controlnet":
    return Control()
  s = config.sample
  branches = _branches(config)
  sources = [make_hints(config, branch) for branch in branches]
  others: tuple[PyTree, ...] = ()
  unchecked: dict[Path, PyTree] = {}  # bases, of which one is enough where a branch acts twice
  for path in _others(s):
    control, unchecked[path] = _on_host(config, path)
    others += (jax.tree.map(jnp.asarray, control),)

  def params(state: Any, own: PyTree) -> PyTree:
    while unchecked:
      _check_base(state.base_params, *unchecked.popitem())
    # At strength 0 without a decoder that was trained too: what is drawn is the base's.
    own = own if any(s.control_scale) else {"control": own["control"]}
    return own | {"control": (own["control"], *others)}

  def cond(label: Array, rows: PyTree, strengths: PyTree, params: PyTree) -> Cond:
    scales = zip(strengths, params["control"], strict=True)
    scaled = tuple(_scales(s.guess, strength, branch, len(label)) for strength, branch in scales)
    return Cond(label, tuple(pixels.to_unit(row) for row in rows), scaled)

  return Control(
    rows=lambda number: tuple(hint_of(number) for hint_of in sources),
    params=params,
    strengths=lambda: tuple(np.resize(np.asarray(s.control_scale, np.float32), len(branches))),
    cond=cond,
  )


def check(config: Any) -> None:
  """Raises UserError for hints and branches that cannot work with this config's model."""
  s = config.sample
  if config.task != "controlnet":
    for key, default in NEEDED_BY.items():
      if s[key] != default:
        raise UserError(
          f"config.sample.{key} is {s[key]!r}, which needs a control branch; this run is of the task {config.task!r}. "
          "Train one: python -m jaxdiff.main --config configs/controlnet_cfg.py"
        )
    return
  if not s.hint:
    raise UserError(
      f"a control branch draws by a hint: --config.sample.hint=FILE (an image, whose {config.data.hint} is found), "
      "a folder of images, or data:SPLIT."
    )
  if config.control.unlock_decoder and s.hint_guidance != 1:
    raise UserError(
      f"config.sample.hint_guidance is {s.hint_guidance:g}: it leads away from what the base draws, and this branch has a decoder of its "
      "own (config.control.unlock_decoder), which draws nothing good without a hint. Use --config.sample.hint_guidance=1."
    )
  for key, value in (
    ("hint_guidance", s.hint_guidance),
    *(("control_scale", scale) for scale in s.control_scale),
  ):
    if not math.isfinite(value):
      raise UserError(f"config.sample.{key} is {value}, which is no strength. Use a number, 1.0 for example.")
  count = 1 + len(_others(s))
  for key, found in (("hint", len(_words(s.hint))), ("control_scale", len(s.control_scale))):
    if found not in (1, count):
      raise UserError(
        f"config.sample.{key} has {found} values, but {count} branches act. Give one for each, or one for all."
      )
  _branches(config)


def labels_of_data(config: Any, num: int) -> np.ndarray | None:
  """The labels of the examples whose hints are asked for, i32[num]; None where hints come from elsewhere."""
  split = _split(config, _words(config.sample.hint)[0]) if config.task == "controlnet" else None
  if split is None:
    return None
  source = source_of(config, split)
  return np.resize(source.labels_of(np.arange(min(num, len(source)))), num)


def own_hints(config: Any) -> Callable[[np.ndarray], np.ndarray]:
  """The hints of the run's own branch by the numbers of images, u8[B,S,S,Ch]."""
  return make_hints(config, _branches(config)[0])


def real_images(config: Any, number: np.ndarray) -> np.ndarray | None:
  """The images u8[N,S,S,C] whose hints are asked for; None where hints come from files."""
  split = _split(config, _words(config.sample.hint)[0])
  if split is None:
    return None
  source = source_of(config, split)
  return data.examples(source, data.without_hints(config.data), number % len(source))["image"]


def make_hints(config: Any, branch: Branch) -> Callable[[np.ndarray], np.ndarray]:
  """The hints of a branch by the numbers of images, u8[B,S,S,Ch]: those of the data's examples, or of files in turn."""
  seen = config.copy_and_resolve_references()
  with seen.unlocked():
    seen.data.hint, seen.data.hint_maps = branch.config.data.hint, branch.config.data.hint_maps
    seen.control.reader = branch.config.control.reader
  split = _split(config, branch.hint)
  if split is not None:
    source = source_of(config, split)
    read = data.reader(source, seen.data)
    return lambda number: read(number % len(source))["hint"]
  every = _of_files(seen, branch.hint)
  return lambda number: np.stack([every[i % len(every)] for i in number])


def _of_files(config: Any, hint: str) -> list[np.ndarray]:
  """The hints of the files that `hint` names, u8[S,S,Ch] each: maps, or found in images as in those that are drawn."""
  files, is_map = _files(hint), config.sample.hint_is_map
  reader = None if is_map else make_reader(config)
  if not (is_map or reader):
    raise UserError(
      f"{hint!r} (config.sample.hint) is an image, and this branch follows maps that nothing finds in one. Give a ready map, "
      f"--config.sample.hint_is_map=True, or a network that makes them: {network_for(config)}."
    )
  return [data.read_hint(str(path), config.data, is_map, reader) for path in files]


def _branches(config: Any) -> list[Branch]:
  configs = [config, *(_config_of(config, path) for path in _others(config.sample))]
  asked = _words(config.sample.hint)
  return [Branch(own, asked[i % len(asked)]) for i, own in enumerate(configs)]


def _others(s: Any) -> list[Path]:
  return [Path(word).expanduser() for word in _words(s.branches)]


def _words(text: str) -> list[str]:
  return [word.strip() for word in text.split(",") if word.strip()]


def _config_of(config: Any, workdir: Path) -> Any:
  """The config of a further branch.  Raises UserError where it is none, or one of another network."""
  own = configuration.of_run(workdir)
  name = f"{str(workdir)!r} (config.sample.branches)"
  if own.task != "controlnet":
    raise UserError(f"{name} holds a run of the task {own.task!r}, not a control branch.")
  if own.model.to_dict() != config.model.to_dict() or own.control.blocks != config.control.blocks:
    raise UserError(
      f"{name} is the branch of another network (config.model, config.control.blocks) than this run's."
    )
  if own.control.unlock_decoder:
    raise UserError(
      f"{name} has a decoder of its own (config.control.unlock_decoder), of which there can be one. Draw with "
      f"--workdir={workdir}, and name the other branches in config.sample.branches."
    )
  return own


def _on_host(config: Any, workdir: Path) -> tuple[PyTree, PyTree]:
  """(parameters, those of its base) of a further branch."""
  state = runs.restore(_config_of(config, workdir), workdir, runs.one_device()).state
  return jax.tree.map(np.asarray, (optim.ema_params(state)["control"], state.base_params))


def _check_base(ours: PyTree, workdir: Path, base: PyTree) -> None:
  """Raises UserError where a further branch was trained on another base; rounding to half precision makes no other one."""

  def is_same(one: jax.Array, other: np.ndarray) -> bool:
    values = distributed.to_host(one)
    return bool(np.abs(values - other).max() <= ROUNDING * np.abs(values).max())

  if not jax.tree.all(jax.tree.map(is_same, ours, base)):
    raise UserError(
      f"{str(workdir)!r} (config.sample.branches) is a branch on another base than this run's, which what it adds would not "
      "suit. Name branches that were trained on the same one."
    )


def _split(config: Any, hint: str) -> str | None:
  """The split that `data` or `data:SPLIT` names; None of anything else."""
  kind, _, split = hint.partition(":")
  return (split or config.data.heldout or config.data.split) if kind == "data" else None


def _files(hint: str) -> list[Path]:
  path = Path(hint).expanduser()
  if not path.is_dir():
    return [path]
  found = sorted(p for p in path.iterdir() if p.suffix.lower() in data.SUFFIXES)
  if not found:
    raise UserError(f"{hint!r} (config.sample.hint) holds no images ({', '.join(data.SUFFIXES)}).")
  return found


def _scales(guess: bool, strength: Array, branch: PyTree, rows: int) -> Array:
  """f32[rows,n]: the strength of each of a branch's n controls; guessing, the shallow ones are weaker.

  Source: Zhang et al. 2023, section 3.4 and their code ("guess mode": 0.825^(n - 1 - i) for control i of n).
  """
  count = num_controls(branch)
  shape = GUESS_DECAY ** np.arange(count - 1, -1, -1) if guess else np.ones(count)
  return jnp.broadcast_to(strength * jnp.asarray(shape, jnp.float32), (rows, count))
