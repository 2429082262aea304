import pytest

from jaxdiff import goodput


class Time:
  """A clock that moves when it is told to."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now

  def pass_(self, seconds):
    self.now += seconds


def made():
  time = Time()
  return time, goodput.Clock(time)


def test_what_is_not_said_is_spent_on_steps():
  time, clock = made()
  with clock.spent("compile"):
    time.pass_(4)
  time.pass_(10)
  for _ in range(2):
    with clock.spent("checkpoint"):
      time.pass_(1)
  assert clock.seconds() == {"step": 10, "compile": 4, "checkpoint": 2}
  assert clock.numbers() == {"goodput": 10 / 16, "time/step": 10, "time/compile": 4, "time/checkpoint": 2}


def test_a_context_inside_another_counts_for_itself_alone():
  time, clock = made()
  with clock.spent("preview"):
    time.pass_(1)
    with clock.spent("checkpoint"):
      time.pass_(2)
      with clock.spent("data"):
        time.pass_(4)
    time.pass_(8)
  assert clock.seconds() == {"step": 0, "preview": 9, "checkpoint": 2, "data": 4}


def test_a_wait_counts_only_if_the_device_ran_dry_by_its_end():
  time, clock = made()
  idle = [False]
  with clock.spent("data", only_if=lambda: idle[0]):
    time.pass_(3)
  with clock.spent("data", only_if=lambda: idle[0]):
    time.pass_(5)
    idle[0] = True
  assert clock.seconds() == {"step": 3, "data": 5}


def test_what_a_context_does_not_count_goes_to_the_one_around_it():
  time, clock = made()
  with clock.spent("preview"), clock.spent("data", only_if=lambda: False):
    time.pass_(3)
    with clock.spent("checkpoint"):
      time.pass_(1)
  assert clock.seconds() == {"step": 0, "preview": 3, "checkpoint": 1}


def test_an_error_inside_is_counted_and_goes_on():
  time, clock = made()
  with pytest.raises(KeyError), clock.spent("start"):
    time.pass_(2)
    raise KeyError
  assert clock.seconds() == {"step": 0, "start": 2}


def test_the_line_names_the_largest_first():
  time, clock = made()
  for kind, seconds in {"data": 0.5, "compile": 4.5}.items():
    with clock.spent(kind):
      time.pass_(seconds)
  time.pass_(15)
  assert clock.line() == "Goodput 75.0% of 20.0 s: step 15.0 s, compile 4.5 s, data 0.5 s."
  assert goodput.Clock(time).line() == "Goodput 0.0% of 0.0 s: step 0.0 s."
