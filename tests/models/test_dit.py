"""The Diffusion Transformer: its size, its start, its options, and what XLA makes of it."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.models import dit, layers
from jaxdiff.types import Cond
from tests.models import small

COUNTS = {  # DESIGN.md: patch 8, 4, 2; 32x32x4, 1000 classes and the null class, learned sigma
  "S": (33_142_016, 32_920_448, 32_865_056),
  "B": (130_869_248, 130_426_496, 130_315_808),
  "L": (458_578_432, 457_988_224, 457_840_672),
  "XL": (675_664_640, 675_000_704, 674_834_720),
}


@pytest.mark.parametrize("size", COUNTS)
def test_parameter_counts_are_the_papers(size):
  settings = {"name": "dit", "num_classes": 1000, "channels": 4, "learn_sigma": True} | dit.SIZES[size]
  assert tuple(small.count(settings | {"patch_size": p}, 32) for p in (8, 4, 2)) == COUNTS[size]


def test_a_fresh_network_gives_exactly_zero():
  module, params, arguments = small.fresh(small.DIT)
  out = small.apply(module, params, arguments)
  assert out.shape == (4, 8, 8, 4)
  assert out.dtype == jnp.float32
  assert not out.any()


def test_a_fresh_block_is_the_identity():
  x, c = jax.random.normal(jax.random.key(0), (2, 9, 16)), jnp.ones((2, 16))
  block = dit.Block(heads=2)
  params = block.init(jax.random.key(1), x, c)
  assert (block.apply(params, x, c)[0] == x).all()


def test_initialisation_is_the_papers():
  _, params, _ = small.fresh(small.DIT, width=64, num_classes=500, depth=1)
  qkv = params["block_0"]["attention"]["qkv"]["kernel"]  # Xavier over the fused matrix
  limit = np.sqrt(6 / (64 + 192))
  assert np.abs(qkv).max() == pytest.approx(limit, rel=0.01)
  assert np.std(qkv) == pytest.approx(limit / np.sqrt(3), rel=0.05)
  assert np.std(params["embedding"]["label"]["embedding"]) == pytest.approx(0.02, rel=0.05)
  assert np.std(params["embedding"]["time_in"]["kernel"]) == pytest.approx(0.02, rel=0.05)
  zero = ["bias", "modulation", "final"]
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path)
    assert leaf.any() != any(part in name for part in zero), name


def test_time_and_label_are_of_one_order_where_short_runs_start_with_unit():
  """The paper's start is thirty times as quiet."""
  t, cond = jnp.linspace(0, 999, 64), Cond(label=jnp.arange(64) % 10)
  for init, low, high in (("unit", 0.3, 2.0), ("paper", 0.01, 0.06)):
    embedding = dit.DiT(width=128, embedding_init=init).embedding()
    params = embedding.init(jax.random.key(0), t, cond)
    both = embedding.apply(params, t, cond)
    label = params["params"]["label"]["embedding"][cond.label]
    assert low < (both - label).std() < high
    assert low < label.std() < high


def test_an_unknown_start_of_the_embedding_is_named():
  with pytest.raises(UserError, match="'units'.*unit"):
    small.fresh(small.DIT, embedding_init="units")


def test_position_table_against_an_oracle():
  """Entry by entry from the definition, in the order of the paper's code: column first, sines before cosines."""
  rows, columns, dim = 3, 5, 24
  table = dit.position_table(rows, columns, dim)
  assert table.dtype == np.float64
  for row in range(rows):
    for column in range(columns):
      expected = []
      for position in (column, row):
        angles = [position / 10_000 ** (4 * i / dim) for i in range(dim // 4)]
        expected += [*np.sin(angles), *np.cos(angles)]
      np.testing.assert_allclose(table[row * columns + column], expected, atol=1e-14)


def test_frequencies_against_an_oracle():
  t = np.array([0.0, 0.5, 17.25, 999.0])
  angle = t[:, None] * 10_000.0 ** (-np.arange(8) / 8)
  expected = np.concatenate([np.cos(angle), np.sin(angle)], -1)
  np.testing.assert_allclose(layers.frequencies(jnp.asarray(t), 16), expected, atol=2e-4)


def test_patches_return_to_where_they_came_from():
  """Swapping two patches of the image, and their positions, swaps the output's patches and changes nothing else."""
  module, params, (z, t, cond) = small.make(small.DIT)
  features = params["patches"]["embed"]["kernel"].shape[0]
  assert features == 2 * 2 * 2
  swap = lambda a: a[:, :, ::-1].reshape(4, 8, 4, 2, -1)[..., ::-1, :].reshape(a.shape)  # columns of patches
  flat = dit.position_table(4, 4, 16).reshape(4, 4, 16)[:, ::-1].reshape(16, 16)
  out = small.apply(module, params, (z, t, cond))
  table = dit.position_table
  try:
    dit.position_table = lambda *shape: flat
    swapped = small.apply(module, params, (swap(z), t, cond))
  finally:
    dit.position_table = table
  np.testing.assert_allclose(swapped, swap(out), atol=1e-5)


def test_null_label_is_num_classes_and_a_label_beyond_is_nan():
  module, params, (z, t, cond) = small.make(small.DIT)
  same = lambda label: small.apply(module, params, (z, t, cond.replace(label=jnp.full(4, label, jnp.int32))))
  assert (same(-1) == same(5)).all()
  assert not (same(-1) == same(4)).all()
  assert jnp.isnan(same(6)).all()


def test_each_label_and_each_time_tells():
  module, params, (z, t, cond) = small.make(small.DIT)
  out = small.apply(module, params, (z[:1].repeat(4, 0), jnp.ones(4), cond))
  assert not np.allclose(out[0], out[1])
  np.testing.assert_allclose(out[2], out[3], atol=1e-6)  # both are the null class
  out = small.apply(module, params, (z[:1].repeat(4, 0), t, cond.replace(label=jnp.zeros(4, jnp.int32))))
  assert not np.allclose(out[0], out[1])


def stack(params):
  """A network's parameters as the scanned network has them."""
  blocks = [params[f"block_{i}"] for i in range(3)]
  rest = {name: p for name, p in params.items() if not name.startswith("block_")}
  return rest | {"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_scan_gives_the_same_gradient(remat):
  module, params, arguments = small.make(small.DIT)
  changed, _, _ = small.make(small.DIT, scan=True, remat=remat)

  grad = small.gradient(module, params, arguments)
  scanned = small.gradient(changed, stack(params), arguments)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), stack(grad), scanned)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_alone_gives_the_same_gradient(remat):
  module, params, arguments = small.make(small.DIT)
  changed = small.models.build(small.DIT | {"remat": remat})
  grads = [small.gradient(m, params, arguments) for m in (module, changed)]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *grads)


