"""Ctrl-C and SIGTERM as a request to stop after the current step, with everything saved."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator
from types import FrameType

logger = logging.getLogger("jaxdiff")


class StopRequest:
  """Whether a signal has asked the run to stop, and which."""

  signal: signal.Signals | None = None

  def __bool__(self) -> bool:
    return self.signal is not None


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
  """Within this context the first SIGINT or SIGTERM sets the request; a second SIGINT stops at once.

  The handlers that were there before are put back at the end.
  """
  request = StopRequest()

  def handle(number: int, frame: FrameType | None) -> None:
    del frame
    if request and number == signal.SIGINT:
      raise KeyboardInterrupt
    request.signal = signal.Signals(number)
    logger.warning("%s: stopping after this step and saving. Ctrl-C stops at once.", request.signal.name)

  before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield request
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
