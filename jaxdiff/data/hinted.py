"""The hints of a batch: made of the images as they are after crop and flip, or of maps that went through the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdiff.data import hints, pairs, transforms
from jaxdiff.data.base import Example, Source
from jaxdiff.data.hints import Hint, maps
from jaxdiff.data.transforms import View
from jaxdiff.errors import UserError

SEED = 4  # which of an example's draws seeds its hint; transforms.augment takes 0 to 3


def asked(data: Any, *, train: bool) -> Hint | None:
  """What config.data.hint says, or None.

  Raises UserError for a hint that cannot be read, and for settings that contradict each other.
  """
  hint = hints.parse(
    data.get("hint", ""), train=train
  )  # the config of a run from before hints has no such key
  if not data.get("hint_maps", ""):
    return hint
  if hint is None:
    raise UserError("config.data.hint_maps is given, but not what hint they are: set config.data.hint.")
  if hint.arguments.get("onnx"):
    raise UserError("config.data.hint asks for a network, config.data.hint_maps for files. Choose one.")
  return hint


def without_hints(data: Any) -> Any:
  """The config's data section for those who read images alone."""
  plain = data.copy_and_resolve_references()
  with plain.unlocked():
    plain.hint = plain.hint_maps = ""
  return plain


def with_maps(source: Source, data: Any, hint: Hint | None) -> Source:
  """The source with the maps of config.data.hint_maps, if there are any.  Raises UserError as pairs.attach."""
  where = data.get("hint_maps", "")
  return pairs.attach(source, where, hint.name) if hint and where else source


def fingerprint(source: Source, data: Any) -> dict[str, str]:
  """What of the config's hint must be equal for a resumed run; nothing without a hint."""
  hint, where = asked(data, train=True), data.get("hint_maps", "")
  marks = {"hint": hints.mark(hint)} if hint else {}
  return marks | ({"hint_maps": pairs.mark(source, where)} if where else {})


def fit_map(example: Example, view: View, hint: Hint | None) -> np.ndarray | None:
  """The map that an example's hint is made of, [h,w,C], fitted as its image; None if it is made of the image.

  That is its own one for this hint, unless the hint asks for a network.  Raises UserError for one that does not suit.
  """
  found = None if hint is None or hint.arguments.get("onnx") else example.get("maps", {}).get(hint.name)
  if hint is None or found is None:
    return None
  if found.shape[:2] != example["image"].shape[:2]:
    raise UserError(
      f"the source's map for hint {hint.name!r} is {found.shape[:2]}, its image {example['image'].shape[:2]}."
    )
  reading = maps.READINGS[hint.name]
  found = maps.read(hint.name, found, "the source's map")
  return transforms.fit_map(found, view, reading.geometry(hint.arguments))


def of_batch(
  examples: Sequence[Example], images: np.ndarray, index: np.ndarray, seed: int, view: View, hint: Hint
) -> np.ndarray:
  """The hints of a batch: each a function of its example and (seed, index) only.

  Shapes: images: uint8[B,S,S,C], the examples' as the view shows them; index: uint32[B].  Returns uint8[B,S,S,Ch].
  """
  seeds = (transforms.uniform(seed, index, SEED) * 2.0**32).astype(np.int64)
  reading = maps.READINGS[hint.name]
  made = []
  for i, example in enumerate(examples):
    fitted = fit_map(example, view, hint)
    if fitted is None:
      made.append(hints.detect(hint, images[i], int(seeds[i])))
      continue
    geometry = reading.geometry(hint.arguments)
    (moved,) = transforms.augment([fitted], index[i : i + 1], seed, view, geometry)
    made.append(reading.finish(moved, hint.arguments))
  return np.stack(made)
