"""Timing in turn."""

from benchmarks import turns


def test_ways_take_turns_and_the_first_round_does_not_count():
  called = []
  ways = {name: lambda name=name: called.append(name) for name in "ab"}
  seconds = turns.timed(ways, rounds=2)
  assert "".join(called) == "ababab"
  assert {name: len(own) for name, own in seconds.items()} == {"a": 2, "b": 2}
  assert all((own >= 0).all() for own in seconds.values())
