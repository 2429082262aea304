"""The endless stream of batches: a function of (source, config, seed, batch number), read ahead by Grain.

Positions count examples over all epochs: batch t holds positions t B .. (t+1) B - 1, epoch e the positions
e N .. (e+1) N - 1 as one permutation of the source. Of each batch, process k of P takes the k-th slice. So a run
is resumed by the number of batches alone, on any number of processes that divides B.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxdiff.data import transforms
from jaxdiff.data.ahead import Ahead
from jaxdiff.data.base import ArrayReader, HostBatch, Source
from jaxdiff.data.transforms import View
from jaxdiff.errors import UserError


def stream(
  source: Source,
  data: Any,
  *,
  batch_size: int,
  seed: int,
  start: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  train: bool = True,
) -> Iterator[HostBatch]:
  """This process's share of each batch from number `start` on, without end.

  `data` is the config's data section; with `train` examples are shuffled and augmented, else neither. Closing the
  iterator (or leaving it to the garbage collector) ends its threads and worker processes. Workers are started by
  spawning, so a script that asks for them needs `if __name__ == "__main__":`.

  Shapes: image: uint8[b,S,S,C]; label: int32[b]; index: uint32[b], the position; b = batch_size / process_count.
  Raises:
    UserError: batch size and processes do not suit each other or the source, or a config value is wrong.
  """
  check_sizes(len(source), batch_size, process_count)
  check_reading(data)
  share = batch_size // process_count
  view = transforms.view(data, train=train)
  read = BatchReader(
    source=hold(source, view, data.threads) if data.in_memory else source,
    view=view,
    seed=check_seed(seed),
    shuffle=train,
    batch_size=batch_size,
    share=slice(process_index * share, (process_index + 1) * share),
  )
  return Ahead(read, start, data.threads, data.prefetch, data.workers)


def epoch(source: Source, data: Any, batch_size: int) -> Iterator[HostBatch]:
  """One pass in the source's own order, not augmented; the last batch holds what is left."""
  view = transforms.view(data, train=False)
  for first in range(0, len(source), batch_size):
    rows = np.arange(first, min(first + batch_size, len(source)))
    yield assemble(source, rows, rows.astype(np.uint32), 0, view)


def fingerprint(source: Source, data: Any, *, batch_size: int, seed: int) -> dict[str, Any]:
  """What must be equal for a resumed run to see the same examples, as plain JSON values."""
  view = transforms.view(data, train=True)
  first = order(seed, 0, len(source))[:8]  # would tell that another NumPy shuffles differently
  return {
    "source": source.fingerprint,
    "seed": int(seed),
    "batch_size": int(batch_size),
    "first_rows": [int(row) for row in first],
    **{f"view.{name}": value for name, value in view._asdict().items()},
  }


def check_labels(source: Source, num_classes: int) -> None:
  """Every label of the source must be a class of the model.

  Raises:
    UserError: it has more classes.
  """
  if source.num_classes > num_classes:
    label = source.num_classes - 1
    raise UserError(
      f"the data has label {label} ({source.label_names[label]!r}), outside config.model.num_classes={num_classes}."
      f" Use --config.model.num_classes={source.num_classes}."
    )


def check_sizes(size: int, batch_size: int, process_count: int) -> None:
  """The batch must divide among the processes, and no batch may hold an example twice."""
  if process_count > size:
    raise UserError(
      f"{process_count} processes, but only {size} examples (config.data.source): use fewer processes."
    )
  if batch_size < 1 or batch_size % process_count:
    raise UserError(
      f"batch size {batch_size} does not divide among {process_count} processes (config.train.batch_size)."
      f" Use {max(1, round(batch_size / process_count)) * process_count}."
    )
  if batch_size > size:
    raise UserError(
      f"batch size {batch_size} is more than the {size} examples there are (config.train.batch_size)."
    )


def check_reading(data: Any) -> None:
  for name, least in (("threads", 1), ("prefetch", 1), ("workers", 0)):
    if getattr(data, name) < least:
      raise UserError(f"config.data.{name} is {getattr(data, name)}. Use at least {least}.")
  if data.workers and data.in_memory:
    raise UserError(
      f"config.data.workers={data.workers} would decode what config.data.in_memory=True keeps decoded: set one of"
      " --config.data.workers=0 and --config.data.in_memory=False."
    )


def check_seed(seed: int) -> int:
  if not 0 <= seed < 2**32:
    raise UserError(f"seed {seed} is outside 0 .. 2^32 - 1 (config.seed).")
  return seed


@functools.lru_cache(maxsize=4)  # a batch may lie in two epochs, and reading ahead in the next
def order(seed: int, number: int, size: int) -> np.ndarray:
  """The rows of the source in the order of one epoch.

  Shapes: int64[size], a permutation.
  """
  # Not Grain's shuffle: below 65,536 examples it walks cycles, 30 us for each example of a set as small as digits.
  return np.random.Generator(np.random.PCG64([seed, number])).permutation(size)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class BatchReader:
  """Batch number -> this process's share of it."""

  source: Source
  view: View
  seed: int
  shuffle: bool
  batch_size: int
  share: slice

  def __call__(self, number: int) -> HostBatch:
    positions = number * self.batch_size + np.arange(self.batch_size)[self.share]
    return assemble(self.source, self.rows(positions), positions.astype(np.uint32), self.seed, self.view)

  def rows(self, positions: np.ndarray) -> np.ndarray:
    """Which example of the source lies at each position of the stream."""
    epochs, rows = np.divmod(positions, len(self.source))
    if not self.shuffle:
      return rows
    rows_of = {e: order(self.seed, int(e), len(self.source)) for e in np.unique(epochs)}
    return np.array([rows_of[e][row] for e, row in zip(epochs, rows, strict=True)])


def assemble(source: Source, rows: np.ndarray, index: np.ndarray, seed: int, view: View) -> HostBatch:
  """The batch of these rows, seen as `view` says."""
  examples = source.take(rows)
  images = [transforms.fit(example["image"], view) for example in examples]
  labels = np.array([example["label"] for example in examples], np.int32)
  return {"image": transforms.augment(images, index, seed, view), "label": labels, "index": index}


def hold(source: Source, view: View, threads: int) -> Source:
  """The source with all its images decoded, fitted and kept in memory.

  Raises:
    UserError: they would fill the machine's memory.
  """
  need = len(source) * view.size**2 * view.channels
  have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  if need > 0.8 * have:
    raise UserError(
      f"{len(source)} images of {view.size}x{view.size}x{view.channels} need {need / 2**30:.0f} GiB, the machine has"
      f" {have / 2**30:.0f} GiB: read them from disk with --config.data.in_memory=False."
    )

  def read(rows: np.ndarray) -> list[tuple[np.ndarray, int]]:
    return [(transforms.fit(example["image"], view), example["label"]) for example in source.take(rows)]

  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    parts = pool.map(read, np.array_split(np.arange(len(source)), 1 + len(source) // 256))
    images, labels = zip(*itertools.chain.from_iterable(parts), strict=True)
  return dataclasses.replace(source, read=ArrayReader(images, np.array(labels)))
