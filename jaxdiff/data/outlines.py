"""The kinds of shapes that the source `shapes` draws: what each covers, in units of its radius, and how large they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

RADIUS = 0.3  # of a shape at depth 1, in units of the image's side


# Each kind as the set of points (u, v) it covers, v downwards; of sizes that make all look about equally large.
def _circle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
  return u * u + v * v < 1


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
  return np.maximum(np.abs(u), np.abs(v)) < 0.85


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
  return np.maximum(v, math.sqrt(0.75) * np.abs(u) - 0.5 * v) < 0.675


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
  """Five points: reflections bring all into a tenth of the plane, where the edge is one line, from (0, -tip) to a notch."""
  cos, sin = (1 + math.sqrt(5)) / 4, math.sqrt((5 - math.sqrt(5)) / 8)  # of 36 degrees
  u = np.abs(u)
  for across, down in ((cos, sin), (-cos, sin)):
    twice = np.maximum(2 * across * u + 2 * down * v, 0)
    u, v = u - across * twice, v - down * twice
  tip, notch = 1.35, 0.58
  return (tip - notch * cos) * np.abs(u) - notch * sin * v < notch * sin * tip


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
  square = u * u + v * v
  return (square < 1.08**2) & (square > 0.56**2)


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
  u, v = np.abs(u), np.abs(v)
  return (np.maximum(u, v) < 1.11) & (np.minimum(u, v) < 0.37)


class Kind(NamedTuple):
  """An outline, in units of the shape's radius."""

  reach: float  # from the centre to the farthest point, at least
  turns: int  # so many times in a whole turn it looks the same; 0: always
  covers: Callable[[np.ndarray, np.ndarray], np.ndarray]


KINDS = {
  "circle": Kind(1.0, 0, _circle),
  "square": Kind(1.21, 4, _square),
  "triangle": Kind(1.36, 3, _triangle),
  "star": Kind(1.36, 5, _star),
  "ring": Kind(1.08, 0, _ring),
  "cross": Kind(1.18, 4, _cross),
}
OF_NUMBER = list(KINDS.values())
