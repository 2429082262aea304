"""The watchdog's judgement, on a clock that moves when it is told to, and one process that hangs."""

import subprocess
import sys
import threading

import pytest

from jaxdiff import watchdog
from jaxdiff.watchdog import BLOCK, MEASURED, UNMEASURED_SECONDS


class Run:
  """A loop under a watchdog's eye: time passes in steps of `seconds`, with a check after each quarter of a second."""

  def __init__(self, factor=10.0, least=2.0):
    self.now, self.wrong = 0.0, None
    self.dog = watchdog.Watchdog(factor, least, lambda: self.now)

  def passes(self, seconds):
    for _ in range(round(seconds / 0.25)):
      self.now += 0.25
      self.wrong = self.wrong or self.dog.check(0.25)

  def steps(self, count, seconds):
    for _ in range(count):
      self.passes(seconds)
      self.dog.beat()


def measured(seconds, **settings):
  run = Run(**settings)
  run.steps((1 + MEASURED) * BLOCK, seconds)
  return run


def test_the_limit_is_a_multiple_of_the_median_of_the_runs_own_steps():
  run = measured(0.5)
  assert run.dog.limit() == 5.0
  run.steps(2 * BLOCK, 4.0)  # slow ones, fewer than half
  assert run.dog.limit() == 5.0
  run.passes(5.0)
  assert run.wrong is None
  run.passes(0.5)
  assert "a step has taken 5 s; the median is 0.5 s, the limit 5 s" in run.wrong and "74" in run.wrong


def test_the_limit_is_never_below_the_least():
  run = measured(0.25, factor=2.0, least=3.0)
  run.passes(3.0)
  assert run.wrong is None
  run.passes(0.5)
  assert run.wrong


def test_before_enough_steps_are_measured_there_is_half_an_hour():
  run = Run()
  run.steps(MEASURED * BLOCK + BLOCK - 1, 0.5)
  run.passes(UNMEASURED_SECONDS)
  assert run.wrong is None
  run.passes(0.5)
  assert "no step was measured yet" in run.wrong
  assert Run(least=2 * UNMEASURED_SECONDS).dog.limit() == 2 * UNMEASURED_SECONDS


def test_steps_that_are_only_dispatched_do_not_count():
  """After a pause the queue is empty: as many steps as it holds are dispatched without a wait."""
  run = measured(0.5)
  for _ in range(5 * MEASURED):
    with run.dog.paused():
      run.passes(1.0)
    run.steps(BLOCK, 0.0)
    run.steps(BLOCK, 0.5)
  assert run.dog.median() == 0.5


def test_a_pause_may_take_as_long_as_it_likes():
  run = measured(0.5)
  run.passes(4.0)
  with run.dog.paused():
    run.passes(10_000.0)
    with run.dog.paused():
      run.passes(10_000.0)
    run.passes(10_000.0)
  run.passes(4.0)
  assert run.wrong is None
  run.passes(2.0)
  assert run.wrong


def test_a_pause_ends_with_an_error_too():
  run = measured(0.5)
  with pytest.raises(KeyError), run.dog.paused():
    raise KeyError
  run.passes(6.0)
  assert run.wrong


@pytest.mark.parametrize("settings", [{"factor": 0.0}, {"least": 0.0}])
def test_zero_watches_nothing(settings):
  dog = Run(**settings).dog
  assert not dog.is_on
  before = threading.active_count()
  with watchdog.watching(dog):
    assert threading.active_count() == before


def test_the_thread_calls_once_and_ends_with_the_context():
  called = threading.Event()
  dog = watchdog.Watchdog(1.0, 0.01)
  dog.limit = lambda: 0.01
  with watchdog.watching(dog, lambda wrong: called.set()):
    assert called.wait(30)
  assert not any(thread.name == "watchdog" for thread in threading.enumerate())


@pytest.mark.slow
def test_a_process_that_hangs_tells_where_and_ends_with_its_status():
  hanging = """
import threading, time
from jaxdiff import watchdog
watchdog.UNMEASURED_SECONDS = 0.2

def wait_for_a_batch_that_never_comes():
  threading.Event().wait()

with watchdog.watching(watchdog.Watchdog(1.0, 0.1)):
  wait_for_a_batch_that_never_comes()
"""
  command = [sys.executable, "-c", hanging]
  ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
  assert ended.returncode == watchdog.STATUS == 74
  assert "jaxdiff: a step has taken" in ended.stderr
  assert "in wait_for_a_batch_that_never_comes" in ended.stderr


def test_it_looks_often_though_the_first_limit_is_long():
  dog = watchdog.Watchdog(factor=20, least=10)
  assert dog.limit() == UNMEASURED_SECONDS and dog.interval() == 0.5
