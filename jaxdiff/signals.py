"""Ctrl-C and SIGTERM as a request to stop soon, with everything saved; of several processes all stop at the same step."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

from jaxdiff import distributed

logger = logging.getLogger("jaxdiff")


class Stopped(BaseException):
  """Raised where a signal may cut short what is done: see StopRequest.check, StopRequest.interrupts and sigterm_stops."""


class StopRequest:
  """Whether a signal has asked the run to stop, and which."""

  signal: signal.Signals | None = None
  _may_interrupt = False

  def __bool__(self) -> bool:
    return self.signal is not None

  def reached(self) -> bool:
    """Whether to stop here.  Of several processes each has to ask equally often."""
    return bool(self)

  def check(self) -> None:
    """Raises Stopped where reached() says to stop here."""
    if self.reached():
      raise Stopped

  @contextlib.contextmanager
  def interrupts(self) -> Iterator[None]:
    """What is done in this context can be done again: a request, earlier ones too, raises Stopped in it."""
    self._may_interrupt = True
    try:
      if self:
        raise Stopped
      yield
    finally:
      self._may_interrupt = False

  def _take(self, number: int) -> None:
    if self and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.signal = signal.Signals(number)
    logger.warning("%s: stopping soon, with everything saved. Ctrl-C stops at once.", self.signal.name)
    if self._may_interrupt:
      self._may_interrupt = False  # once: what follows is the way out
      raise Stopped


class JointStopRequest(StopRequest):
  """The request of several processes, whichever of them the signal has come to.

  JAX's runtime takes SIGTERM, for which it must have the only handler, and tells all processes where to stop: where the one
  that has asked most often asks next.  So the request is set by asking; in between nothing is cut short.
  """

  _asked = 0
  _is_passed_on = False

  def reached(self) -> bool:
    # Not the number of the step: a signal that comes before the first one of a resumed run would wait for step 1.
    self._asked += 1
    if not self and multihost_utils.reached_preemption_sync_point(self._asked):
      self.signal = signal.SIGTERM
      logger.info("SIGTERM: all processes stop here, with everything saved.")
    return bool(self)

  @contextlib.contextmanager
  def interrupts(self) -> Iterator[None]:
    if self:
      raise Stopped
    yield

  def _take(self, number: int) -> None:
    """Ctrl-C: passed on as SIGTERM; a second one stops at once."""
    if self._is_passed_on:
      raise KeyboardInterrupt
    self._is_passed_on = True
    logger.warning("SIGINT: stopping soon, with everything saved. Ctrl-C stops at once.")
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
  """Within this context the first SIGINT or SIGTERM sets the request; a second SIGINT stops at once.

  The handlers that were there before are put back at the end.
  """
  if jax.process_count() > 1:
    joint = JointStopRequest()
    with _handling(joint, signal.SIGINT):
      yield joint
    return
  request = StopRequest()
  with _handling(request, signal.SIGINT, signal.SIGTERM):
    yield request


@contextlib.contextmanager
def sigterm_stops() -> Iterator[StopRequest]:
  """Within this context SIGTERM raises Stopped, as Ctrl-C raises KeyboardInterrupt: files are left whole.

  In several processes it raises nothing by itself: they have to ask the request, as that of stop_request.
  """
  if distributed.is_several():
    with stop_request() as joint:
      yield joint
    return
  request = StopRequest()
  with _handling(request, signal.SIGTERM), request.interrupts():
    yield request


@contextlib.contextmanager
def _handling(request: StopRequest, *numbers: signal.Signals) -> Iterator[None]:
  def handle(number: int, frame: FrameType | None) -> None:
    del frame
    request._take(number)

  before = {number: signal.signal(number, handle) for number in numbers}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
