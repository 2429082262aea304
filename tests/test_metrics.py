from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxdiff import metrics


def test_means_over_what_each_step_reported():
  window = metrics.Window()
  window.push(1, {"loss": jnp.float32(1.0)})
  window.push(2, {"loss": jnp.float32(3.0), "accuracy": jnp.float32(0.5)})
  row = window.collect()
  assert row == metrics.Row(2, {"loss": 2.0, "accuracy": 0.5}, ())
  assert window.collect() is None


def test_until_leaves_later_steps_for_the_next_row():
  window = metrics.Window()
  for step in range(1, 6):
    window.push(step, {"loss": jnp.float32(step)})
  assert window.collect(until=0) is None
  assert window.collect(until=4) == metrics.Row(4, {"loss": 2.5}, ())
  assert window.collect(until=4) is None
  assert window.collect() == metrics.Row(5, {"loss": 5.0}, ())


def test_one_fetch_for_an_interval_and_none_before():
  fetches = []
  window = metrics.Window(fetch=lambda rows: fetches.append(len(rows)) or jax.device_get(rows))
  for step in range(10):
    window.push(step, {"loss": jnp.float32(0), "grad_norm": jnp.float32(0)})
  assert fetches == []
  window.collect()
  assert fetches == [10]


def test_all_is_over_when_the_newest_step_is():
  window = metrics.Window()
  assert window.is_over()
  window.push(1, {"loss": jax.block_until_ready(jnp.float32(1)), "learning_rate": 0.1})
  assert window.is_over()
  slow = jax.jit(lambda a: jax.lax.fori_loop(0, 300, lambda i, a: a @ a / 300, a)[0, 0])(jnp.ones((300, 300)))
  window.push(2, {"loss": slow})
  assert not window.is_over()  # it does not wait
  window.collect()
  assert window.is_over()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_bad_steps_are_named_and_are_in_no_mean(name, bad):
  window = metrics.Window()
  for step in range(1, 6):
    good = {"loss": jnp.float32(step), "grad_norm": jnp.float32(1), "other": jnp.float32("nan")}
    window.push(step, good | ({name: jnp.float32(bad)} if step in (3, 5) else {}))
  row = window.collect()
  assert row.step == 5
  assert row.bad_steps == (3, 5)
  assert row.means["loss"] == pytest.approx((1 + 2 + 4) / 3)


def test_what_the_device_has_skipped_is_bad_and_no_mean():
  window = metrics.Window()
  for step in range(1, 4):
    window.push(step, {"loss": jnp.float32(step), "skipped": jnp.float32(step == 2)})
  assert window.collect() == metrics.Row(3, {"loss": 2.0}, (2,))
  window.push(4, {"loss": jnp.float32(7), "skipped": jnp.float32(1)})
  assert window.collect() == metrics.Row(4, {"loss": 7.0}, (4,), True)  # nothing else can be shown


def test_bad_steps_in_a_row_are_counted_over_rows():
  bad = metrics.BadSteps(allowed=2, total=10)
  assert bad.add([3, 4, 6]) is None
  assert bad.add([]) is None and bad.add([7]) is None
  assert bad.total == 14
  assert bad.includes(7) and not bad.includes(6) and not bad.includes(8)
  assert bad.add([8, 9]) == 6
  assert metrics.BadSteps(allowed=0).add([5]) == 5


def test_stopwatch_leaves_out_pauses(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
  watch = metrics.Stopwatch(step=10)
  now[0] += 4
  with watch.paused():
    now[0] += 1000
  now[0] += 1
  assert watch.rate(20) == pytest.approx(2.0)
  now[0] += 2
  assert watch.rate(30) == pytest.approx(5.0)
