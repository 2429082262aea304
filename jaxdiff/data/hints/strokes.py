"""What a person would draw: few thick strokes, which are neither exact nor whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

from jaxdiff import errors
from jaxdiff.data import transforms
from jaxdiff.data.hints import edges, inputs

# pixels of the shorter side at which contours are looked for; a smaller image is drawn at this size
FINE = 96
FAINT = 32  # of 255: what differs less from the paper is not drawn, but noise
SHARPNESS, STEEPNESS, SPREAD = 20.0, 20.0, 1.6  # XDoG's p, phi and k


def scribble(
  image: np.ndarray,
  *,
  detector: str = "edges",
  detail: float = 0.02,
  level: float = 0.4,
  min_length: float = 0.2,
  width: float = 0.024,
  wobble: float = 0.01,
  gaps: float = 0.08,
  seed: int = 0,
) -> np.ndarray:
  """A drawing of the image's contours by an unsteady hand: white strokes on black.

  1. `detector` "edges": Canny's edges of the image blurred by `detail`. "xdog": the outlines of the dark areas of the
     image that the extended difference of Gaussians makes of it, of scale `detail` and with a threshold `level` (0..1)
     of brightness: see `xdog`. It suits things before a much darker or brighter ground.
  2. Outlines shorter than `min_length` are dropped, and the others simplified to polygons within a third of `detail` of them.
  3. They are drawn with strokes of `width` whose points are moved by about `wobble`, and which are missing in a share
     `gaps` of the image's area. What is moved and missing varies smoothly over the image, so that strokes which lie
     side by side stay so.

  Lengths are shares of the image's shorter side.
  Shapes: image: uint8[H,W,1 or 3].  Returns uint8[H,W,1], 0 or 255; the same for the same seed.
  """
  inputs.check(image)
  lengths = {"detail": detail, "min_length": min_length, "width": width, "wobble": wobble}
  inputs.at_least(0, "scribble", level=level, gaps=gaps, **lengths)
  seen = _of_side(image, FINE)
  blur = max(1.0, detail * FINE)  # pixels; as much as it blurs, so much flatter is a step
  detectors = {
    "edges": lambda: edges.find(seen, 40 / blur, 120 / blur, blur),
    "xdog": lambda: 255 * (xdog(seen, blur, level) < 0.5).astype(np.uint8),
  }
  if detector not in detectors:
    raise errors.unknown("detector of hint 'scribble' (config.data.hint)", detector, detectors)
  side = max(FINE, inputs.side(image))
  canvas = np.zeros(_of_side(image, side).shape[:2], np.uint8)
  hand = make_hand(canvas.shape, wobble * side, gaps, seed)
  for line in outlines(detectors[detector](), min_length * FINE, detail * FINE / 3):
    enlarged = (line + 0.5) * (np.array(canvas.shape[::-1]) / seen.shape[1::-1]) - 0.5
    draw(canvas, enlarged, max(1, round(width * side)), hand)
  drawn = transforms.scale(canvas[..., None], *image.shape[:2])
  return np.where(drawn > 127, 255, 0).astype(np.uint8)


def xdog(image: np.ndarray, sigma: float, level: float) -> np.ndarray:
  """The image as ink on paper: f32[H,W], 1 for paper, less for ink.

  S = (1 + p) G_sigma - p G_(k sigma) of the brightness, 0..1: a blurred image with its edges sharpened; then
  T(S) = 1 for S >= level, else 1 + tanh(phi (S - level)).
  So the dark side of an edge is ink also where it is brighter than `level`, and so are dark areas.

  Shapes: image: uint8[H,W,1 or 3].
  Source: Winnemoeller, Kyprianidis and Olsen 2012, "XDoG: an extended difference-of-Gaussians compendium", S_(sigma,k,p)
  and T_(eps,phi) with eps = level.
  """
  x = inputs.gray(image).astype(np.float32) / 255
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
    # A line that is cut begins where it is, not anywhere.
    turn = -int(np.argmin(inside))
    for part in _runs(np.roll(points, turn, axis=0), np.roll(inside, turn)):
      if len(part) < max(2.0, min_length):
        continue
      closed = len(part) == len(points)
      corners = cv2.approxPolyDP(part[:, None], tolerance, closed).reshape(-1, 2).astype(np.float32)
      yield np.append(corners, corners[:1], axis=0) if closed else corners


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
  x, y = np.clip(np.rint(points).astype(int), 0, np.array(canvas.shape[::-1]) - 1).T
  moved = np.rint(points + np.stack([hand.dx[y, x], hand.dy[y, x]], axis=1)).astype(np.int32)
  strokes = [stroke[:, None] for stroke in _runs(moved, hand.down[y, x])]
  cv2.polylines(canvas, strokes, False, 255, width)


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


def _of_side(image: np.ndarray, side: int) -> np.ndarray:
  """The image with its shorter side at `side`."""
  height, width = (round(n * side / inputs.side(image)) for n in image.shape[:2])
  return transforms.scale(image, height, width)


def _runs(points: np.ndarray, keep: np.ndarray) -> list[np.ndarray]:
  """The stretches of points that are all kept."""
  edge = np.diff(keep, prepend=False, append=False).nonzero()[0].tolist()
  return [points[start:stop] for start, stop in zip(edge[::2], edge[1::2], strict=True)]


def _dense(line: np.ndarray, step: float) -> np.ndarray:
  """Points at most `step` apart on a polygon f32[N,2], its corners among them."""
  sides = np.diff(line, axis=0)
  counts = np.maximum(1, np.ceil(np.hypot(*sides.T) / step).astype(int))
  which = np.repeat(np.arange(len(sides)), counts)
  share = (np.arange(len(which)) - (np.cumsum(counts) - counts)[which]) / counts[which]
  return np.concatenate([line[which] + share[:, None] * sides[which], line[-1:]])