@pytest.mark.parametrize("scan", [False, True])
def test_residuals(scan):
  """None and zeros are the same bits; a residual after block i acts from there on; missing ones are nothing."""
  module, params, arguments = small.make(small.DIT, scan=scan)
  zeros = [jnp.zeros((4, 16, 16))] * 2
  plain = small.apply(module, params, arguments)
  assert (plain == small.apply(module, params, arguments, residuals=zeros)).all()
  moved = small.apply(module, params, arguments, residuals=[zeros[0], zeros[0] + 1.0])
  assert not np.allclose(plain, moved)


def test_qk_norm_bounds_the_logits():
  """Scaling the projection of q and k by 1000 changes nothing where they are normalised."""
  module, params, arguments = small.make(small.DIT, qk_norm=True)
  grown = jax.tree.map(lambda p: p, params)
  for i in range(3):
    qkv = grown[f"block_{i}"]["attention"]["qkv"]
    factor = jnp.concatenate([jnp.full(32, 1000.0), jnp.ones(16)])
    grown[f"block_{i}"]["attention"]["qkv"] = {"kernel": qkv["kernel"] * factor, "bias": qkv["bias"] * factor}
  out, same = (small.apply(module, p, arguments) for p in (params, grown))
  np.testing.assert_allclose(out, same, atol=1e-3)


def test_bfloat16_keeps_float32_outside():
  module, params, arguments = small.make(small.DIT, dtype="bfloat16", qk_norm=True)
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
  out = small.apply(module, params, arguments)
  exact = small.apply(small.models.build(small.DIT | {"qk_norm": True}), params, arguments)
  assert out.dtype == jnp.float32
  assert 0 < np.abs(out - exact).max() < 0.1 * np.abs(exact).max()
  hlo = jax.jit(lambda p: module.apply({"params": p}, *arguments)).lower(params).as_text()
  assert "tensor<64x16xbf16>" in hlo  # the tokens inside


def test_every_parameter_has_a_gradient():
  module, params, arguments = small.make(small.DIT, qk_norm=True)
  grad = small.gradient(module, params, arguments)
  for path, leaf in jax.tree_util.tree_leaves_with_path(grad):
    assert jnp.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_the_backward_pass_recomputes_nothing():
  """Normalisation written so that XLA:CPU fuses it into what follows multiplies the work of a step (DESIGN.md).

  Counted for one block, forward and backward. With LayerNorm spelt out inline: 431 multiplications and 2470
  instructions. Products of matrices: 7 forward (qkv, q k^T, attention v, out, two of the MLP, modulation), and
  twice as many backward.
  """

  def grad_text(depth):
    module, params, arguments = small.make(small.DIT, depth=depth)
    loss = lambda p: jnp.square(module.apply({"params": p}, *arguments)).mean()
    return jax.jit(jax.grad(loss)).lower(params).compile().as_text()

  two, four = grad_text(2), grad_text(4)

  def a_block(pattern):
    return (len(re.findall(pattern, four)) - len(re.findall(pattern, two))) / 2

  assert a_block(r" dot\(") <= 21
  assert a_block(r" tanh\(") <= 1
  assert a_block(r" multiply\(") <= 150
  assert a_block(r"(?m)^ +(?:ROOT )?%?[\w.-]+ = ") <= 1200


@pytest.mark.parametrize(
  ("change", "size", "message"),
  [
    ({"patch_size": 3}, 8, "image size 8 is not divisible by patch size 3 (config.model.patch_size)"),
    ({"patch_size": 3}, 8, "Resize to 9 with --config.data.image_size=9"),
    ({"heads": 3}, 8, "width 16 (config.model.width) is not divisible by 3 heads (config.model.heads)"),
    ({"width": 6}, 8, "width 6 (config.model.width) is not divisible by 4"),
    ({"attention": "flash"}, 8, "unknown attention (config.model.attention) 'flash'"),
    ({"dtype": "bfloat"}, 8, "Did you mean 'bfloat16'?"),
  ],
)
def test_what_does_not_fit_is_said_in_one_line(change, size, message):
  with pytest.raises(UserError) as error:
    jax.eval_shape(small.models.build(small.DIT | change).init, jax.random.key(0), *small.inputs(size))
  assert message in str(error.value)
  assert "\n" not in str(error.value)
