"""The surfaces that an image shows: a ground, whose colour may change from side to side, and what lies on it, each of one colour.

A pixel that an edge crosses has a colour between those of two surfaces, which may be that of a third.  So surfaces are looked
for where colours are even, in the cells of a coarse grid; then each pixel is given to the one of those nearby that it is most like.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import cv2
import numpy as np

LIKE = 34.0  # colours of one surface are nearer than that, by distance in RGB of 0..255; those of two surfaces are not
APART = 1.3 * LIKE  # what is nearer than that to a surface makes no other
DENSE = 15.0  # a surface's colour is one that has the most others so near
EVEN = 40.0  # four cells whose colours differ by less show one surface, where there is no noise
LEAST = 14  # cells of a surface
MOST = 9  # surfaces, which bounds the time that an odd image takes
REACH = 2  # cells: so far from a surface's others a pixel may be one of it


class Surfaces(NamedTuple):
  """K surfaces, the ground first."""

  label: np.ndarray  # int64[H,W], the surface of each pixel
  colours: np.ndarray  # f32[K,3], means of RGB in 0..255
  spreads: np.ndarray  # f32[K], standard deviations from them, of the channel where it is largest


def find(image: np.ndarray, side: int) -> Surfaces:
  """The surfaces of an image uint8[H,W,3], looked for in `side` by `side` cells."""
  pixels, (height, width) = image.astype(np.float32), image.shape[:2]
  cells = means(pixels, side)
  seeds = _seeds(cells)
  count = 1 + seeds.max()
  coarse = _nearest(cells, seeds, _painted(cells, masks(seeds, count), side, side), REACH)
  parts = masks(coarse, count)
  rows, columns = (np.arange(size) * side // size for size in (height, width))
  reach = -(-REACH * max(height, width) // side)
  label = _nearest(pixels, coarse[rows[:, None], columns], _painted(cells, parts, height, width), reach)
  weights = _inner(parts)
  colours = _mean(cells, weights)
  variances = _mean(cells**2, weights) - colours**2
  return Surfaces(label, colours, np.sqrt(np.maximum(variances.max(-1), 0)))


def masks(label: np.ndarray, count: int) -> np.ndarray:
  """Where each of `count` surfaces is: int[H,W] -> f32[count,H,W], 0 or 1."""
  return (label == np.arange(count)[:, None, None]).astype(np.float32)


def means(pixels: np.ndarray, side: int) -> np.ndarray:
  """Means over `side` by `side` cells: f32[H,W,C] -> f32[side,side,C].  Not by cv2.resize, which rounds as its version does."""
  down, across = (_areas(size, side) for size in pixels.shape[:2])
  return np.einsum("ih,hwc,jw->ijc", down, pixels, across, optimize=True)


@functools.lru_cache(maxsize=8)
def _areas(size: int, side: int) -> np.ndarray:
  """The share of each of `side` parts of a line that lies in each of its `size` pixels: f32[side,size]."""
  part, pixel = np.arange(side)[:, None] / side, np.arange(size) / size
  overlap = np.minimum(part + 1 / side, pixel + 1 / size) - np.maximum(part, pixel)
  return (side * np.maximum(overlap, 0)).astype(np.float32)


def _seeds(cells: np.ndarray) -> np.ndarray:
  """The surfaces of the cells that show one for sure, -1 elsewhere: f32[S,S,3] -> int64[S,S].

  The ground is what most of the border is like, and what lies on a plane through these colours.  Each further surface is what
  most of the cells are like that are left.
  """
  free = _even(cells)
  seeds, border = np.full(free.shape, -1), free.copy()
  border[1:-1, 1:-1] = False
  colour = _commonest(cells, border if border.any() else free)
  for _ in range(3):
    colour = _plane(cells, (free & (_distance(cells, colour) < LIKE)).astype(np.float32), *free.shape)
  for number in range(MOST):
    away = _distance(cells, colour)
    mine = free & (away < LIKE)
    if number and mine.sum() < LEAST:
      break
    seeds[mine] = number
    free &= away > APART
    if not free.any():
      break
    colour = _commonest(cells, free)
    colour = cells[free & (_distance(cells, colour) < LIKE)].mean(0)
  return seeds


def _even(cells: np.ndarray) -> np.ndarray:
  """Cells in a square of 2 by 2 that shows one surface: f32[S,S,3] -> bool[S,S]; all, where there is no such square."""
  # Its sigma: half of all differences of two normal values are smaller than 0.954 sigma.
  noise = np.median(np.abs(np.diff(cells, axis=1))) / 0.954
  corners = np.stack([cells[i : i - 1 or None, j : j - 1 or None] for i in (0, 1) for j in (0, 1)])
  alike = np.linalg.norm(np.ptp(corners, axis=0), axis=-1) < EVEN + 2 * noise
  padded = np.pad(alike, 1)
  even = padded[1:, 1:] | padded[1:, :-1] | padded[:-1, 1:] | padded[:-1, :-1]
  return even if even.any() else ~even


def _commonest(cells: np.ndarray, among: np.ndarray) -> np.ndarray:
  """The colour f32[3] that most others are near to, of the cells in `among`, bool[S,S]."""
  colours = cells[among]
  squares = (colours * colours).sum(1)
  near = squares[:, None] + squares - 2 * colours @ colours.T < DENSE**2
  return colours[near.sum(1).argmax()]


def _distance(cells: np.ndarray, colour: np.ndarray) -> np.ndarray:
  return np.linalg.norm(cells - colour, axis=-1)


def _painted(cells: np.ndarray, parts: np.ndarray, height: int, width: int) -> np.ndarray:
  """What each surface looks like: the parts f32[K,S,S] that it has of the cells -> f32[K,height,width,3]."""
  weights = _inner(parts)
  painted = np.tile(_mean(cells, weights)[:, None, None], (1, height, width, 1))
  painted[0] = _plane(cells, weights[0], height, width)
  return painted


def _nearest(pixels: np.ndarray, label: np.ndarray, painted: np.ndarray, reach: int) -> np.ndarray:
  """The surface that each pixel is most like, of those that `label` has within reach: int64[H,W]."""
  square = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
  near = np.stack([cv2.dilate(part, square) for part in masks(label, len(painted))]) > 0
  away = ((painted - pixels) ** 2).sum(-1)
  return np.where(near | ~near.any(0), away, np.inf).argmin(0)


def _inner(parts: np.ndarray) -> np.ndarray:
  """Weights of cells f32[K,S,S]: most for those amid their surface, little at its edge, where colours are mixed."""
  around = np.stack([cv2.blur(part, (3, 3), borderType=cv2.BORDER_REPLICATE) for part in parts])
  return parts * around**4


def _mean(cells: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Weighted means, f32[K,3]; 0 where there is nothing."""
  return np.einsum("kij,ijc->kc", weights, cells) / np.maximum(weights.sum((1, 2)), 1e-6)[:, None]


def _plane(cells: np.ndarray, weight: np.ndarray, height: int, width: int) -> np.ndarray:
  """The plane through weighted cells by least squares, a plane in each channel: f32[height,width,3]."""
  at = _basis(*weight.shape)
  moments = np.einsum("ij,ijm,ijn->mn", weight, at, at) + 1e-3 * np.eye(3)  # so that one cell is enough
  slopes = np.linalg.solve(moments, np.einsum("ij,ijm,ijc->mc", weight, at, cells))
  return _basis(height, width) @ slopes.astype(np.float32)


@functools.lru_cache(maxsize=8)
def _basis(height: int, width: int) -> np.ndarray:
  """1, x and y at the middle of each pixel, in -0.5..0.5: f32[height,width,3]."""
  y, x = ((np.arange(size) + 0.5) / size - 0.5 for size in (height, width))
  return np.stack(np.broadcast_arrays(1.0, x, y[:, None]), axis=-1).astype(np.float32)
