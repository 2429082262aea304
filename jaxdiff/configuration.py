"""Configs: loading a config file, overriding it from the command line, saving and comparing what was resolved.

A config is an ml_collections ConfigDict. Every override is checked against the file's own value: an unknown key or a
value of another type is a UserError of one line that names the nearest key or the type.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxdiff.calls import TYPE_NAMES, build, parse_call  # noqa: F401 - as configuration.build to its callers
from jaxdiff.errors import UserError, did_you_mean, first_line

# (section, key) -> value in configs of earlier versions -> the same today
RENAMED: dict[tuple[str, str], dict[Any, str]] = {("model", "remat"): {False: "none", True: "full"}}
# What says nothing of what is trained: what is done with a trained model, recorded on the way, planned before, and where it lies.
AFTERWARDS = ("sample", "eval", "export", "profile", "plan", "train.checkpoint_dir")
# The least and the largest value of numbers that nothing else checks.
RANGES: dict[str, tuple[float, float]] = {
  **dict.fromkeys(
    ("train.log_every", "train.checkpoint_every", "train.keep_checkpoints", "optim.accumulate_steps", "data.image_size",
     "model.patch_size", "model.width", "model.depth", "model.heads", "model.num_blocks"),
    (1, math.inf),
  ),
  **dict.fromkeys(
    ("train.steps", "train.sample_every", "train.keep_every", "train.max_rollbacks", "train.stall_factor",
     "train.stall_seconds", "optim.learning_rate", "optim.warmup_steps", "optim.epsilon", "optim.weight_decay",
     "optim.clip_norm", "optim.skip_norm", "optim.max_bad_steps", "optim.ema_start_step", "model.num_classes",
     "model.mlp_ratio", "model.head_channels"),
    (0, math.inf),
  ),
  **dict.fromkeys(("optim.beta1", "optim.beta2", "optim.ema_decay", "diffusion.label_dropout",
                   "control.label_dropout", "control.hint_dropout", "model.dropout"), (0, 1)),
  **dict.fromkeys(("seed", "sample.seed"), (0, 2**31 - 1)),
}  # fmt: skip
INFINITE = {"inf": math.inf, "-inf": -math.inf}
OF_ALL = ("task", "name", "model", "data")  # what every run's config has
BASE = Path(__file__).resolve().parent.parent / "configs" / "base.py"


def load(spec: str) -> ConfigDict:
  """The config of `path/to/file.py[:preset]`: the file's get_config(preset), locked.

  Raises UserError for a missing file, a file without get_config and (from the file) an unknown preset.
  """
  path, _, preset = spec.partition(":")
  file = Path(path)
  if not file.is_file():
    near = did_you_mean(path, map(str, Path("configs").glob("*_cfg.py")))
    raise UserError(f"there is no config file {path!r} (--config).{near}")
  return _get_config(file)(preset).lock()


def _get_config(file: Path) -> Callable[..., ConfigDict]:
  root = str(file.resolve().parent.parent)  # so that a config file can say `from configs import base`
  if root not in sys.path:
    sys.path.insert(0, root)
  module_spec = importlib.util.spec_from_file_location(file.stem, file)
  if module_spec is None or module_spec.loader is None:
    raise UserError(f"{str(file)!r} (--config) is not a Python file.")
  module = importlib.util.module_from_spec(module_spec)
  module_spec.loader.exec_module(module)
  if not hasattr(module, "get_config"):
    raise UserError(f"{str(file)!r} (--config) has no get_config(preset) function.")
  return module.get_config


def override(config: ConfigDict, arguments: Iterable[str]) -> None:
  """Applies `--config.section.key=value` arguments to config, in place.

  The value is read as the type of the value it replaces.  Raises UserError for an argument that is not of this form,
  an unknown key, a value of another type, and as check_ranges.
  """
  known, wanted = flatten(config), {}
  for argument in arguments:
    key, equals, text = argument.removeprefix("--").partition("=")
    if not argument.startswith("--config.") or not equals:
      raise unreadable(argument)
    key = key.removeprefix("config.")
    if key not in known:
      raise _unknown_key(key, known)
    wanted[key] = _parse(key, text, known[key])
  check_ranges(known | wanted)
  for key, value in wanted.items():
    section, _, leaf = key.rpartition(".")
    target = config[section] if section else config
    target[leaf] = value


def unreadable(argument: str, near: str = "") -> UserError:
  """The UserError for an argument that is no override; `near` says which flag was meant."""
  return UserError(
    f"cannot read the argument {argument!r}.{near} Overrides are written --config.train.steps=500."
  )


def check_ranges(leaves: Mapping[str, Any]) -> None:
  """Raises UserError for a number outside of RANGES.  `leaves` are those of a config, as flatten gives them."""
  for key, (least, most) in RANGES.items():
    if key in leaves and not least <= leaves[key] <= most:
      wanted = f"at least {least}" if most == math.inf else f"from {least} to {most}"
      raise UserError(f"config.{key} is {leaves[key]}; it must be {wanted}.")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Every leaf of a nested config as {"section.key": value}."""
  leaves: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, (ConfigDict, Mapping)):
      leaves |= flatten(value, f"{prefix}{key}.")
    else:
      leaves[prefix + key] = value
  return leaves


