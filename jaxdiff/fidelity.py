"""How well drawn images obey their hints: what was asked for beside what is found in them, as pictures and as a number."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdiff import control
from jaxdiff.hint_reader import make_reader, network_for
from jaxdiff.scores.fidelity import FIDELITY
from jaxdiff.tasks.controlnet import parse_hint

logger = logging.getLogger("jaxdiff")


class Look(NamedTuple):
  """What of drawn images is shown."""

  parts: tuple[np.ndarray, ...]  # beside each other, each u8[N,H,W,C]
  numbers: dict[str, float]

  def tiles(self, most: int) -> np.ndarray:
    """The parts of at most so many images side by side: u8[N,H,W',3]."""
    return side_by_side([part[:most] for part in self.parts])


def make(config: Any) -> Callable[[np.ndarray, np.ndarray], Look]:
  """The function (images u8[N,H,W,C], their numbers) -> Look of config's task.

  With a control branch its parts are hint, image and the hint found in it, and its number is scores.fidelity's for the kind of
  hint, of the run's own branch.  Where hints cannot be found in images, as most maps without a network, it has hint and image alone.
  Without one it has the images and no more.
  """
  if config.task != "controlnet":
    return lambda images, number: Look((images,), {})
  asked_of = control.own_hints(config)
  kind, reader = parse_hint(config.data.hint).name, make_reader(config)

  def look(images: np.ndarray, number: np.ndarray) -> Look:
    asked = asked_of(number)
    if reader is None:
      return Look((asked, images), {})
    found = reader(images)
    return Look((asked, images, found), {f"hint/{kind}": FIDELITY[kind](asked, found)})

  return look


def warn_if_blind(config: Any) -> None:
  """Logs a warning where a branch's pictures cannot be scored, as their hints cannot be found in images."""
  if config.task == "controlnet" and make_reader(config) is None:
    logger.warning(
      "How well pictures obey is not measured: nothing finds the hint %r in an image. Give a network that does, as %s.",
      config.data.hint,
      network_for(config),
    )


def of_real_images(config: Any, number: np.ndarray) -> dict[str, float]:
  """The number of the very images that hints were made of, which is as good as it can be; none where hints are of files."""
  found, reader = control.real_images(config, number), make_reader(config)
  if found is None or reader is None:
    return {}
  kind = parse_hint(config.data.hint).name
  return {f"hint/{kind}/real": FIDELITY[kind](control.own_hints(config)(number), reader(found))}


def side_by_side(sets: Sequence[np.ndarray]) -> np.ndarray:
  """Sets of images u8[N,H,W,1 or 3] beside each other, a white gap between two: u8[N,H,W',3]."""
  gap = np.full((*sets[0].shape[:2], max(1, sets[0].shape[2] // 16), 3), 255, np.uint8)
  parts = [part for images in sets for part in (gap, as_rgb(images))]
  return np.concatenate(parts[1:], axis=2)


def as_rgb(images: np.ndarray) -> np.ndarray:
  return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
