"""benchmarks.growth at a tiny size. No times are asserted."""

import json

import pytest

from benchmarks import growth


@pytest.mark.slow
def test_its_curves_and_their_plot(tmp_path):
  sizes = ["--tokens", "4", "--batches", "1", "--depths", "2", "--width", "64", "--depth", "1"]
  assert growth.main(["--quick", "--out", str(tmp_path), *sizes]) == 0
  found = json.loads((tmp_path / "growth.json").read_text())
  assert found["batch"]["1"]["flops"] == found["tokens"]["4"]["flops"] > 1e5
  one, _, recomputed, shared, _ = (found["depth"][name]["2"]["bytes"] for name in growth.PLANS)
  assert 1e5 < recomputed < one and shared < one
  assert (tmp_path / "growth.png").stat().st_size > 0
