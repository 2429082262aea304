"""The source `shapes`: drawn scenes of a few solid shapes on a textured ground, with exact maps of kind and depth.

A scene is a function of (split, index) alone, and the same at every size. It obeys three laws, so that what its maps say
can be seen: what is nearer hides what is farther, is larger, and has the purer colour (the haze of a landscape). Surfaces
differ in luma, so that their edges show in gray too.

An example has, beside "image" uint8[S,S,3] and "label" (the kind of the nearest shape), "maps":

  segmentation  uint8[S,S], 0 on the ground, else 1 + the kind of the shape
  depth         uint16[S,S], larger is nearer: one number on a shape, a ramp on the ground, which is behind all shapes

The maps say what is at a pixel's centre. The image is averaged over areas of a picture GRAIN times as large: a pixel that
lies within one shape has its colour exactly, and only pixels that edges cross are mixed.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from jaxdiff.data import base
from jaxdiff.data.base import Example, Source
from jaxdiff.data.outlines import KINDS, OF_NUMBER, RADIUS
from jaxdiff.data.seen import LUMA, apparent_depth, apparent_segmentation
from jaxdiff.errors import UserError

VERSION = 1  # raise it whenever any pixel, label or map of any scene changes: fingerprints tell resumed runs
SPLITS = {"train": 50_000, "test": 5_000}
DEFAULT_SIZE, SIZES = 32, (32, 128)

MAX_SHAPES = 4
GRAIN = 4  # sub-pixels along a pixel's side
FULL = GRAIN * GRAIN
LEVELS = 0.2 + 0.1625 * np.arange(MAX_SHAPES + 1)  # of luma; a scene's surfaces have different ones
LEVEL_JITTER, TEXTURE = 0.02, 0.035  # luma may leave its level by so much; the ground's by both
DETECTORS = {"segmentation": apparent_segmentation, "depth": apparent_depth}  # of images that have no maps
ONE_HOT = np.eye(MAX_SHAPES, dtype=np.uint8).view(np.uint32)[:, 0]


class Ground(NamedTuple):
  """A plane behind all shapes."""

  hue: np.ndarray  # f64[3]
  luma: float
  texture: int  # a place in TEXTURES
  turn: np.ndarray  # f64[2], cosine and sine of the texture's direction
  waves: float  # across the image
  noise: np.ndarray  # uint8[8,8]
  depths: np.ndarray  # f64[2], where it is farthest and nearest
  slope: np.ndarray  # f64[2], in which direction (x, y) it comes nearer: |x| + |y| = 1


class Scene(NamedTuple):
  """What is to be seen, the nearest of 1 to MAX_SHAPES shapes first; lengths in units of the image's side."""

  kinds: np.ndarray  # int64[N], places in KINDS
  depths: np.ndarray  # f64[N] in (0.5, 1), falling
  radii: np.ndarray  # f64[N]
  turns: np.ndarray  # f64[N,2], cosine and sine
  centres: np.ndarray  # f64[N,2], x and y
  colours: np.ndarray  # uint8[N,3]
  ground: Ground


def open_shapes(where: str, split: str, skip_unreadable: bool) -> Source:
  """Scenes of the size that `where` says, DEFAULT_SIZE if it is empty."""
  del skip_unreadable
  least, most = SIZES
  size = int(where) if where.isdecimal() else DEFAULT_SIZE
  if where not in ("", str(size)) or not least <= size <= most:
    raise UserError(
      f"data source 'shapes:{where}' is of no size that scenes have: write shapes:64, or another number"
      f" from {least} to {most} (config.data.source)."
    )
  if split not in SPLITS:
    raise base.NoSplit(
      f"data source 'shapes' has the splits 'train' and 'test', not {split!r} (config.data.split)."
    )
  mark = f"shapes-{VERSION}-{size}-{split}"
  return Source(SPLITS[split], Drawer(split, size), tuple(KINDS), mark, detectors=DETECTORS)


# Drawing is many small operations: threads that did it at once would spend most of their time on Python's own lock.
TURN = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Drawer:
  """Draws the scenes of a split by their number."""

  split: str
  size: int

  def __call__(self, rows: Sequence[int]) -> list[Example]:
    with TURN:
      return [draw(scene, self.size) for scene in scenes(self.split, rows)]


# How many numbers in [0, 1) a scene is made of, and for what.
DRAWS = {
  "count": 1,
  "kind": MAX_SHAPES,
  "depth": MAX_SHAPES,
  "radius": MAX_SHAPES,
  "quarter": MAX_SHAPES,
  "x": MAX_SHAPES,
  "y": MAX_SHAPES,
  "turn": MAX_SHAPES,
  "texture_turn": 1,
  "slope": 1,
  "level": MAX_SHAPES + 1,
  "luma": MAX_SHAPES + 1,
  "hues": 1,
  "hue": MAX_SHAPES + 1,
  "texture": 1,
  "waves": 1,
  "depths": 2,
  "noise": 64,
}


