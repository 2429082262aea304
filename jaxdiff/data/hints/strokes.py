"""What a person would draw: few thick strokes, which are neither exact nor whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

from jaxdiff import errors
from jaxdiff.data.hints import edges, inputs

FINE = 96  # pixels: a smaller image is drawn at a multiple of its size, where a stroke is several pixels wide
FAINT = 32  # of 255: what differs less from the paper is not drawn, but noise
SHARPNESS, STEEPNESS, SPREAD = 20.0, 20.0, 1.6  # XDoG's p, phi and k


def scribble(
  image: np.ndarray,
  *,
  detector: str = "xdog",
  detail: float = 0.018,
  level: float = 0.4,
  min_length: float = 0.25,
  width: float = 0.024,
  wobble: float = 0.01,
  gaps: float = 0.08,
  seed: int = 0,
) -> np.ndarray:
  """A drawing of the image's contours by an unsteady hand: white strokes on black.

  1. `detector` "xdog": the outlines of the dark areas of an image that the extended difference of Gaussians makes of
     it, of a scale `detail` and with a threshold `level` (0..1) of brightness: see `xdog`. "edges": Canny's edges of an
     image blurred by `detail`.
  2. Outlines shorter than `min_length` are dropped, and the others simplified to polygons within `detail` of them.
  3. They are drawn with strokes of `width` whose points are moved by about `wobble`, and which are missing in a share
     `gaps` of the image's area. What is moved and missing varies smoothly over the image, so that strokes which lie
     side by side stay so.

  Lengths are shares of the image's shorter side.
  Shapes: image: uint8[H,W,1 or 3].  Returns uint8[H,W,1], 0 or 255; the same for the same seed.
  """
  inputs.check(image)
  lengths = {"detail": detail, "min_length": min_length, "width": width, "wobble": wobble}
  inputs.at_least(0, "scribble", level=level, gaps=gaps, **lengths)
  gray, factor = inputs.gray(image), -(-FINE // inputs.side(image))
  if factor > 1:
    gray = cv2.resize(gray, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
  side = min(gray.shape)
  blur = max(1.0, detail * side)  # pixels; as much as it blurs, so much flatter is a step
  detectors = {
    "xdog": lambda: 255 * (xdog(gray, blur, level) < 0.5).astype(np.uint8),
    "edges": lambda: edges.find(gray, 40 / blur, 120 / blur, blur),
  }
  if detector not in detectors:
    raise errors.unknown("detector of hint 'scribble' (config.data.hint)", detector, detectors)
  hand = make_hand(gray.shape, wobble * side, gaps, seed)
  canvas = np.zeros(gray.shape, np.uint8)
  for line in outlines(detectors[detector](), min_length * side, detail * side):
    draw(canvas, line, max(1, round(width * side)), hand)
  return np.where(_smaller(canvas, image.shape[:2]) > 127, 255, 0).astype(np.uint8)[..., None]


def xdog(gray: np.ndarray, sigma: float, level: float) -> np.ndarray:
  """The image as ink on paper: f32[H,W], 1 for paper, less for ink.

  S = (1 + p) G_sigma - p G_(k sigma) of the brightness, 0..1: a blurred image with its edges sharpened; then
  T(S) = 1 for S >= level, else 1 + tanh(phi (S - level)).
  So the dark side of an edge is ink also where it is brighter than `level`, and so are dark areas.

  Shapes: gray: uint8[H,W].
  Source: Winnemoeller, Kyprianidis and Olsen 2012, "XDoG: an extended difference-of-Gaussians compendium", S_(sigma,k,p)
  and T_(eps,phi) with eps = level.
  """
  x = gray.astype(np.float32) / 255
  near, far = (cv2.GaussianBlur(x, (0, 0), s) for s in (sigma, SPREAD * sigma))
  sharp = (1 + SHARPNESS) * near - SHARPNESS * far
  return 1 + np.tanh(STEEPNESS * np.minimum(sharp - level, 0))


def outlines(ink: np.ndarray, min_length: float, tolerance: float) -> Iterator[np.ndarray]:
  """The borders of what is not 0, as polygons f32[N,2] of x and y, without their parts along the image's own border."""
  found, _ = cv2.findContours(ink, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
  height, width = ink.shape
  for contour in found:
    points = contour.reshape(-1, 2)
    inside = ((points > 0) & (points < [width - 1, height - 1])).all(axis=1)
    # A closed line begins anywhere: let it begin where it is cut, or end where it begins.
    turn = -int(np.argmin(inside))
    points, inside = np.roll(points, turn, axis=0), np.roll(inside, turn)
    if inside.all():
      points, inside = np.append(points, points[:1], axis=0), np.append(inside, True)
    for part in _runs(points, inside):
      if len(part) >= max(2.0, min_length):
        yield cv2.approxPolyDP(part[:, None], tolerance, False).reshape(-1, 2).astype(np.float32)


class Hand(NamedTuple):
  """How a hand errs at each place of an image."""

  dx: np.ndarray  # f32[H,W], pixels
  dy: np.ndarray
  down: np.ndarray  # bool[H,W], False where the pen is off the paper


def make_hand(size: tuple[int, ...], wobble: float, gaps: float, seed: int) -> Hand:
  """Fields that vary over about a tenth of the image; `wobble`: their standard deviation; `gaps`: share without pen."""
  noise = np.random.Generator(np.random.PCG64(seed)).standard_normal((3, 12, 12)).astype(np.float32)
  dx, dy, pen = (cv2.resize(field, size[::-1], interpolation=cv2.INTER_CUBIC) for field in noise)
  return Hand(wobble * dx, wobble * dy, pen > np.quantile(pen, min(gaps, 1.0)) if gaps else pen > -np.inf)


def draw(canvas: np.ndarray, line: np.ndarray, width: int, hand: Hand) -> None:
  """Draws a polygon f32[N,2] of x and y on uint8[H,W], as a hand does."""
  points = _dense(line, step=max(1.0, width / 2))
  x, y = np.rint(points).astype(int).T
  moved = np.rint(points + np.stack([hand.dx[y, x], hand.dy[y, x]], axis=1)).astype(np.int32)
  for stroke in _runs(moved, hand.down[y, x]):
    cv2.polylines(canvas, [stroke[:, None]], False, 255, width)


def from_drawing(drawing: np.ndarray) -> np.ndarray:
  """A person's drawing as the model's hint: white strokes on black.

  Dark on light or light on dark: the paper is what most of the picture's border shows, strokes what differs from it by
  more than a threshold, Otsu's, in brightness. Shades of the paper are no strokes.

  Shapes: drawing: uint8[H,W], or [H,W,C], C of 1, 3 or 4; a fourth channel is dropped.  Returns uint8[H,W,1], 0 or 255.
  Source of the threshold: Otsu 1979.
  """
  gray = inputs.gray(drawing[..., None] if drawing.ndim == 2 else drawing[..., :3])
  border = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
  paper = int(np.bincount(border).argmax())
  apart = np.abs(gray.astype(np.int16) - paper).astype(np.uint8)
  otsu, _ = cv2.threshold(apart, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
  return np.where(apart > max(otsu, FAINT), 255, 0).astype(np.uint8)[..., None]


def _smaller(canvas: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
  return canvas if canvas.shape == size else cv2.resize(canvas, size[::-1], interpolation=cv2.INTER_AREA)


def _runs(points: np.ndarray, keep: np.ndarray) -> list[np.ndarray]:
  """The stretches of points that are all kept."""
  ends = np.flatnonzero(np.diff(keep.astype(np.int8))) + 1
  return [part for part, kept in zip(np.split(points, ends), np.split(keep, ends), strict=True) if kept.all()]


def _dense(line: np.ndarray, step: float) -> np.ndarray:
  """Points at most `step` apart on a polygon f32[N,2], its corners among them."""
  parts = [
    np.linspace(a, b, 1 + int(np.ceil(np.hypot(*(b - a)) / step)), endpoint=False)
    for a, b in itertools.pairwise(line)
  ]
  return np.concatenate([*parts, line[-1:]])
