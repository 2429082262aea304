import signal

import pytest

from jaxdiff import main, signals


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
