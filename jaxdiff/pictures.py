"""Pictures for people: labelled grids, film strips of a denoising path, and the files they end up in.

Images are uint8, NHWC, with 1 or 3 channels; the pictures made of them are uint8 RGB.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdiff.files import write_atomically

MIN_TILE = 64  # pixels; smaller images are enlarged to at least this, by a whole factor and without smoothing
PAPER = (255, 255, 255)
INK = (60, 60, 60)


def grid(
  images: np.ndarray,
  labels: Sequence[Any] | None = None,
  columns: int | None = None,
  scale: int | None = None,
  path: str | os.PathLike[str] | None = None,
) -> np.ndarray:
  """Lays images out in rows, with their labels, and saves the picture if a path is given.

  A label that a whole row shares is written once beside it, one that a whole column shares once above it;
  any other stands over its own image. Without `columns` the grid is about square and keeps equal labels
  together, whether they come sorted (0 0 1 1 ...) or in turn (0 1 2 0 1 2 ...).

  Shapes: images: u8[N,H,W,C], C in {1, 3}; labels: N of anything that str() makes readable.
  Returns u8[H',W',3].
  """
  images = _rgb(images)
  names = None if labels is None else [str(label) for label in labels]
  if names is not None and len(names) != len(images):
    raise ValueError(f"{len(images)} images but {len(names)} labels")
  if columns is None:
    columns = _columns(len(images), names)
  columns = max(1, min(columns, len(images)))

  over_rows: list[str] | None = None
  over_columns: list[str] | None = None
  over_tiles: list[str] | None = None
  if names is not None:
    rows = [names[i : i + columns] for i in range(0, len(names), columns)]
    in_columns = [names[i::columns] for i in range(columns)]
    if columns > 1 and all(len(set(row)) == 1 for row in rows):
      over_rows = [row[0] for row in rows]
    elif all(len(set(column)) == 1 for column in in_columns):
      over_columns = [column[0] for column in in_columns]
    else:
      over_tiles = names
  picture = _sheet(images, columns, scale, over_rows, over_columns, over_tiles)
  if path is not None:
    save_png(path, picture)
  return picture


def film_strip(
  frames: np.ndarray,
  times: Sequence[float] | np.ndarray,
  labels: Sequence[Any] | None = None,
  max_columns: int = 11,
  scale: int | None = None,
) -> np.ndarray:
  """The way from noise to image: a row for each example, a column for each moment, its time above it.

  With more than `max_columns` moments, evenly spaced ones are shown, the first and the last among them.

  Shapes: frames: u8[T,N,H,W,C]; times: f[T]; labels: N of anything, or None.  Returns u8[H',W',3].
  """
  if len(frames) != len(times):
    raise ValueError(f"{len(frames)} frames but {len(times)} times")
  shown = np.unique(np.linspace(0, len(frames) - 1, min(max_columns, len(frames))).round().astype(int))
  examples = np.asarray(frames)[shown].swapaxes(0, 1)
  captions = [f"{times[i]:.2f}" for i in shown]
  captions[0] = f"t = {captions[0]}"
  names = None if labels is None else [str(label) for label in labels]
  tiles = _rgb(examples.reshape(-1, *examples.shape[2:]))
  return _sheet(tiles, len(shown), scale, over_rows=names, over_columns=captions)


def below(*sheets: np.ndarray) -> np.ndarray:
  """Pictures u8[H,W,3] of any sizes one below the other, on paper.  Returns u8[H',W',3]."""
  width = max(sheet.shape[1] for sheet in sheets)
  padded = [
    np.pad(sheet, ((0, 0), (0, width - sheet.shape[1]), (0, 0)), constant_values=PAPER[0]) for sheet in sheets
  ]
  return np.concatenate(padded)


def drawing(size: int, strokes: Sequence[Sequence[tuple[float, float]]], width: float = 0.03) -> np.ndarray:
  """White strokes on black, as a control branch for scribbles reads them.

  strokes: lines through points (x, y), shares of the side from the upper left corner; width: likewise.
  Returns u8[size,size,1].
  """
  from PIL import Image, ImageDraw

  fine = 8 * size  # drawn larger and shrunk, so that strokes have smooth edges
  sheet = Image.new("L", (fine, fine))
  draw = ImageDraw.Draw(sheet)
  for stroke in strokes:
    points = [(x * fine, y * fine) for x, y in stroke]
    draw.line(points, fill=255, width=max(8, round(width * fine)), joint="curve")
  return np.asarray(sheet.resize((size, size), Image.Resampling.BOX))[..., None]


def save_png(path: str | os.PathLike[str], image: np.ndarray) -> None:
  """Writes a u8[H,W,3], u8[H,W,1] or u8[H,W] picture, whole or not at all."""
  from PIL import Image

  write_atomically(path, lambda file: Image.fromarray(_for_pil(image)).save(file, format="PNG"))


def _for_pil(image: np.ndarray) -> np.ndarray:
  image = np.asarray(image)
  return image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image


def save_npz(path: str | os.PathLike[str], images: np.ndarray, labels: Sequence[int] | np.ndarray) -> None:
  """Writes images and labels as guided-diffusion's evaluator reads them, whole or not at all.

  arr_0: u8[N,H,W,C], arr_1: i64[N].
  """
  images = np.asarray(images)
  if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(labels):
    raise ValueError(f"expected u8[N,H,W,C] and N labels, got {images.dtype}{images.shape}, {len(labels)}")
  write_atomically(path, lambda file: np.savez(file, images, np.asarray(labels, np.int64)))


def _rgb(images: np.ndarray) -> np.ndarray:
  images = np.asarray(images)
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
    raise ValueError(f"expected u8[N,H,W,1 or 3] with N > 0, got {images.dtype}{list(images.shape)}")
  return np.broadcast_to(images, (*images.shape[:3], 3))


def _columns(count: int, names: list[str] | None) -> int:
  """A number of columns that makes the grid about square without breaking up the order of its labels."""
  candidates = [math.ceil(math.sqrt(count))]
  if names is not None:
    kinds = len(dict.fromkeys(names))
    in_turn = all(name == names[i % kinds] for i, name in enumerate(names))
    run = count // kinds
    sorted_runs = count % kinds == 0 and all(name == names[i // run * run] for i, name in enumerate(names))
    if in_turn and 1 < kinds < count:
      candidates = [kinds * m for m in range(1, count // kinds + 1)]
    elif kinds < count and sorted_runs:
      candidates = [c for c in range(2, run + 1) if run % c == 0]
  return min(candidates, key=lambda c: abs(math.log(c * c / count)))


def _sheet(
  tiles: np.ndarray,
  columns: int,
  scale: int | None,
  over_rows: list[str] | None = None,
  over_columns: list[str] | None = None,
  over_tiles: list[str] | None = None,
) -> np.ndarray:
  """Draws u8[N,H,W,3] tiles row by row on paper: row captions to the left, the others above their tiles."""
  from PIL import Image, ImageDraw

  _, height, width, _ = tiles.shape
  scale = scale or max(1, math.ceil(MIN_TILE / max(height, width)))
  height, width = height * scale, width * scale
  rows = math.ceil(len(tiles) / columns)
  gap = max(4, min(height, width) // 24)
  margin = gap + 4

  above = over_tiles or over_columns
  font = _font(above, width, largest=min(20, max(13, width // 6))) if above else None
  row_font = (
    _font(over_rows, 3 * max(width, MIN_TILE), largest=min(20, max(13, height // 6))) if over_rows else None
  )
  caption = math.ceil(_text_size("Ag|", font)[1]) + 4 if font else 0
  left = math.ceil(max(_text_size(name, row_font)[0] for name in over_rows)) + 3 * gap if over_rows else 0
  header = caption if over_columns else 0
  row_pitch = height + gap + (caption + 2 if over_tiles else 0)

  size = (
    left + 2 * margin + columns * width + (columns - 1) * gap,
    header + 2 * margin + rows * row_pitch - gap,
  )
  sheet = Image.new("RGB", size, PAPER)
  draw = ImageDraw.Draw(sheet)
  for i, tile in enumerate(tiles):
    row, column = divmod(i, columns)
    x = margin + left + column * (width + gap)
    y = margin + header + row * row_pitch + (caption + 2 if over_tiles else 0)
    sheet.paste(Image.fromarray(tile.repeat(scale, 0).repeat(scale, 1)), (x, y))
    if over_tiles:
      draw.text((x + width / 2, y - 2), _fit(over_tiles[i], font, width), INK, font, anchor="md")
  for column, text in enumerate(over_columns or ()):
    x = margin + left + column * (width + gap) + width / 2
    draw.text((x, margin + header - 3), _fit(text, font, width), INK, font, anchor="md")
  for row, text in enumerate(over_rows or ()):
    y = margin + header + row * row_pitch + height / 2
    draw.text((margin + left - 2 * gap, y), text, INK, row_font, anchor="rm")
  return np.asarray(sheet)


def _font(names: Sequence[str], width: float, largest: int, smallest: int = 10) -> Any:
  """The largest font in which every name is at most `width` pixels long, or the smallest readable one."""
  from PIL import ImageFont

  fonts = (ImageFont.load_default(size) for size in range(largest, smallest, -1))
  for font in fonts:
    if max(_text_size(name, font)[0] for name in set(names)) <= width:
      return font
  return ImageFont.load_default(smallest)


def _text_size(text: str, font: Any) -> tuple[float, float]:
  left, top, right, bottom = font.getbbox(text)
  return right - left, bottom - top


def _fit(text: str, font: Any, width: float) -> str:
  """The text, or as much of its beginning as fits."""
  if _text_size(text, font)[0] <= width:
    return text
  while text and _text_size(text + "...", font)[0] > width:
    text = text[:-1]
  return text.rstrip() + "..."
