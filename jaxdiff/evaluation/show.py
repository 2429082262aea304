"""Pictures of an evaluation: a grid by class, and drawn images beside the training images that are nearest to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff import sample
from jaxdiff.evaluation import images
from jaxdiff.evaluation.images import Images
from jaxdiff.evaluation.reference import Statistics
from jaxdiff.evaluation.scorer import Scored
from jaxdiff.pictures import grid
from jaxdiff.scores import neighbours

FOLDER = "evaluation"
GRID, NEIGHBOURS = f"{FOLDER}/grid.png", f"{FOLDER}/neighbours.png"
ROWS = 10  # drawn images whose nearest training images are shown
CAPTIONS = ("drawn", "nearest", "2nd", "3rd", "4th", "5th")


def pictures(
  workdir: Path,
  settings: Any,
  given: Images,
  names: Sequence[str],
  scored: Scored,
  training: Statistics | None,
) -> None:
  """Saves grid.png and, where the training images are at hand, neighbours.png in WORKDIR/evaluation/."""
  by_class(workdir / GRID, given, names)
  path = workdir / NEIGHBOURS
  path.unlink(missing_ok=True)  # of what was scored before
  if training and scored.copies:
    closest(path, settings, given, scored, training)


def by_class(path: Path, given: Images, names: Sequence[str]) -> np.ndarray:
  """The first images of a set, ordered by their labels; returns the picture, u8[H,W,3]."""
  some, labels = images.first(given, sample.MAX_TILES)
  order = np.argsort(labels, kind="stable")
  named = names or [str(i) for i in range(int(labels.max()) + 1)]
  return sample.save_grid(path, some[order], labels[order], named)


def closest(path: Path, settings: Any, given: Images, scored: Scored, training: Statistics) -> None:
  """Those drawn images that are closest to a training image, each with the training images nearest to it.

  Near by the distance of the features that scores are made of, among the images whose features are kept.
  """
  assert scored.copies and training.kept is not None and training.rows is not None
  order = np.argsort(scored.copies.distance)[:ROWS]
  near = neighbours.nearest(
    scored.found.kept[order], training.kept, min(len(CAPTIONS) - 1, len(training.kept))
  )
  drawn = images.pick(given, scored.found.rows[order])
  real = images.take(settings, settings.split, training.rows[near.row].ravel())
  rows = np.concatenate([drawn[:, None], real.reshape(*near.row.shape, *drawn.shape[1:])], axis=1)
  tiles, columns = rows.reshape(-1, *drawn.shape[1:]), rows.shape[1]
  grid(tiles, labels=CAPTIONS[:columns] * len(rows), columns=columns, path=path)