def scenes(split: str, rows: Iterable[int]) -> list[Scene]:
  """The scenes of these numbers, each a function of (split, its number) alone."""
  seeds = [[list(SPLITS).index(split), row] for row in rows]
  # Only `random`, whose stream NumPy has kept: that of its other distributions may change between versions.
  *ends, total = np.cumsum(list(DRAWS.values()))
  draws = [np.random.Generator(np.random.PCG64(seed)).random(total) for seed in seeds]
  parts = np.split(np.reshape(draws, (len(draws), total)), ends, axis=1)
  u = dict(zip(DRAWS, parts, strict=True))

  nth = np.arange(MAX_SHAPES)
  counts = 1 + (u["count"] * MAX_SHAPES).astype(int)
  kinds = (u["kind"] * len(KINDS)).astype(int)
  depths = 1 - (nth + 0.2 + 0.6 * u["depth"]) / (2 * np.maximum(counts, 2))
  radii = RADIUS * depths * (0.88 + 0.24 * u["radius"])
  # A quarter of the image for each, more or less, so that few are hidden; no centre where much would be cut off.
  quarter = np.argsort(u["quarter"])
  spread = np.stack([quarter % 2 + 0.8 * u["x"], quarter // 2 + 0.8 * u["y"]], axis=-1)
  margin = 0.6 * radii[..., None]
  centres = np.clip(0.14 + 0.4 * spread, margin, 1 - margin)
  turns = _cos_sin(u["turn"])
  lumas = LEVELS[np.argsort(u["level"])] + LEVEL_JITTER * (2 * u["luma"] - 1)
  hues = _hue(u["hues"] + (np.arange(MAX_SHAPES + 1) + 0.5 * u["hue"]) / (counts + 1))
  colours = _to_uint8(colour(hues[..., :-1], lumas[:, :-1], depths))
  of_shapes = zip(kinds, depths, radii, turns, centres, np.moveaxis(colours, 0, -1), strict=True)
  grounds = _grounds(u, hues[..., -1].T, lumas[:, -1])
  return [
    Scene._make([*(values[:n] for values in shapes), ground])
    for n, shapes, ground in zip(counts[:, 0], of_shapes, grounds, strict=True)
  ]


def _grounds(u: dict[str, np.ndarray], hues: np.ndarray, lumas: np.ndarray) -> list[Ground]:
  """A ground for each row of u, by the names of DRAWS."""
  slope = _cos_sin((u["slope"][:, 0] - 0.5) / 3)[:, ::-1]  # nearer downwards, more or less
  fields = zip(
    hues,
    lumas,
    (u["texture"][:, 0] * len(TEXTURES)).astype(int),
    _cos_sin(u["texture_turn"][:, 0]),
    2 + 3 * u["waves"][:, 0],
    (256 * u["noise"]).astype(np.uint8).reshape(-1, 8, 8),
    np.array([0.05, 0.3]) + np.array([0.1, 0.15]) * u["depths"],
    slope / np.abs(slope).sum(axis=1, keepdims=True),
    strict=True,
  )
  return [Ground._make(values) for values in fields]


def draw(scene: Scene, size: int) -> Example:
  """A scene as an example; images and maps as this module's docstring says."""
  canvas = _shapes(scene, size * GRAIN)
  luma, depth = _ground(scene.ground, size)
  ground = _to_uint8(colour(scene.ground.hue[:, None, None], luma, depth))
  # Channels lie first here, and numbers are float32, as is fast; they are whole and below 2^24, so nothing is rounded.
  shown = _channels(_sum_sub_pixels(canvas)).reshape(-1, MAX_SHAPES).T.astype(np.float32)
  behind = FULL - np.ones(MAX_SHAPES, np.float32) @ shown
  colours = np.zeros((3, MAX_SHAPES), np.float32)
  colours[:, : len(scene.colours)] = scene.colours.T
  image = (colours @ shown + behind * ground.reshape(3, -1) + FULL // 2).astype(np.uint16) // FULL

  depth = _to_uint16(depth)
  segmentation = np.zeros((size, size), np.uint8)
  centre = _channels(canvas[GRAIN // 2 :: GRAIN, GRAIN // 2 :: GRAIN]) > 0
  for i, kind in enumerate(scene.kinds):
    segmentation[centre[..., i]] = 1 + kind
    depth[centre[..., i]] = _to_uint16(scene.depths[i])
  return {
    "image": np.ascontiguousarray(image.astype(np.uint8).T).reshape(size, size, 3),
    "label": int(scene.kinds[0]),
    "maps": {"segmentation": segmentation, "depth": depth},
  }


def colour(hue: np.ndarray, luma: np.ndarray, depth: np.ndarray) -> np.ndarray:
  """RGB of that luma, as far from gray as `depth` times the most that the hue allows.

  L + depth min(L / L_h, (1 - L) / (1 - L_h)) (h - L_h),   L_h the luma of h: at depth 1, h mixed with black or white

  Shapes: hue: f64[3,...], pure ones (0 and 1 occur); luma, depth: f64[...] in (0, 1).  Returns f64[3,...] in [0, 1].
  """
  pure = LUMA[0] * hue[0] + LUMA[1] * hue[1] + LUMA[2] * hue[2]
  return luma + depth * np.minimum(luma / pure, (1 - luma) / (1 - pure)) * (hue - pure)


def _shapes(scene: Scene, size: int) -> np.ndarray:
  """uint32[size,size], four channels of 8 bits: 1 in that of the shape which is seen.

  Not by cv2.fillPoly, whose outlines differ between OpenCV 4 and 5.
  """
  canvas = np.zeros((size, size), np.uint32)
  for i in reversed(range(len(scene.kinds))):
    centre_x, centre_y = (scene.centres[i] * size).tolist()
    radius, (c, s) = float(scene.radii[i]) * size, scene.turns[i].tolist()
    kind = OF_NUMBER[scene.kinds[i]]
    columns, x = _reached(centre_x, radius, kind.reach, size)
    rows, y = _reached(centre_y, radius, kind.reach, size)
    covered = kind.covers(c * x + (s * y)[:, None], (c * y)[:, None] - s * x)
    np.copyto(canvas[rows, columns], ONE_HOT[i], where=covered)
  return canvas


def _reached(centre: float, radius: float, reach: float, size: int) -> tuple[slice, np.ndarray]:
  """The sub-pixels of an axis that a shape may cover, and how far their centres are from its own, f32[N] in radii."""
  first, last = max(int(centre - reach * radius), 0), min(int(centre + reach * radius) + 1, size)
  return slice(first, last), ((np.arange(first, last) + (0.5 - centre)) / radius).astype(np.float32)


def _sum_sub_pixels(canvas: np.ndarray) -> np.ndarray:
  """Sums over blocks of GRAIN by GRAIN: [S GRAIN,S GRAIN] -> [S,S]; of channels too, since they do not overflow."""
  rows = functools.reduce(np.add, (canvas[i::GRAIN] for i in range(GRAIN)))
  return functools.reduce(np.add, (rows[:, i::GRAIN] for i in range(GRAIN)))


def _channels(packed: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(packed).view(np.uint8).reshape(*packed.shape, MAX_SHAPES)


def _ground(ground: Ground, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Luma and depth of the ground, f64[S,S] each."""
  x, y = _grid(size)
  luma = ground.luma + TEXTURE * TEXTURES[ground.texture](ground, x, y)
  far, near = ground.depths
  return luma, (far + near) / 2 + (near - far) * (ground.slope[0] * x + ground.slope[1] * y)


@functools.lru_cache(maxsize=4)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
  """x f64[1,S] and y f64[S,1] of the pixels' centres, in (-0.5, 0.5)."""
  centres = (np.arange(size) + 0.5) / size - 0.5
  return centres[None], centres[:, None]


def _gradient(ground: Ground, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  c, s = ground.turn
  return 1.4 * (c * x + s * y)


def _stripes(ground: Ground, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  c, s = ground.turn
  return _wave(ground.waves * (c * x + s * y))


def _checker(ground: Ground, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  c, s = ground.turn
  return _wave(ground.waves * (c * x + s * y)) * _wave(ground.waves * (c * y - s * x))


def _noise(ground: Ground, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  # The one kind of linear interpolation that OpenCV promises to be the same to the bit everywhere.
  noise = cv2.resize(ground.noise, (x.size, y.size), interpolation=cv2.INTER_LINEAR_EXACT)
  return noise / 127.5 - 1


def _wave(phase: np.ndarray) -> np.ndarray:
  """A wave of period 1 between -1 and 1 with flat tops and straight slopes."""
  return np.clip(8 * np.abs(phase - np.floor(phase) - 0.5) - 2, -1, 1)


TEXTURES = [_gradient, _stripes, _checker, _noise]  # (ground, x, y) -> f64[S,S] in [-1, 1]


def _cos_sin(turn: np.ndarray) -> np.ndarray:
  """Cosine and sine of an angle in turns, f64[...,2]; rounded, since libraries differ in the last bit."""
  return np.round(np.stack([np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)], axis=-1), 9)


def _hue(turn: np.ndarray) -> np.ndarray:
  """Pure colours around the circle red, green, blue: f64[...] -> f64[3,...], with a 0 and a 1 in each."""
  return np.stack([np.clip(np.abs((turn + off) % 1 * 6 - 3) - 1, 0, 1) for off in (0, 2 / 3, 1 / 3)])


def _to_uint8(share: np.ndarray) -> np.ndarray:
  return np.rint(255 * share).astype(np.uint8)


def _to_uint16(share: np.ndarray) -> np.ndarray:
  return np.rint(65535 * share).astype(np.uint16)
