"""What an image shows of a scene of `shapes`, read off its pixels alone: for images without maps, such as drawn ones."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from jaxdiff.data import silhouettes, surfaces
from jaxdiff.data.outlines import RADIUS
from jaxdiff.data.silhouettes import SIDE, Match, Silhouette

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as OpenCV's gray
FARTHEST = 0.5  # depth of shapes, at least
RADIUS_SLACK = 0.07  # a radius differs by about such a share from what its depth says
POOR = 0.15  # a match that misses a larger share of a silhouette is looked at again
GAIN = 8.0  # cells: two surfaces are one thing where one match is better than two by as much
REST = 10  # cells: as many that an outline leaves over are one more thing


def apparent_depth(image: np.ndarray) -> np.ndarray:
  """The depth that colours tell, `shapes.colour` solved for it: for images of scenes that have no maps, such as samples.

  max((L - min) / L, (max - L) / (1 - L)),   of a pixel's RGB and its luma L

  RGB's rounding moves it by 0.03 at most; where an edge crosses a pixel, colours are mixed and it may be anything.

  Shapes: image: uint8[...,3], or f32 in 0..255.  Returns uint16[...], 65535 times depth, as an example's map.
  """
  rgb = image / 255
  luma = rgb @ LUMA
  darker = (luma - rgb.min(axis=-1)) / np.maximum(luma, 1 / 255)
  lighter = (rgb.max(axis=-1) - luma) / np.maximum(1 - luma, 1 / 255)
  return np.rint(65535 * np.clip(np.maximum(darker, lighter), 0, 1)).astype(np.uint16)


def apparent_segmentation(image: np.ndarray) -> np.ndarray:
  """The label map of a scene, from its image: 0 on the ground, else 1 + the kind of the shape.

  All that has one colour is one shape, but for the ground, which has most of the border.  The colour tells its depth, the depth
  its radius; its kind is that of the outline of about this radius that is most like what is seen of it, whatever may be
  behind nearer shapes.

  On scenes it is right but for pixels at edges, and for some shapes that are mostly hidden.  Drawn images may not keep the
  laws of scenes: what is like no shape may be part of one in two colours, or be two shapes of one colour.

  Shapes: image: uint8[H,W,3], of any size.  Returns uint8[H,W], as an example's map.
  """
  found = surfaces.find(image, SIDE)
  view = _view(found)
  match = functools.cache(lambda thing: silhouettes.match(_silhouette(view, thing)))
  label = np.zeros(image.shape[:2], np.uint8)
  for thing in _things(view, match):
    _write(label, np.isin(found.label, thing), match(thing), _silhouette(view, thing))
  return label


Thing = tuple[int, ...]  # the surfaces that it has


class View(NamedTuple):
  """K surfaces, the ground first, in silhouettes' grid."""

  shares: np.ndarray  # f32[K,SIDE,SIDE], what each has of each cell
  depths: np.ndarray  # f64[K]
  doubts: np.ndarray  # f64[K], by how much these may be wrong


def _view(found: surfaces.Surfaces) -> View:
  lumas = found.colours @ LUMA
  # An error of 1 in RGB is one of about 1 / L or 1 / (255 - L) in depth; without a bound, the nearly black would have none.
  doubts = (1 + found.spreads) / np.maximum(np.minimum(lumas, 255 - lumas), 8)
  parts = surfaces.masks(found.label, len(lumas))
  shares = np.moveaxis(surfaces.means(np.moveaxis(parts, 0, -1), SIDE), -1, 0)
  return View(np.ascontiguousarray(shares), apparent_depth(found.colours) / 65535, doubts)


def _silhouette(view: View, thing: Thing) -> Silhouette:
  shares = view.shares[list(thing)]
  areas = shares.sum((1, 2))
  depth, doubt = (float(np.average(of[list(thing)], weights=areas)) for of in (view.depths, view.doubts))
  depth = max(depth, FARTHEST)
  nearer = [k for k in range(1, len(view.depths)) if view.depths[k] > depth and k not in thing]
  seen = 1 - view.shares[nearer].sum(0)
  return Silhouette(shares.sum(0), seen, RADIUS * depth, math.hypot(RADIUS_SLACK, doubt / depth))


def _things(view: View, match: Callable[[Thing], Match]) -> list[Thing]:
  """The shapes that there are: each surface one, or several together that are more like one outline than each like its own."""
  things: list[Thing] = [(k,) for k in range(1, len(view.shares)) if view.shares[k].any()]
  while pairs := [pair for pair in itertools.permutations(things, 2) if _may_be_one(view, match, *pair)]:
    gains = [match(a).cost + match(b).cost - match(tuple(sorted(a + b))).cost for a, b in pairs]
    if max(gains) < GAIN:
      break
    a, b = pairs[int(np.argmax(gains))]
    things = [thing for thing in things if thing not in (a, b)] + [tuple(sorted(a + b))]
  return things


def _may_be_one(view: View, match: Callable[[Thing], Match], a: Thing, b: Thing) -> bool:
  """Whether a is like no outline, and touches b."""
  mine, other = (view.shares[list(thing)].sum(0) for thing in (a, b))
  if match(a).cost < POOR * mine.sum():
    return False
  return bool((cv2.dilate(mine, np.ones((3, 3), np.uint8)) * other > 0.25).any())


def _write(label: np.ndarray, here: np.ndarray, match: Match, silhouette: Silhouette) -> None:
  """Writes a thing's kind into `label` where it is, bool[H,W]; where its outline leaves much over, the kind of that."""
  label[here] = 1 + match.kind
  rest = silhouette.share * (match.cover < 0.3)
  rest = cv2.morphologyEx(rest, cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))  # without lines along its edge
  if rest.sum() < REST:
    return
  further = silhouettes.match(silhouette._replace(share=rest, weight=silhouette.weight * (match.cover < 0.5)))
  theirs = cv2.dilate(further.cover, np.ones((3, 3), np.uint8)) > np.maximum(match.cover, 0.3)
  rows, columns = (np.arange(size) * SIDE // size for size in label.shape)
  label[here & theirs[rows[:, None], columns]] = 1 + further.kind
