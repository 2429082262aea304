"""Control branches: copies of their base, silent at first, and what reaches the base through them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.models import controlnet
from tests.models import small


def with_branch(base, base_params, branch, params, inputs):
  """The base's output, corrected by the branch."""

  @small.jit
  def out(base_params, params, inputs):
    residuals = branch.apply({"params": params}, *inputs)
    return base.apply({"params": base_params}, *inputs, residuals=residuals)

  return out(base_params, params, inputs)


@pytest.mark.parametrize("name", small.BASES)
def test_a_fresh_branch_changes_no_bit(name):
  base, base_params, branch, params, inputs = small.branch(name)
  steered = with_branch(base, base_params, branch, params, inputs)
  alone = small.apply(base, base_params, inputs)
  assert np.asarray(alone).any()
  assert np.array_equal(steered, alone)


@pytest.mark.parametrize("name", small.BASES)
def test_a_trained_branch_makes_the_output_depend_on_the_hint(name):
  base, base_params, branch, params, (z, t, cond) = small.branch(name)
  hints = (cond.hint, jnp.flip(cond.hint, axis=2))
  there, elsewhere = (
    with_branch(base, base_params, branch, small.woken(params), (z, t, cond.replace(hint=hint)))
    for hint in hints
  )
  assert float(jnp.abs(there - elsewhere).max()) > 1e-3


@pytest.mark.parametrize("name", small.BASES)
def test_the_residuals_are_what_the_base_takes(name):
  _, _, branch, params, inputs = small.branch(name)
  residuals = jax.tree.leaves(jax.eval_shape(branch.apply, {"params": params}, *inputs))
  zeros = [name for name in params if name.startswith("zero_")]
  assert len(residuals) == len(zeros) == (small.BLOCKS if name == "dit" else 2 * 1 + 2 + 1)
  assert controlnet.num_controls(params) == len(zeros)


@pytest.mark.parametrize("name", small.BASES)
def test_each_layer_that_starts_at_zero_has_a_norm(name):
  """So that all of a fresh branch's are 0, and all of a moved one's are not."""
  *_, params, _ = small.branch(name)
  fresh, moved = controlnet.zero_norms(params), controlnet.zero_norms(small.woken(params))
  assert set(fresh) == {part.removeprefix("zero_") for part in params if part.startswith("zero_")} | {"hint"}
  assert not any(fresh.values()) and all(moved.values())


@pytest.mark.parametrize("name", small.BASES)
def test_all_that_the_base_has_is_copied_and_the_rest_starts_silent(name):
  _, base_params, _, params, _ = small.branch(name)
  for part, leaves in params.items():
    if part in base_params:
      assert jax.tree.all(jax.tree.map(np.array_equal, leaves, base_params[part])), part
    elif part.startswith("zero_") or name == "dit":
      assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(leaves)), part
  assert not np.asarray(params["hint"]["out"]["kernel"] if name == "unet" else params["hint"]["kernel"]).any()
  assert {"embedding"} < set(params) & set(base_params)


@pytest.mark.parametrize("name", small.BASES)
def test_a_fresh_branch_can_learn(name):
  """Zero times something else than zero: the zero layers have a gradient, so that the next step has all of them."""
  base, base_params, branch, params, inputs = small.branch(name)

  @small.jit
  @jax.grad
  def slope(params):
    residuals = branch.apply({"params": params}, *inputs)
    return jnp.square(base.apply({"params": base_params}, *inputs, residuals=residuals)).mean()

  slopes = slope(params)
  for part in params:
    moves = any(np.asarray(leaf).any() for leaf in jax.tree.leaves(slopes[part]))
    assert moves == part.startswith("zero_"), part
  # Once these have moved, the hint's own layers learn too.
  assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(slope(small.woken(params))["hint"]))


def test_a_base_of_stacked_blocks_is_copied_block_by_block():
  base, base_params, branch, params, inputs = small.branch("dit", scan=True)
  assert "blocks" in base_params
  for i in range(small.BLOCKS):
    expected = jax.tree.map(lambda stacked, i=i: stacked[i], base_params["blocks"])
    assert jax.tree.all(jax.tree.map(np.array_equal, params[f"block_{i}"], expected))
  steered = with_branch(base, base_params, branch, small.woken(params), inputs)
  assert not np.allclose(steered, small.apply(base, base_params, inputs))


def test_the_last_control_acts_after_the_last_copied_block():
  """The DiT's residual i is added to the output of block i: removing the blocks after it by hand gives the same stream."""
  base, base_params, _, _, inputs = small.branch("dit")
  residual = 0.1 * jax.random.normal(jax.random.key(5), (4, 16, 16))
  zero = jnp.zeros_like(residual)
  first = small.jit(lambda r: base.apply({"params": base_params}, *inputs, residuals=r))((residual,))
  again = small.jit(lambda r: base.apply({"params": base_params}, *inputs, residuals=r))(
    (residual, zero, zero)
  )
  second = small.jit(lambda r: base.apply({"params": base_params}, *inputs, residuals=r))((zero, residual))
  assert np.array_equal(first, again)
  assert not np.allclose(first, second)


@pytest.mark.parametrize("name", small.BASES)
def test_a_larger_hint_is_brought_to_the_models_size(name):
  _, _, branch, _, (z, t, cond) = small.branch(name)
  large = cond.replace(hint=jnp.ones((*(s * 4 if i else s for i, s in enumerate(z.shape[:3])), 3)))
  params = small.jit(branch.init)(jax.random.key(3), z, t, large)["params"]
  same, larger = (
    jax.tree.map(lambda a: a.shape, jax.eval_shape(branch.apply, {"params": p}, z, t, c))
    for p, c in ((params, large), (small.jit(branch.init)(jax.random.key(3), z, t, cond)["params"], cond))
  )
  assert same == larger


@pytest.mark.parametrize("name", small.BASES)
@pytest.mark.parametrize("size", [12, 4])
def test_a_hint_of_another_size_is_refused(name, size):
  _, _, branch, params, (z, t, cond) = small.branch(name)
  with pytest.raises(UserError, match=f"the hint is {size}x{size} pixels; it must be 8x8"):
    jax.eval_shape(branch.apply, {"params": params}, z, t, cond.replace(hint=jnp.ones((4, size, size, 1))))


@pytest.mark.parametrize("name", small.BASES)
def test_without_a_hint_it_says_so(name):
  _, _, branch, params, (z, t, cond) = small.branch(name)
  with pytest.raises(UserError, match="needs a hint"):
    jax.eval_shape(branch.apply, {"params": params}, z, t, cond.replace(hint=None))
