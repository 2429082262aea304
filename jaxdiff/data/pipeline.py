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
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxdiff.data import hinted, pairs, transforms
from jaxdiff.data.ahead import Ahead
from jaxdiff.data.base import ArrayReader, Example, HostBatch, Source
from jaxdiff.data.hints import Hint
from jaxdiff.data.transforms import View
from jaxdiff.errors import UserError

logger = logging.getLogger("jaxdiff")

SETTLED = "These are the classes of the run that this one starts from: use data of the same."
TRIED = 8  # images whose hints are made before the first batch
MEASURED = 32  # images by whose size that of all is estimated


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

  Shapes: image: uint8[b,S,S,C]; label: int32[b]; index: uint32[b], the position; b = batch_size / process_count; with
    config.data.hint also hint: uint8[b,S,S,Ch].
  Raises:
    UserError: batch size and processes do not suit each other or the source, a config value is wrong, or what a hint
      needs is not there.
  """
  check_sizes(len(source), batch_size, process_count)
  check_reading(data)
  share = batch_size // process_count
  view = transforms.view(data, train=train)
  hint = hinted.asked(data, train=train)
  source = hinted.with_maps(source, data, hint)
  if hint:
    check_hint(source, view, hint, all_maps=bool(data.get("hint_maps")) and not data.in_memory)
  read = BatchReader(
    source=hold(source, view, data.threads, hint) if data.in_memory else source,
    view=view,
    hint=hint,
    seed=check_seed(seed),
    shuffle=train,
    batch_size=batch_size,
    share=slice(process_index * share, (process_index + 1) * share),
  )
  return Ahead(read, start, data.threads, data.prefetch, data.workers)


def epoch(source: Source, data: Any, batch_size: int) -> Iterator[HostBatch]:
  """One pass in the source's own order, not augmented; the last batch holds what is left."""
  read = reader(source, data)
  for first in range(0, len(source), batch_size):
    yield read(np.arange(first, min(first + batch_size, len(source))))


def examples(source: Source, data: Any, rows: np.ndarray) -> HostBatch:
  """These rows of the source as one batch, not augmented.  Shapes: rows: int[B]."""
  return reader(source, data)(rows)


def reader(source: Source, data: Any) -> Callable[[np.ndarray], HostBatch]:
  """The function rows -> batch, as `examples`, for many calls: maps in files are looked for once."""
  hint, view = hinted.asked(data, train=False), transforms.view(data, train=False)
  paired = hinted.with_maps(source, data, hint)
  return lambda rows: assemble(paired, rows, rows.astype(np.uint32), 0, view, hint)


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
    **hinted.fingerprint(source, data),
  }


def check_images(data: Any) -> None:
  """Raises UserError where no source can give what config.data asks of images, before one is looked for."""
  transforms.view(data, train=True)


def check_labels(source: Source, num_classes: int, is_settled: bool = False) -> None:
  """Every label of the source must be a class of the model, unless it knows none (0); classes without examples are told.

  `is_settled`: the model is that of a run that this one starts from, so that it cannot be given other classes.
  Raises:
    UserError: the source has more classes.
  """
  if num_classes and source.num_classes > num_classes:
    label = source.num_classes - 1
    raise UserError(
      f"the data has label {label} ({source.label_names[label]!r}), outside config.model.num_classes={num_classes}. "
      + (SETTLED if is_settled else f"Use --config.model.num_classes={source.num_classes}.")
    )
  if source.num_classes < num_classes and not is_settled:
    logger.warning(
      "the data has %d classes, config.model.num_classes is %d: what is drawn of the others is noise that nothing taught. "
      "Use --config.model.num_classes=%d.",
      source.num_classes,
      num_classes,
      source.num_classes,
    )


def check_same_classes(source: Source, other: Source, what: str) -> None:
  """Raises UserError where labels of `other`, which `what` names, are not those of the source; it may lack the last ones."""
  if source.label_names[: other.num_classes] != other.label_names:
    raise UserError(
      f"{what} has the classes {', '.join(other.label_names)}, the training data {', '.join(source.label_names)}: the same labels "
      "would stand for others."
    )


def check_sizes(size: int, batch_size: int, process_count: int) -> None:
  """The batch must divide among the processes, and no batch of one epoch may hold an example twice."""
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
      f" Use {size // process_count * process_count} or less."
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


