"""What benchmarks.products times is the same work in both frameworks."""

import numpy as np
import pytest

from benchmarks import products

torch = pytest.importorskip("torch", reason="pip install -r requirements-torch.txt")


@pytest.fixture(autouse=True)
def _gradients():
  """`in_torch` turns gradients off, as its process does nothing else."""
  yield
  torch.set_grad_enabled(True)


@pytest.mark.parametrize("layer", [products.Layer((6,), 4, 5), products.Layer((2, 4, 4), 3, 5)])
def test_both_frameworks_compute_the_same(layer):
  ours, theirs = products.in_jax(layer), products.in_torch(layer)
  assert tuple(ours) == tuple(theirs) == products.PASSES
  for name, run in ours.items():
    wanted = run()
    found = theirs[name]().numpy()
    if layer.taps:  # [B,C,H,W], and of weights [O,I,3,3]
      found = found.transpose(2, 3, 1, 0) if name == "to the weights" else found.transpose(0, 2, 3, 1)
    elif name == "to the weights":
      found = found.T
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_operations_are_counted():
  assert products.gflop(products.Layer((6,), 4, 5)) == pytest.approx(2e-9 * 6 * 4 * 5)
  assert products.gflop(products.Layer((2, 4, 4), 3, 5)) == pytest.approx(2e-9 * 2 * 4 * 4 * 9 * 3 * 5)


def test_a_row_for_each_shape():
  rows = len(products.LAYERS)
  found = {name: np.full((rows, 3), rate) for name, rate in (("jax", 1.0), ("torch", 2.0))}
  lines = products.table(found).splitlines()
  assert len(lines) == rows + 2
  assert lines[2] == "| product, 1024, 384 to 1152 | 1, 2 | 1, 2 | 1, 2 |"
  assert lines[-1] == "| convolution 3x3, 8x8x8, 256 to 128 | 1, 2 | 1, 2 | 1, 2 |"
