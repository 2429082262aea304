"""Straight lines."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from jaxdiff import errors
from jaxdiff.data.hints import edges, inputs

SHORTEST = 6.0  # pixels: what is shorter may be any part of a curve
ORDERS = 8  # the symmetries of a square
FINE = 96  # pixels; LSD grows regions of many pixels, which a smaller image does not have


def hough(
  image: np.ndarray,
  *,
  detector: str = "hough",
  min_length: float = 0.1,
  max_gap: float = 0.012,
  votes: float = 0.1,
  orders: int = 1,
  low: float = 50.0,
  high: float = 150.0,
  blur: float = 0.8,
  thickness: float = 0.004,
) -> np.ndarray:
  """The straight lines of an image, drawn in white on black.

  `detector` "hough": in the probabilistic Hough transform (Matas, Galambos and Kittler 2000) Canny's edge pixels, with
  thresholds `low` and `high`, vote in a random order for the lines through them; a line with `votes` is followed along
  the edges, over gaps of at most `max_gap`, and kept if it is longer than `min_length`. The order is the same each time.
  As each line takes its pixels away, one edge pixel more or less makes it find others: with `orders` up to ORDERS it draws
  the lines of so many orders, those of the image turned and mirrored, and finds nearly the same in an image that differs little.
  "lsd": the line segment detector (von Gioi et al. 2010) grows regions of like gradient direction and keeps those that
  chance does not explain; of the parameters only `min_length` and `thickness` matter to it.

  `min_length`, `max_gap`, `votes` (pixels that vote) and `thickness` are shares of the image's shorter side; a line has
  SHORTEST pixels at least.
  Shapes: image: uint8[H,W,1 or 3].  Returns uint8[H,W,1], 0 or 255; all 0 where there are no lines.
  """
  inputs.check(image)
  edges.check("hough", low, high, blur)
  inputs.at_least(0, "hough", min_length=min_length, max_gap=max_gap, votes=votes, thickness=thickness)
  if orders not in range(1, ORDERS + 1):
    raise errors.UserError(
      f"orders of hint 'hough' is {orders} (config.data.hint). Use 1 to {ORDERS}, a whole number."
    )
  side = inputs.side(image)
  shortest, pen = max(SHORTEST, min_length * side), max(1, round(thickness * side))

  def of_order(on: np.ndarray, number: int) -> np.ndarray:
    view = turned(on, number)
    lines = voted(view, max(2, round(votes * side)), shortest, max(2, max_gap * side))
    return turned_back(draw(lines, view.shape, pen), number)

  def of_edges() -> np.ndarray:
    on = edges.find(image, low, high, blur)
    return np.maximum.reduce([of_order(on, number) for number in range(orders)])

  detectors = {
    "hough": of_edges,
    "lsd": lambda: draw(grown(inputs.gray(image), shortest), image.shape[:2], pen),
  }
  if detector not in detectors:
    raise errors.unknown("detector of hint 'hough' (config.data.hint)", detector, detectors)
  return detectors[detector]()


def turned(image: np.ndarray, number: int) -> np.ndarray:
  """One of the ORDERS symmetries of an image [H,W,...]: by number % 4 quarters of a turn, mirrored from number 4 on."""
  return np.ascontiguousarray(np.rot90(image[:, ::-1] if number >= 4 else image, number))


def turned_back(image: np.ndarray, number: int) -> np.ndarray:
  """The image whose `turned` this is."""
  back = np.rot90(image, -number)
  return back[:, ::-1] if number >= 4 else back


def voted(on: np.ndarray, votes: int, min_length: float, max_gap: float) -> np.ndarray:
  """The lines that the probabilistic Hough transform finds among the edges uint8[H,W]; lengths in pixels.

  Shapes: returns f64[N,4]: x and y of both ends, at the centres of pixels.
  """
  found: np.ndarray | None = cv2.HoughLinesP(
    on, 1, np.pi / 180, votes, minLineLength=min_length, maxLineGap=max_gap
  )
  return np.zeros((0, 4)) if found is None else found.reshape(-1, 4).astype(np.float64)


def grown(gray: np.ndarray, min_length: float) -> np.ndarray:
  """The lines that the line segment detector finds in uint8[H,W], those of `min_length` pixels and more: as voted."""
  factor = max(1, round(FINE / min(gray.shape)))
  if factor > 1:  # smoothed, as the steps of an enlarged slanting line are lines to it
    gray = cv2.resize(gray, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    gray = cv2.GaussianBlur(gray, (0, 0), 0.6 * factor)
  found: Any = cv2.createLineSegmentDetector().detect(gray)[0]
  if found is None:
    return np.zeros((0, 4))
  lines = (found.reshape(-1, 4).astype(np.float64) + 0.5) / factor - 0.5
  return lines[np.hypot(lines[:, 2] - lines[:, 0], lines[:, 3] - lines[:, 1]) >= min_length]


def draw(lines: np.ndarray, size: tuple[int, ...], thickness: int) -> np.ndarray:
  """Lines f64[N,4] in white on black, uint8[H,W,1]."""
  canvas = np.zeros(size, np.uint8)
  for x0, y0, x1, y1 in np.rint(lines).astype(int).tolist():
    cv2.line(canvas, (x0, y0), (x1, y1), 255, thickness)
  return canvas[..., None]
