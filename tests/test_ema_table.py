"""The benchmark that compares averages of the parameters: what it carries along is what a run's own optimizer averages."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from benchmarks import ema
from jaxdiff import optim, parallel, tasks
from tests import small


@pytest.mark.slow
def test_carried_averages_are_those_that_a_run_keeps():
  c = small.config("dit", "optim.ema_decay=0.9", "optim.ema_start_step=2")
  kept = [ema.Average(0.9, 2), ema.Average(0.5, 3)]
  tx = optax.chain(optim.make_optimizer(c.optim, 4), *map(ema.transform, kept))
  task, strategy = tasks.make(c, tx), parallel.mesh(c.parallel, 8)
  seen = {
    step: jax.device_get((state.params, [own.ema_params for own in state.opt_state[1:]], state.opt_state[0]))
    for step, state in ema.states(c, task, tx, strategy, [3, 4])
  }
  (third, (_, copy), _), (last, (same, mean), own) = seen[3], seen[4]
  jax.tree.map(np.testing.assert_array_equal, same, optax.tree.get(own, "ema_params"))
  jax.tree.map(np.testing.assert_array_equal, copy, third)
  half = jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, third, last)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), mean, half)
  assert any(np.abs(a - b).max() > 1e-6 for a, b in zip(*map(jax.tree.leaves, (third, last)), strict=True))


def test_a_copy_is_told_from_an_average():
  point = ema.Point(1.234, 0.5)
  found = {None: [point, point], ema.Average(0.9, 500): [point._replace(is_copy=True), point]}
  last = ema.table(found, [300, 1800]).splitlines()[-1]
  assert last == "| 0.9 from 500 | (1.23, 50.0%) | 1.23, 50.0% |"
