"""The networks that benchmarks.run measures against are the same networks: same parameters, same output."""

from __future__ import annotations

import numpy as np
import pytest

from jaxdiff.models import dit
from tests.models import small

torch = pytest.importorskip("torch")


def compare(rival, load, config, size, **changes):
  module, params, (z, t, cond) = small.make(config, size, **changes)
  load(rival, params)
  numbers = sum(p.size for p in small.jax.tree.leaves(params))
  assert numbers == sum(p.numel() for p in rival.parameters())
  expected = small.apply(module, params, (z, t, cond))
  with torch.no_grad():
    result = rival(
      *(torch.from_numpy(np.array(a)) for a in (z, t)), torch.from_numpy(np.array(cond.label)).long()
    )
  np.testing.assert_allclose(result.numpy(), expected, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


def test_dit():
  from benchmarks.rivals import torch_dit

  settings = {key: value for key, value in small.DIT.items() if key != "name"}
  rival = torch_dit.DiT(**settings, position=dit.position_table(4, 4, 16))
  compare(rival, torch_dit.load, small.DIT, 8)


@pytest.mark.parametrize("changes", [{"scale_shift": True, "resblock_updown": True}, {"scale_shift": False}])
def test_unet(changes):
  from benchmarks.rivals import torch_unet

  config = small.UNET | {"learn_sigma": True, "resblock_updown": False} | changes
  settings = {key: value for key, value in config.items() if key != "name"}
  compare(torch_unet.UNet(image_size=8, **settings), torch_unet.load, config, 8)
