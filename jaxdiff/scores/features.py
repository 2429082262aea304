"""Sets of features, one image a row: what every score asks of them, and work on them in blocks that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

BLOCK = 2**23  # numbers in a block: 64 MiB of float64


def checked(sets: Mapping[str, np.ndarray], at_least: int = 1) -> list[np.ndarray]:
  """The sets as arrays of the type they came in, after a check that they can be compared.

  Shapes: each real numbers [N,D], the same D >= 1, N >= at_least.
  Raises: ValueError that names the set.
  """
  arrays = {name: np.asarray(values) for name, values in sets.items()}
  for name, values in arrays.items():
    if values.ndim != 2 or not values.shape[1]:
      raise ValueError(f"{name}: shape {values.shape}, but it must be [N, D], one image a row")
    if values.dtype.kind not in "fiu":
      raise ValueError(f"{name}: values of type {values.dtype}, but they must be real numbers")
    if len(values) < at_least:
      raise ValueError(f"{name}: {len(values)} images, but at least {at_least} are needed")
    check_finite(name, values)
  widths = {name: values.shape[1] for name, values in arrays.items()}
  if len(set(widths.values())) > 1:
    raise ValueError(
      f"features of different lengths, {widths}: take them from the same layer of the same network"
    )
  return list(arrays.values())


def check_finite(name: str, values: np.ndarray) -> None:
  """Raises ValueError with the place of the first NaN or infinity."""
  for rows in blocks(len(values), values[:1].size):
    wrong = np.argwhere(~np.isfinite(values[rows]))
    if wrong.size:
      row, *rest = map(int, wrong[0])
      where = (rows.start + row, *rest)
      raise ValueError(f"{name}: {values[where]} at {list(where)}, but all values must be finite")


def blocks(rows: int, width: int) -> Iterator[slice]:
  """Slices that cover rows in order, each of at most BLOCK numbers when a row has width of them (but one row at least)."""
  step = max(1, BLOCK // max(1, width))
  for start in range(0, rows, step):
    yield slice(start, min(start + step, rows))
