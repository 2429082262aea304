"""How a run's hints are found in images that bring none, drawn ones and pictures in files, and the data that hints come from."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxdiff import data
from jaxdiff.data import hints, transforms
from jaxdiff.data.hints import Hint, maps
from jaxdiff.errors import UserError
from jaxdiff.tasks.controlnet import parse_hint

logger = logging.getLogger("jaxdiff")

OF_SOURCES = ("segmentation", "depth")  # hints that a source may have maps of, or a detector for
Reader = Callable[[np.ndarray], np.ndarray]  # images u8[N,H,W,C] -> the hints found in them, u8[N,H,W,Ch]


def make_reader(config: Any) -> Reader | None:
  """How the hints of config.data.hint are found in images: by config.control.reader; else, of a source's own maps, by its
  detector; else as they are made.  None where they are maps that no detector finds, or of a source that is not here.

  Raises UserError for a reader of another hint and a network that does not suit.
  """
  hint = parse_hint(config.control.reader or config.data.hint, train=False)
  if hint.name != (wanted := parse_hint(config.data.hint).name):
    raise UserError(
      f"config.control.reader finds the hint {hint.name!r}, but this branch follows {wanted!r} (config.data.hint)."
    )
  detect = lambda images: np.stack([hints.detect(hint, image) for image in images])
  if hint.arguments.get("onnx"):
    # What is wrong with a network is told now, not after minutes of work.
    view = transforms.view(config.data, train=False)
    detect(np.zeros((1, view.size, view.size, view.channels), np.uint8))
    return detect
  if config.control.reader or hint.name not in OF_SOURCES:
    return detect
  return _reader_of_source(config, hint, detect)


def _reader_of_source(config: Any, hint: Hint, detect: Reader) -> Reader | None:
  """As make_reader, of a hint that the source may have maps of."""
  if config.data.hint_maps:
    return None
  try:
    source = source_of(config, config.data.split)
  except UserError:  # who draws by files needs no data
    return None
  if hint.name in source.detectors and config.data.channels == 3:  # a gray image shows no depth, nor surfaces
    read, reading = source.detectors[hint.name], maps.READINGS[hint.name]
    return lambda images: np.stack(
      [reading.finish(read(image)[..., None], hint.arguments) for image in images]
    )
  are_maps = hint.name == "depth" or hint.name in source[0].get("maps", {})
  return None if are_maps else detect


def network_for(config: Any) -> str:
  """What to write to have a network find the hints of config.data.hint."""
  return f"--config.control.reader='{parse_hint(config.data.hint).name}(onnx=\"FILE\", scaling=unit)'"


def source_of(config: Any, split: str) -> data.Source:
  """A split of config's data, or for config.data.heldout, which not all data have, what was trained on, which is told.

  Raises UserError where another split is asked for that is not there.
  """
  d = config.data
  return _opened(d.source, split, d.split if split == d.heldout else split, d.skip_unreadable)


@functools.lru_cache(maxsize=2)  # a large folder is looked through once
def _opened(where: str, split: str, otherwise: str, skip_unreadable: bool) -> data.Source:
  try:
    return data.load(where, split, skip_unreadable=skip_unreadable)
  except data.NoSplit:
    if otherwise == split:
      raise
    logger.warning(
      "%s has no split %r (config.data.heldout): hints are those of %r, which the branch learns from.",
      where,
      split,
      otherwise,
    )
    return _opened(where, otherwise, otherwise, skip_unreadable)
