"""Hints from maps that lie beside an image: in its source, or in a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np

from jaxdiff.data.hints import areas, depths, strokes
from jaxdiff.data.transforms import Geometry, linear, nearest
from jaxdiff.errors import UserError


class Reading(NamedTuple):
  """How maps of one kind are read. `arguments` are those of the hint's detector."""

  read: Callable[[np.ndarray], np.ndarray]  # as found, [H,W] or [H,W,C] -> [H,W,1 or Ch]; raises ValueError
  geometry: Callable[[dict[str, Any]], Geometry]  # how it is moved with its image
  finish: Callable[[np.ndarray, dict[str, Any]], np.ndarray]  # [S,S,C] -> the hint uint8[S,S,Ch]


def read(name: str, found: np.ndarray, what: str) -> np.ndarray:
  """A map for the hint `name` as its kind has it, [H,W,C], not yet moved.

  Raises UserError for values or channels that do not suit; `what` names the map in its message.
  """
  try:
    return READINGS[name].read(found if found.ndim == 3 else found[..., None])
  except ValueError as error:
    raise UserError(f"{what} cannot be the hint {name!r}: {error}.") from None


def _drawn(found: np.ndarray) -> np.ndarray:
  if found.dtype == np.uint16:
    found = (found >> 8).astype(np.uint8)
  if found.dtype != np.uint8 or found.shape[-1] not in (1, 3):
    raise ValueError(f"it is {found.dtype}{list(found.shape)}, not gray")
  return _gray(found, "a map of edges, lines or strokes is gray, white on black")


def _labelled(found: np.ndarray) -> np.ndarray:
  """Labels [H,W,1], or colours as they are [H,W,3]."""
  if found.dtype not in (np.uint8, np.uint16) or found.shape[-1] not in (1, 3) or found.max() > 255:
    top = f" up to {found.max()}" if found.size else ""
    raise ValueError(
      f"it is {found.dtype}{list(found.shape)}{top}; use labels 0 to 255, or colours of 8 bits"
    )
  return found.astype(np.uint8)


def _deep(found: np.ndarray) -> np.ndarray:
  if found.dtype not in (np.uint8, np.uint16):
    raise ValueError(f"it is {found.dtype}; use 8 or 16 bits")
  return _gray(found, "a depth map is gray, of 8 or 16 bits")


def _gray(found: np.ndarray, instead: str) -> np.ndarray:
  """The one channel [H,W,1] of a map whose channels are alike."""
  if (found != found[..., :1]).any():
    raise ValueError(f"it is coloured; {instead}")
  return found[..., :1]


# near -> how a depth map is moved: what lies around it is as far as anything in it; where it holds a distance, a 0 means
# that nothing was measured, which must not mix with its neighbours
_DEPTHS = {
  "bright": Geometry(linear, np.min),
  "dark": Geometry(linear, np.max),
  "distance": Geometry(nearest),
}


def _geometry_of_depths(arguments: dict[str, Any]) -> Geometry:
  depths.check_near(arguments["near"])
  return _DEPTHS[arguments["near"]]


def _coloured(found: np.ndarray, arguments: dict[str, Any]) -> np.ndarray:
  del arguments
  return found if found.shape[-1] == 3 else areas.segmentation_from_labels(found[..., 0])


def _shown(found: np.ndarray, arguments: dict[str, Any]) -> np.ndarray:
  return depths.depth_from_map(found[..., 0], arguments["near"])


_READY = Reading(_drawn, lambda _: Geometry(linear), lambda found, _: found)

READINGS: dict[str, Reading] = {
  "canny": _READY,
  "hough": _READY,
  "scribble": _READY,
  "segmentation": Reading(_labelled, lambda _: Geometry(nearest), _coloured),
  "depth": Reading(_deep, _geometry_of_depths, _shown),
}


def from_drawing(drawing: np.ndarray, resize: Callable[[np.ndarray], np.ndarray], size: int) -> np.ndarray:
  """A person's drawing of any size as the hint of a model: see strokes.from_drawing.

  A stroke that is thinner than a pixel of the result is widened first, so that none is lost.
  Shapes: drawing: uint8[H,W,C]; resize: uint8[H,W,1] -> uint8[S,S,1].  Returns uint8[S,S,1], 0 or 255.
  """
  drawn = strokes.from_drawing(drawing)
  pixel = max(1, round(min(drawn.shape[:2]) / size))
  if pixel > 1:
    drawn = cv2.dilate(drawn, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (pixel, pixel)))[..., None]
  return np.where(resize(drawn) > 127, 255, 0).astype(np.uint8)
