import signal

import pytest

from jaxdiff import main, signals


@pytest.fixture
def of_two(monkeypatch):
  """This process as one of two: the runtime's word comes at the third question."""
  asked = []
  monkeypatch.setattr(signals.jax, "process_count", lambda: 2)
  runtime = lambda number: asked.append(number) or number == 3
  monkeypatch.setattr(signals.multihost_utils, "reached_preemption_sync_point", runtime)
  return asked


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_handlers_are_put_back(number):
  before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
  with signals.stop_request() as stop:
    assert not stop
    signal.raise_signal(number)
    assert stop and stop.signal == number
  assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_ctrl_c_interrupts_and_a_second_sigterm_does_not():
  with signals.stop_request():
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)


def test_an_interrupt_ends_the_program_with_status_130(monkeypatch, capsys):
  def interrupted(config, workdir, flags):
    raise KeyboardInterrupt

  monkeypatch.setitem(main.MODES, "train", interrupted)
  assert main.main(["--config", "configs/dit_cfg.py"]) == 130
  assert "jaxdiff: stopped" in capsys.readouterr().err


def test_what_can_be_done_again_is_cut_short_once():
  with signals.stop_request() as stop:
    with pytest.raises(signals.Stopped), stop.interrupts():
      signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)  # the way out is not
    with pytest.raises(signals.Stopped), stop.interrupts():
      raise AssertionError("a request that came before counts")
    assert stop.signal == signal.SIGTERM


def test_a_stop_passes_through_except_exception():
  assert not issubclass(signals.Stopped, Exception)


def test_sigterm_stops_a_mode_and_its_handler_is_put_back():
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(signals.Stopped), signals.sigterm_stops():
    signal.raise_signal(signal.SIGTERM)
  assert signal.getsignal(signal.SIGTERM) == before


def test_several_processes_stop_a_mode_where_they_ask(of_two, monkeypatch):
  monkeypatch.setattr(signals.jax.distributed, "is_initialized", lambda: True)
  before = signal.getsignal(signal.SIGTERM)
  with signals.sigterm_stops() as stop:
    assert signal.getsignal(signal.SIGTERM) == before, "a handler of ours would make the runtime deaf"
    stop.check()
    stop.check()
    with pytest.raises(signals.Stopped):
      stop.check()
  assert of_two == [1, 2, 3]


def test_several_processes_stop_where_the_runtime_says_and_it_keeps_sigterm(of_two):
  before = signal.getsignal(signal.SIGTERM)
  with signals.stop_request() as stop:
    assert signal.getsignal(signal.SIGTERM) == before, "a handler of ours would make the runtime deaf"
    assert [stop.reached() for _ in range(5)] == [False, False, True, True, True]
    assert of_two == [1, 2, 3], "each question once, counted from 1; none after the answer"
    assert stop.signal == signal.SIGTERM
    with pytest.raises(signals.Stopped), stop.interrupts():
      raise AssertionError("what can be done again is left to the next start")


def test_asking_is_what_sets_the_request_of_several(of_two):
  with signals.stop_request() as stop:
    assert not stop and not of_two
    with stop.interrupts():
      pass


def test_ctrl_c_in_one_of_several_is_passed_on_as_sigterm(of_two, monkeypatch):
  sent = []
  monkeypatch.setattr(signals.os, "kill", lambda process, number: sent.append(number))
  with signals.stop_request() as stop:
    signal.raise_signal(signal.SIGINT)
    assert sent == [signal.SIGTERM] and not stop
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
