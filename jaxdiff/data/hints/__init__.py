"""Hints: pictures that say where things lie in an image, by which a control branch is steered.

    HINTS["canny"](image, low=50.0, high=150.0)   # uint8[H,W,1 or 3] -> uint8[H,W,1]
    hint = parse("scribble(width=0.04)")          # as config.data.hint says it
    detect(hint, image, seed=7)

A hint is made of the image by a detector (`HINTS`), or of a map that lies beside the image (`maps`): labels, depths, or
a hint that is ready. All are functions of their arguments alone, what is random of a seed. Where nothing is found a hint
is all one value, which is right while training; `check_map` tells it when a person asks for one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxdiff import calls
from jaxdiff.data import base, onnx_file
from jaxdiff.data.hints.areas import palette, segmentation, segmentation_from_labels
from jaxdiff.data.hints.depths import depth, depth_from_map
from jaxdiff.data.hints.edges import canny
from jaxdiff.data.hints.lines import hough
from jaxdiff.data.hints.strokes import from_drawing, scribble
from jaxdiff.errors import UserError

# name -> function (image uint8[H,W,1 or 3], parameters as keywords) -> uint8[H,W,CHANNELS[name]]
HINTS: dict[str, Callable[..., np.ndarray]] = {
  "canny": canny,
  "hough": hough,
  "scribble": scribble,
  "segmentation": segmentation,
  "depth": depth,
}
CHANNELS = {"canny": 1, "hough": 1, "scribble": 1, "segmentation": 3, "depth": 1}
AUGMENTS = {"spread"}  # parameters that make hints more varied while training, and are 0 otherwise


class Hint(NamedTuple):
  """What a config asks for."""

  name: str  # a key of HINTS
  arguments: dict[str, Any]  # all of its parameters but the seed

  @property
  def channels(self) -> int:
    return CHANNELS[self.name]


def parse(spec: str, *, train: bool = True) -> Hint | None:
  """What config.data.hint says, as `canny` or `canny(low=50.0,high=150.0)`; None where it is empty.

  Without `train` the parameters in AUGMENTS are 0.
  Raises UserError for an unknown name or parameter, a value of another type, and a seed.
  """
  if not spec:
    return None
  name, given = calls.parse_call(spec, HINTS, "hint")
  if "seed" in given:
    raise UserError(f"seed of hint {spec!r} (config.data.hint) follows from config.seed. Leave it out.")
  known = inspect.signature(HINTS[name]).parameters.values()
  arguments = {p.name: p.default for p in known if p.kind is p.KEYWORD_ONLY and p.name != "seed"} | given
  return Hint(name, arguments if train else {k: v for k, v in arguments.items() if k not in AUGMENTS})


def detect(hint: Hint, image: np.ndarray, seed: int = 0) -> np.ndarray:
  """The hint of an image, uint8[H,W,1 or 3], by its detector: uint8[H,W,Ch]."""
  random = {"seed": seed} if "seed" in inspect.signature(HINTS[hint.name]).parameters else {}
  return HINTS[hint.name](image, **hint.arguments, **random)


def mark(hint: Hint) -> str:
  """The same for hints that are the same function: name and parameters, a network by its file's content.

  Raises UserError where that file is missing.
  """
  given = dict(hint.arguments)
  if given.get("onnx"):
    given["onnx"] = base.digest(np.fromfile(onnx_file.existing(given["onnx"]), np.uint8))
  return f"{hint.name}({', '.join(f'{key}={value!r}' for key, value in sorted(given.items()))})"


def check_map(hint_map: np.ndarray, channels: int, size: int, what: str = "the hint") -> None:
  """Raises UserError for a hint that a model of `channels` and `size` cannot follow; `what` names it in the message.

  That is one of another size or number of channels, and one that is all one value: it asks for nothing.
  """
  if hint_map.dtype != np.uint8 or hint_map.ndim != 3:
    raise UserError(f"{what} is {hint_map.dtype}{list(hint_map.shape)}, not uint8[H,W,C].")
  height, width, found = hint_map.shape
  if (height, width) != (size, size):
    raise UserError(f"{what} is {width}x{height} pixels, the model's hints are {size}x{size}. Resize it.")
  if found != channels:
    raise UserError(f"{what} has {found} channels, the model's hints have {channels}.")
  if (hint_map == hint_map[0, 0]).all():
    colour = ",".join(map(str, hint_map[0, 0]))
    raise UserError(f"{what} is empty: all of its pixels are {colour}. There is nothing in it to follow.")


__all__ = [
  "CHANNELS",
  "HINTS",
  "Hint",
  "canny",
  "check_map",
  "depth",
  "depth_from_map",
  "detect",
  "from_drawing",
  "hough",
  "mark",
  "palette",
  "parse",
  "scribble",
  "segmentation",
  "segmentation_from_labels",
]