def check_hint(source: Source, view: View, hint: Hint, all_maps: bool) -> None:
  """Makes some hints, so that what they lack is told at once; of files with maps, reads all if they are few.

  Raises UserError where none of them says anything and they are maps' or a network's; of what detectors find, warns.
  """
  if all_maps:
    pairs.check(source)
  rows = np.unique(np.linspace(0, len(source) - 1, TRIED).astype(int))
  made = assemble(source, rows, rows.astype(np.uint32), 0, view, hint)["hint"]
  if (made != made[0, 0, 0]).any():
    return
  told = f"the hints {hint.name!r} (config.data.hint) of {len(rows)} images are all empty, of one value: nothing could be learnt"
  if hint.name in source[0].get("maps", {}) or hint.arguments.get("onnx"):
    raise UserError(f"{told}. Look at what makes them, a network or the maps (config.data.hint_maps).")
  logger.warning("%s. Look at the detector's parameters (docs/hints.md).", told)


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
  hint: Hint | None
  seed: int
  shuffle: bool
  batch_size: int
  share: slice

  def __call__(self, number: int) -> HostBatch:
    positions = number * self.batch_size + np.arange(self.batch_size)[self.share]
    index = positions.astype(np.uint32)
    return assemble(self.source, self.rows(positions), index, self.seed, self.view, self.hint)

  def rows(self, positions: np.ndarray) -> np.ndarray:
    """Which example of the source lies at each position of the stream."""
    epochs, rows = np.divmod(positions, len(self.source))
    if not self.shuffle:
      return rows
    for number in np.unique(epochs):
      here = epochs == number
      rows[here] = order(self.seed, int(number), len(self.source))[rows[here]]
    return rows


def assemble(
  source: Source, rows: np.ndarray, index: np.ndarray, seed: int, view: View, hint: Hint | None = None
) -> HostBatch:
  """The batch of these rows, seen as `view` says, with the hints of what is seen."""
  examples = source.take(rows)
  images = [transforms.fit(example["image"], view) for example in examples]
  labels = np.array([example["label"] for example in examples], np.int32)
  batch = {"image": transforms.augment(images, index, seed, view), "label": labels, "index": index}
  if hint:
    batch["hint"] = hinted.of_batch(examples, batch["image"], index, seed, view, hint)
  return batch


def _fitted_pixels(source: Source, view: View) -> float:
  """The pixels of a fitted image; where a random crop follows, which leaves images their shape, the mean of some."""
  if not view.random_crop:
    return view.size**2
  few = source.take(np.linspace(0, len(source) - 1, min(len(source), MEASURED)).astype(int))
  return float(np.mean([transforms.fit(example["image"], view)[..., 0].size for example in few]))


def hold(source: Source, view: View, threads: int, hint: Hint | None = None) -> Source:
  """The source with all its images, and the maps of its hint, decoded, fitted and kept in memory.

  Raises:
    UserError: they would fill the machine's memory.
  """
  a_map = hinted.fit_map(source[0], view, hint) if hint else None
  bytes_a_pixel = view.channels + (a_map.itemsize * a_map.shape[-1] if a_map is not None else 0)
  pixels = _fitted_pixels(source, view)
  need = len(source) * pixels * bytes_a_pixel
  have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  if need > 0.8 * have:
    raise UserError(
      f"{len(source)} images of {pixels:.0f} pixels of {bytes_a_pixel} bytes need {need / 2**30:.0f} GiB, the machine has"
      f" {have / 2**30:.0f} GiB: read them from disk with --config.data.in_memory=False."
    )

  def read(rows: np.ndarray) -> list[tuple[np.ndarray, int, dict[str, np.ndarray]]]:
    return [(transforms.fit(e["image"], view), e["label"], held_map(e)) for e in source.take(rows)]

  def held_map(example: Example) -> dict[str, np.ndarray]:
    fitted = hinted.fit_map(example, view, hint)
    return {hint.name: fitted} if hint and fitted is not None else {}

  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    parts = pool.map(read, np.array_split(np.arange(len(source)), 1 + len(source) // 256))
    images, labels, maps = zip(*itertools.chain.from_iterable(parts), strict=True)
  return dataclasses.replace(source, read=ArrayReader(images, np.array(labels), maps if hint else ()))
