"""Which outline a silhouette is: the kind, turn, place and radius at which one covers most nearly the same.

All are laid over it at every cell of a coarse grid, in some turns and radii, by Fourier transforms; the best of each kind is then
moved, turned and widened by damped least squares.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import cv2
import numpy as np

from jaxdiff.data.outlines import OF_NUMBER

SIDE = 32  # cells along a side of the grid, which is the image
PADDED = 48  # with so many more, what leaves the grid on one side does not come back on the other
TURNS = 24  # that are tried, in a whole one
RADII = 0.13 * 1.06 ** np.arange(17)  # that are tried, in units of the image's side: all that shapes have
MOST_RADII = 7  # for one silhouette
ROUNDS = 3  # of least squares
STEPS = np.array([0.06, 0.3 / SIDE, 0.3 / SIDE, 0.01], np.float32)  # in turn, x, y and radius, for slopes
POINTS, REACH = 512, 1.5  # along a side of a table of distances; radii from its middle to its edge
CENTRES = ((np.arange(SIDE) + 0.5) / SIDE).astype(np.float32)


class Silhouette(NamedTuple):
  """What is seen of a shape."""

  share: np.ndarray  # f32[SIDE,SIDE], of each cell that it has
  weight: np.ndarray  # f32[SIDE,SIDE], 0 where something hides whether it is there, else 1
  radius: float  # that it may have, in units of the image's side
  slack: float  # the share by which this may be wrong, as a standard deviation


class Match(NamedTuple):
  """The outline that is most like a silhouette."""

  kind: int  # a place in outlines.KINDS
  cost: float  # about the number of cells where they differ
  cover: np.ndarray  # f32[SIDE,SIDE], the share that it covers of each cell


def match(silhouette: Silhouette) -> Match:
  """The outline, turn, place and radius r of the least

  sum_cells weight (cover - share)^2 + ((r / radius - 1) / slack)^2
  """
  places, costs = _improved(_tried(silhouette), silhouette)
  kind = int(costs.argmin())
  return Match(kind, float(costs[kind]), cover(np.array([kind]), places[[kind]])[0])


def cover(kinds: np.ndarray, places: np.ndarray) -> np.ndarray:
  """The share of each cell that outlines cover, by how far its centre is inside: half a cell or more is all of it.

  Shapes: kinds: int[M]; places: f32[M,4], turn in radians, x, y and radius.  Returns f32[M,SIDE,SIDE].
  """
  turn, x, y, radius = places.T[..., None]
  c, s = (np.float32(POINTS / 2 / REACH) * part / radius for part in (np.cos(turn), np.sin(turn)))
  x, y = CENTRES - x, CENTRES - y
  u = (c * x)[:, None, :] + (s * y)[:, :, None] + POINTS // 2
  v = (c * y)[:, :, None] - (s * x)[:, None, :] + POINTS // 2
  column, row = (np.clip(at, 0, POINTS - 1).astype(np.int32) for at in (u, v))
  inside = _distances().ravel()[(kinds[:, None, None] * POINTS + row) * POINTS + column]
  return np.clip(0.5 + inside * (SIDE * radius)[..., None], 0, 1)


@functools.cache
def _distances() -> np.ndarray:
  """How far inside each kind's outline points are, in radii, negative outside: f32[kinds,POINTS,POINTS]."""
  at = ((np.arange(POINTS) + 0.5) / POINTS * 2 - 1) * REACH
  found = []
  for kind in OF_NUMBER:
    covered = kind.covers(*np.meshgrid(at, at)).astype(np.uint8)
    inside, outside = (
      cv2.distanceTransform(part, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for part in (covered, 1 - covered)
    )
    found.append(inside - outside + 0.5 - covered)  # the outline is half way from a point to the next
  return np.stack(found) * np.float32(2 * REACH / POINTS)


@functools.cache
def _all_turns() -> tuple[np.ndarray, np.ndarray]:
  """The outlines that are tried: kinds int[M] and turns f32[M], no two of which look the same."""
  every = []
  for number, kind in enumerate(OF_NUMBER):
    same = kind.turns or TURNS
    count = round(TURNS / same)
    every += [(number, 2 * np.pi * i / count / same) for i in range(count)]
  kinds, turns = zip(*every, strict=True)
  return np.array(kinds), np.array(turns, np.float32)


def _all_of(radius: float) -> np.ndarray:
  """All outlines with that radius in the middle of cell (0, 0): f32[M,4]."""
  _, turns = _all_turns()
  rest = np.array([CENTRES[0], CENTRES[0], radius], np.float32)
  return np.concatenate([turns[:, None], np.tile(rest, (len(turns), 1))], axis=1)


@functools.cache
def _transformed(number: int) -> np.ndarray:
  """The conjugate Fourier transforms of all outlines of a radius, by its number, around cell (0, 0): c64[M,PADDED,...]."""
  places, half = _all_of(RADII[number]), SIDE // 2
  places[:, 1:3] += half / SIDE
  padded = np.zeros((len(places), PADDED, PADDED), np.float32)
  padded[:, :SIDE, :SIDE] = cover(_all_turns()[0], places) > 0.5
  return np.conj(np.fft.rfft2(np.roll(padded, (-half, -half), axis=(1, 2))))


def _tried(silhouette: Silhouette) -> np.ndarray:
  """The best place of each kind, of all cells, turns and radii that are tried: f32[kinds,4]."""
  kinds, _ = _all_turns()
  off = np.abs(RADII / silhouette.radius - 1) / silhouette.slack
  likely = np.flatnonzero(off <= max(2, off.min()))
  # Of an outline T of 0 and 1, sum w (T - S)^2 = sum T w (1 - 2 S) + a constant: a correlation.
  padded = np.zeros((PADDED, PADDED), np.float32)
  padded[:SIDE, :SIDE] = silhouette.weight * (1 - 2 * silhouette.share)
  prices = np.fft.rfft2(padded)
  places, costs = [], []
  for number in likely[:: -(-len(likely) // MOST_RADII)]:
    found = np.fft.irfft2(prices * _transformed(number), (PADDED, PADDED))[:, :SIDE, :SIDE]
    row, column = np.divmod(found.reshape(len(kinds), -1).argmin(1), SIDE)
    at = _all_of(RADII[number])
    at[:, 1], at[:, 2] = CENTRES[column], CENTRES[row]
    places.append(at)
    costs.append(found.min((1, 2)) + off[number] ** 2)
  # [radii,M] and [radii,M,4]
  by_radius, of_all = np.array(costs), np.array(places)
  best = [by_radius[:, kinds == kind].argmin() for kind in range(len(OF_NUMBER))]
  return np.stack([of_all[:, kinds == kind].reshape(-1, 4)[i] for kind, i in enumerate(best)])


def _improved(places: np.ndarray, silhouette: Silhouette) -> tuple[np.ndarray, np.ndarray]:
  """The best place that each kind comes by, f32[kinds,4], and its cost, f64[kinds]."""
  share, weight, radius, slack = silhouette
  kinds, pull = np.arange(len(places)), STEPS[3] / (slack * radius)
  best, least = places, np.full(len(places), np.inf)
  for number in range(ROUNDS + 1):
    covered = cover(kinds, places)
    error, off = share - covered, (places[:, 3] / radius - 1) / slack
    costs = (weight * error**2).sum((1, 2)) + off**2
    best = np.where((costs < least)[:, None], places, best)
    least = np.minimum(costs, least)
    if number < ROUNDS:
      slopes = np.stack([cover(kinds, places + step) - covered for step in np.diag(STEPS)], axis=1)
      places = places + STEPS * _step(slopes, error, weight, pull, off)
  return best, least


def _step(
  slopes: np.ndarray, error: np.ndarray, weight: np.ndarray, pull: float, off: np.ndarray
) -> np.ndarray:
  """Where damped least squares would go, in units of STEPS, at most 4 of each: f32[M,4].

  Shapes: slopes: f32[M,4,SIDE,SIDE], what a unit adds to covers; error: f32[M,SIDE,SIDE], what should be added; pull, off f32[M]:
  what a unit of radius adds to how far it is off.
  """
  slopes = slopes.reshape(*slopes.shape[:2], -1)
  weighted = slopes * weight.ravel()
  normal = weighted @ slopes.swapaxes(1, 2)
  wanted = (weighted @ error.reshape(len(error), -1, 1))[..., 0]
  normal[:, 3, 3] += pull**2
  wanted[:, 3] -= pull * off
  damping = 0.3 + 0.0125 * np.trace(normal, axis1=1, axis2=2)
  normal += damping[:, None, None] * np.eye(4, dtype=np.float32)
  return np.clip(np.linalg.solve(normal, wanted[..., None])[..., 0], -4, 4)
