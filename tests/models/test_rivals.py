"""The networks that benchmarks.run measures against are the same networks: same parameters, same output."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.diffusion import distillation, schedules
from jaxdiff.models import dit
from jaxdiff.types import Cond, Prediction
from tests.models import small

torch = pytest.importorskip("torch")


def tensor(a):
  return torch.from_numpy(np.array(a))


def load_all(rival, load, params):
  load(rival, params)
  numbers = sum(p.size for p in small.jax.tree.leaves(params))
  assert numbers == sum(p.numel() for p in rival.parameters())


def near(result, expected):
  np.testing.assert_allclose(result.numpy(), expected, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


def compare(rival, load, config, size, **changes):
  module, params, (z, t, cond) = small.make(config, size, **changes)
  load_all(rival, load, params)
  with torch.no_grad():
    result = rival(tensor(z), tensor(t), tensor(cond.label).long())
  near(result, small.apply(module, params, (z, t, cond)))


def stream(**changes):
  settings = {key: value for key, value in small.DIT.items() if key not in ("name", "learn_sigma")} | changes
  return settings | {"position": dit.position_table(4, 4, 16)}


def test_dit():
  from benchmarks.rivals import torch_dit

  compare(torch_dit.DiT(**stream(), learn_sigma=small.DIT["learn_sigma"]), torch_dit.load, small.DIT, 8)


def test_half_precision_is_kept_between_layers():
  """Under autocast as the suite trains: norms and positions must not bring float32 back into the stream, as ours has none."""
  from benchmarks.rivals import torch_dit, torch_unet

  seen = []
  with torch.autocast("cpu", torch.bfloat16):
    x, c = torch.zeros(1, 16, 16, dtype=torch.bfloat16), torch.zeros(1, 16)
    seen += [
      torch_dit.Block(16, 2, 4.0)(x, c),
      torch_dit.DiT(**stream(), learn_sigma=False).begin(
        torch.zeros(1, 8, 8, small.DIT["channels"]), torch.zeros(1), torch.zeros(1, dtype=torch.long)
      )[0],
    ]
    image = torch.zeros(1, 8, 4, 4, dtype=torch.bfloat16)
    seen += [torch_unet.group_norm(8)(image), torch_unet.ResBlock(8, 8, 16, True)(image, c)]
  assert [h.dtype for h in seen] == 4 * [torch.bfloat16]


def test_a_branch_and_the_dit_that_it_steers():
  from benchmarks.rivals import torch_dit

  module, params, branch, own, (z, t, cond) = small.branch("dit")
  own = small.woken(own)
  base = torch_dit.DiT(**stream(), learn_sigma=small.DIT["learn_sigma"])
  control = torch_dit.Control(**stream(depth=small.BLOCKS), hint_channels=1)
  load_all(base, torch_dit.load, params)
  load_all(control, torch_dit.load_control, own)
  asked = tensor(z), tensor(t), tensor(cond.label).long()
  with torch.no_grad():
    controls = control(*asked, tensor(cond.hint))
    steered = base(*asked, controls)
  expected = small.apply(branch, own, (z, t, cond))
  for theirs, ours in zip(controls, expected, strict=True):
    near(theirs, ours)
  near(steered, small.apply(module, params, (z, t, cond), residuals=expected))


def test_what_a_student_is_taught():
  """The rival's lesson is distillation.target, for a teacher that predicts some v of z and t; the last step of the sampler too."""
  from benchmarks.suite import rivals

  random = np.random.default_rng(0)
  z = random.normal(size=(5, 4, 4, 2)).astype(np.float32)
  i, label = np.array([0, 1, 40, 100, rivals.NUM_STEPS - 1]), np.zeros(5, np.int64)
  schedule = schedules.cosine()

  def teacher(z, t, cond):
    alpha, sigma = schedules.alpha_sigma(schedule, t, z.ndim)
    return Prediction(x=alpha * z - sigma * jnp.sin(3 * z + t[:, None, None, None]), eps=z)

  expected = distillation.target(schedule, teacher, z, jnp.asarray(i), rivals.NUM_STEPS, Cond(label))
  result = rivals.target(
    lambda z, t, label: torch.sin(3 * z + t[:, None, None, None] / 999), tensor(z), tensor(i), tensor(label)
  )
  np.testing.assert_allclose(result.numpy(), expected, atol=2e-4)


@pytest.mark.parametrize("changes", [{"scale_shift": True, "resblock_updown": True}, {"scale_shift": False}])
def test_unet(changes):
  from benchmarks.rivals import torch_unet

  config = small.UNET | {"learn_sigma": True, "resblock_updown": False} | changes
  settings = {key: value for key, value in config.items() if key != "name"}
  compare(torch_unet.UNet(image_size=8, **settings), torch_unet.load, config, 8)
