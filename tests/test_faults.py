"""The benchmark that kills a run at random moments."""

import pytest

from benchmarks import faults


@pytest.mark.slow
def test_two_kills_cost_steps_but_not_a_bit_of_the_result(tmp_path):
  found = faults.run(tmp_path, kills=2, steps=40, save_every=5, seed=1)
  assert found.is_equal, faults.table(found)
  first, second = found.kills
  assert first.found == 0 and second.found == first.left <= second.left


def test_the_table_tells_where_each_start_went_on():
  found = faults.Faults([faults.Kill(3.25, 0, 10, 1), faults.Kill(9.0, 10, 25, 0)], 5.0, 12.0, True)
  lines = faults.table(found).splitlines()
  assert lines[2:4] == ["| 1 | 3.2 s | 0 | 10 | 1 |", "| 2 | 9.0 s | 10 | 25 | 0 |"]
  assert (
    lines[-1]
    == "Undisturbed: 12.0 s, 5.0 s of them to the first checkpoint. The two states are the same to the bit."
  )
