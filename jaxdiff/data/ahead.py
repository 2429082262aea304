"""Reading ahead: batches made by Grain in threads or worker processes, and placed on the device early."""

from __future__ import annotations

import collections
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import numpy as np

from jaxdiff.data.base import HostBatch

Placed = TypeVar("Placed")


def device_prefetch(
  batches: Iterator[HostBatch], place: Callable[[HostBatch], Placed], depth: int = 2
) -> Generator[Placed, None, None]:
  """The batches, each handed to `place` (a transfer to the device, which returns at once) `depth` batches early."""
  queue: collections.deque[Placed] = collections.deque()
  try:
    for batch in batches:
      queue.append(place(batch))
      if len(queue) > depth:
        yield queue.popleft()
    yield from queue
  finally:
    if hasattr(batches, "close"):
      batches.close()


class Ahead(Iterator[HostBatch]):
  """The batches read(start), read(start + 1), ..., made ahead in threads or worker processes until it is closed."""

  def __init__(self, read: Callable[[int], HostBatch], start: int, threads: int, prefetch: int, workers: int):
    import grain

    batches = grain.MapDataset.range(start, sys.maxsize).map(read)
    ahead = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch))
    if workers:
      _parse_flags()
      options = grain.multiprocessing.MultiprocessingOptions(num_workers=workers)
      ahead = ahead.mp_prefetch(options, worker_init_fn=_live_as_long_as_parent)
    self._batches = [iter(ahead)]
    self._shared = workers > 0
    # Runs at the latest before the interpreter takes its modules down, where Grain's own finalizers fail.
    self._close = weakref.finalize(self, _close_all, self._batches)

  def __next__(self) -> HostBatch:
    if not self._batches:
      raise StopIteration
    batch = next(self._batches[0])
    # A worker's arrays lie in shared memory, which lives as long as the batch: hand out a copy instead.
    return {name: np.array(value) for name, value in batch.items()} if self._shared else batch

  def close(self) -> None:
    """Ends the threads and processes; the stream then has no further batch."""
    self._close()


def _close_all(iterators: list[Any]) -> None:
  while iterators:
    iterators.pop().close()


def _live_as_long_as_parent(index: int, count: int) -> None:
  """Makes a worker process end when, and only when, the process that started it closes it or is gone.

  Ctrl-C and a cluster's SIGTERM reach the workers too, but the run still needs batches until it has saved.
  """
  del index, count
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()
    os._exit(1)


def _parse_flags() -> None:
  """Grain's worker processes read absl flags, which outside an absl program nobody has parsed."""
  from absl import flags

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