def differences(saved: Mapping[str, Any], now: Mapping[str, Any], ignore: tuple[str, ...] = ()) -> list[str]:
  """The keys in which two configs differ, each as `a.b: saved -> now`; sections and keys in `ignore` are left out.

  Lists and tuples count as equal: one of the two configs has often been through JSON.
  """
  before, after = _plain(flatten(saved)), _plain(flatten(now))
  return [
    f"{key}: {before.get(key, 'absent')!r} -> {after.get(key, 'absent')!r}"
    for key in sorted(before | after)
    if before.get(key, ...) != after.get(key, ...) and not is_of(key, ignore)
  ]


def is_of(key: str, names: Iterable[str]) -> bool:
  """Whether a key is one of these, or in a section that is."""
  return any(key == name or key.startswith(f"{name}.") for name in names)


def _plain(leaves: dict[str, Any]) -> dict[str, Any]:
  return json.loads(json.dumps(leaves))


def to_json(config: ConfigDict) -> str:
  """The resolved config as JSON text; infinity, for which JSON has no number, as "inf"."""

  def finite(value: Any) -> Any:
    if isinstance(value, dict):
      return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
      return [finite(item) for item in value]
    return str(value) if value in INFINITE.values() else value

  return json.dumps(finite(config.to_dict()), indent=2, allow_nan=False) + "\n"


def from_json(text: str) -> ConfigDict:
  """The config that to_json wrote, locked."""

  def tuples(value: Any) -> Any:
    if isinstance(value, dict):
      return {key: tuples(item) for key, item in value.items()}
    if isinstance(value, list):
      return tuple(tuples(item) for item in value)
    return INFINITE.get(value, value) if isinstance(value, str) else value

  return ConfigDict(tuples(json.loads(text))).lock()


def of_run(workdir: Path) -> ConfigDict:
  """The config that a run keeps in its workdir, completed.  Raises UserError where there is none."""
  path = workdir / "config.json"
  if not path.is_file():
    raise UserError(f"there is no run in {str(workdir)!r} (no config.json).")
  try:
    saved = from_json(path.read_text())
  except (ValueError, TypeError, AttributeError) as error:
    raise UserError(
      f"{path} cannot be read ({first_line(error)}). Copy it again from where the run was made."
    ) from None
  if missing := [section for section in OF_ALL if section not in saved]:
    raise UserError(
      f"{path} is not the config of a run: it has no {missing[0]!r}. Give the --workdir of one."
    )
  return ConfigDict(completed(saved.to_dict())).lock()


def completed(saved: Mapping[str, Any]) -> dict[str, Any]:
  """A saved config with the keys of configs/base.py that its version did not have yet, at their defaults, and values as RENAMED.

  A new key's default is what was done before there was one.
  """
  saved = _renamed(saved)
  if not BASE.is_file():
    return dict(saved)
  defaults = {key: value for key, value in _get_config(BASE)().to_dict().items() if isinstance(value, dict)}
  return dict(saved) | {key: section | saved.get(key, {}) for key, section in defaults.items()}


def _renamed(saved: Mapping[str, Any]) -> dict[str, Any]:
  """A saved config in which the values that earlier versions wrote otherwise are written as today."""
  changed = dict(saved)
  for (section, key), names in RENAMED.items():
    if key in changed.get(section, {}):
      old = changed[section][key]
      changed[section] = {**changed[section], key: names.get(old, old)}
  return changed


def _unknown_key(key: str, known: Mapping[str, Any]) -> UserError:
  sections = {name.rpartition(".")[0] for name in known} - {""}
  if key in sections:
    inside = ", ".join(name for name in known if name.startswith(f"{key}."))
    return UserError(f"config.{key} is a section, not a value. It holds {inside}.")
  return UserError(f"there is no config.{key}.{did_you_mean(key, known, 'config.{}', cutoff=0.3)}")


def _parse(key: str, text: str, default: Any) -> Any:
  kind = type(default)
  try:
    if kind is bool:
      return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if kind is tuple:
      item = type(default[0]) if default else int
      return tuple(item(part) for part in text.strip("()[] ").split(",") if part.strip())
    return kind(text)
  except (ValueError, KeyError, TypeError):
    wanted = TYPE_NAMES.get(kind, kind.__name__)
    raise UserError(f"config.{key} takes {wanted} (now {default!r}), not {text!r}.") from None
