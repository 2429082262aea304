"""Shares of a split, written as TFDS writes them: `train[:90%]`, `train[90%:]`, `train[:1000]`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from jaxdiff.data.base import Example, Source
from jaxdiff.errors import UserError

SHARE = re.compile(r"(?P<name>[^\[\]]+)\[(?P<start>\d+%?)?:(?P<stop>\d+%?)?\]")


def parse(split: str) -> tuple[str, tuple[str, str] | None]:
  """(name, (start, stop)) of `name[start:stop]`; (name, None) of a whole split.  Raises UserError for another form."""
  if "[" not in split:
    return split, None
  found = SHARE.fullmatch(split)
  if found is None:
    raise UserError(f"cannot read the split {split!r}. Write a share of one as train[:90%] or train[90%:].")
  return found["name"], (found["start"] or "0", found["stop"] or "100%")


def share(source: Source, split: str, bounds: tuple[str, str]) -> Source:
  """The examples between two bounds, each a number of examples or a percentage, of one fixed shuffle of the source.

  So a share has all classes also where files lie sorted by class, and `train[:90%]` and `train[90%:]` have no example
  in common.  Raises UserError for a share without examples.
  """
  start, stop = (_position(bound, len(source)) for bound in bounds)
  rows = np.sort(np.random.Generator(np.random.PCG64(0)).permutation(len(source))[start:stop])
  if not len(rows):
    raise UserError(f"the split {split!r} has no examples: there are {len(source)} to take a share of.")
  return dataclasses.replace(
    source,
    size=len(rows),
    read=ShareReader(source, rows),
    files=tuple(source.files[row] for row in rows) if source.files else (),
    fingerprint=f"{source.fingerprint}[{start}:{stop}]",
  )


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ShareReader:
  """Reads examples of a source by their number in a share of it."""

  source: Source
  rows: np.ndarray  # i64[N]

  def __call__(self, rows: Sequence[int]) -> list[Example]:
    return self.source.take(self.rows[list(rows)])


def _position(bound: str, size: int) -> int:
  return round(size * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)
