"""The residual UNet: the two published models it can express, its start, its options."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.models import layers, unet
from jaxdiff.types import Cond
from tests.models import small

COUNTS = {"ddpm_cifar10": (32, 35_746_307), "adm_imagenet64": (64, 295_904_454)}


@pytest.mark.parametrize("preset", COUNTS)
def test_parameter_counts_are_the_papers(preset):
  size, parameters = COUNTS[preset]
  assert small.count({"name": "unet"} | unet.PRESETS[preset], size) == parameters


@pytest.mark.parametrize(
  ("changes", "size"),
  [
    ({"channel_mults": (1,), "attention_sizes": (8,)}, 8),
    ({"channel_mults": (1, 1, 3), "attention_sizes": (4, 2), "num_blocks": 2, "learn_sigma": True}, 8),
    ({"channel_mults": (2, 1), "resblock_updown": True, "head_channels": 4}, 12),
    ({"scale_shift": False, "num_classes": 0, "attention_sizes": (), "width": 12}, 6),
  ],
)
def test_any_levels_keep_the_images_shape(changes, size):
  module, params, arguments = small.make(small.UNET, size, **changes)
  out = small.apply(module, params, arguments)
  assert out.shape == (4, size, size, 2 * (1 + module.learn_sigma))
  assert out.dtype == jnp.float32
  assert jnp.isfinite(out).all()


def test_a_fresh_network_gives_exactly_zero_and_a_fresh_block_its_input():
  module, params, arguments = small.fresh(small.UNET)
  assert not small.apply(module, params, arguments).any()
  x, c = jax.random.normal(jax.random.key(0), (2, 4, 4, 8)), jnp.ones((2, 16))
  block = unet.ResBlock(8)
  assert (block.apply(block.init(jax.random.key(0), x, c), x, c) == x).all()
  attention = unet.AttentionBlock()
  assert (attention.apply(attention.init(jax.random.key(0), x), x) == x).all()


def test_labels_are_heard_beside_the_time_from_the_start():
  c = layers.Embedding(
    10, 32, 128, kernel_init=unet.fan_average, table_init=unet.UNet().embedding().table_init
  )
  t, cond = jnp.linspace(0, 999, 64), Cond(label=jnp.arange(64) % 10)
  params = c.init(jax.random.key(0), t, cond)
  of_both = c.apply(params, t, cond)
  of_time = of_both - params["params"]["label"]["embedding"][cond.label]
  assert 1 < (of_both - of_time).std() / of_time.std() < 10


@pytest.mark.parametrize("groups", [1, 4, 12])
def test_group_norm_against_an_oracle(groups):
  x, gain, bias = (
    np.random.default_rng(i).normal(size=s) for i, s in enumerate([(2, 3, 5, 12), (2, 12), (1, 12)])
  )
  x = 3 * x + 2
  by_group = x.reshape(2, 15, groups, -1)
  mean, variance = by_group.mean((1, 3), keepdims=True), by_group.var((1, 3), keepdims=True)
  expected = ((by_group - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
  expected = expected * gain[:, None, None] + bias[:, None, None]
  result = layers.group_norm(*(jnp.asarray(a, jnp.float32) for a in (x, gain, bias)), groups)
  np.testing.assert_allclose(result, expected, atol=2e-5)


@pytest.mark.parametrize(("size", "dtype"), [(1, "float32"), (3, "float32"), (5, "float32"), (3, "bfloat16")])
def test_a_convolutions_gradients_are_those_of_jax(size, dtype):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (2, 6, 4, 3), dtype)
  kernel, slope = (
    jax.random.normal(keys[1], (size, size, 3, 5), dtype),
    jax.random.normal(keys[2], (2, 6, 4, 5), dtype),
  )

  def plain(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

  (got, ours), (wanted, theirs) = jax.vjp(layers.convolve, x, kernel), jax.vjp(plain, x, kernel)
  tolerance = 1e-5 if dtype == "float32" else 0.05
  for a, b in zip((got, *ours(slope)), (wanted, *theirs(slope)), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_allclose(a.astype("float32"), b.astype("float32"), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("doubles", [False, True])
def test_a_gradient_in_a_loop_keeps_every_convolution_in_the_form_that_is_fast(doubles):
  """XLA:CPU runs a kernel whose channels are exchanged (01oi) 14 times slower in a loop's body."""
  x = jnp.ones((2, 4, 4, 8))
  conv = unet.conv(8, 3, jnp.float32, "conv", doubles=doubles)
  params = conv.init(jax.random.key(0), x)

  def steps(x, params):
    slope = jax.grad(lambda x: jnp.tanh(conv.apply(params, x)).sum())
    return jax.lax.fori_loop(0, 3, lambda i, x: x + slope(x), x)

  text = jax.jit(steps).lower(x, params).compile().as_text()
  labels = set(re.findall(r"dim_labels=(\w+->\w+)", text))
  assert labels == {"b01f_01io->b01f"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_convolution_of_a_doubled_map_needs_no_doubled_map(dtype):
  keys = jax.random.split(jax.random.key(0), 3)
  x, kernel, slope = (
    jax.random.normal(key, shape, dtype)
    for key, shape in zip(keys, ((2, 3, 5, 4), (3, 3, 4, 6), (2, 6, 10, 6)), strict=True)
  )

  @functools.partial(jax.jit, static_argnums=0)
  def results(function, x, kernel, slope):
    value, back = jax.vjp(function, x, kernel)
    return value, *back(slope)

  found = results(layers.convolve_doubled, x, kernel, slope)
  plain = results(lambda x, kernel: layers.convolve(unet.double(x), kernel), x, kernel, slope)
  tolerance = 1e-5 if dtype == "float32" else 0.05
  for a, b in zip(found, plain, strict=True):
    assert a.dtype == b.dtype
    scale = jnp.abs(b.astype("float32")).max()
    np.testing.assert_allclose(a.astype("float32") / scale, b.astype("float32") / scale, atol=tolerance)


def test_halve_and_double():
  x = jnp.arange(16.0).reshape(1, 4, 4, 1)
  assert unet.halve(x)[0, :, :, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
  assert (unet.halve(unet.double(x)) == x).all()
  assert (unet.double(x)[0, :2, :2] == x[0, 0, 0]).all()


def test_null_label():
  """With a row of its own NULL_LABEL is num_classes; without, it is the network without a label."""
  module, params, (z, t, cond) = small.make(small.UNET)
  labelled = lambda m, p, label: small.apply(m, p, (z, t, cond.replace(label=jnp.full(4, label, jnp.int32))))
  assert (labelled(module, params, -1) == labelled(module, params, 5)).all()
  module, params, _ = small.make(small.UNET, null_class=False)
  unconditional = small.models.build(small.UNET | {"num_classes": 0})
  rest = params | {"embedding": {k: v for k, v in params["embedding"].items() if k != "label"}}
  assert params["embedding"]["label"]["embedding"].shape[0] == 5
  np.testing.assert_allclose(labelled(module, params, -1), labelled(unconditional, rest, 0), atol=1e-6)
  assert not np.allclose(labelled(module, params, -1), labelled(module, params, 0))
  assert jnp.isnan(labelled(module, params, 5)).all()


def test_dropout_only_in_training():
  module, params, arguments = small.make(small.UNET, dropout=0.5)
  run = lambda seed: small.apply(
    module, params, arguments, train=True, rngs={"dropout": jax.random.key(seed)}
  )
  assert (run(0) == run(0)).all()
  assert not np.allclose(run(0), run(1))
  without = small.models.build(small.UNET)
  assert (small.apply(module, params, arguments) == small.apply(without, params, arguments, train=True)).all()


def test_residuals_are_added_to_skips_and_middle():
  module, params, (z, t, cond) = small.make(small.UNET)
  plain = small.apply(module, params, (z, t, cond))

  @small.jit
  def encode(params):
    encoder = module.half(unet.Encoder, train=False, name=None)
    c = module.embedding().apply({"params": params["embedding"]}, t, cond)
    return encoder.apply({"params": params["encoder"]}, z, c)

  skips, middle = encode(params)
  zeros = jax.tree.map(jnp.zeros_like, (skips, middle))
  assert (plain == small.apply(module, params, (z, t, cond), residuals=zeros)).all()
  for moved in [((*zeros[0][:-1], zeros[0][-1] + 1), zeros[1]), (zeros[0], zeros[1] + 1)]:
    assert not np.allclose(plain, small.apply(module, params, (z, t, cond), residuals=moved))


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_gives_the_same_gradient_and_every_parameter_has_one(remat):
  module, params, arguments = small.make(small.UNET, dropout=0.1)
  changed = small.models.build(small.UNET | {"remat": remat, "dropout": 0.1})

  kwargs = {"train": True, "rngs": {"dropout": jax.random.key(3)}}
  expected = small.gradient(module, params, arguments, **kwargs)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    expected,
    small.gradient(changed, params, arguments, **kwargs),
  )
  for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
    assert jnp.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_bfloat16_keeps_float32_outside():
  module, params, arguments = small.make(small.UNET, dtype="bfloat16")
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
  out = small.apply(module, params, arguments)
  exact = small.apply(small.models.build(small.UNET), params, arguments)
  assert out.dtype == jnp.float32
  assert 0 < np.abs(out - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize(
  ("change", "size", "message"),
  [
    ({"channel_mults": (1, 1, 2)}, 6, "image size 6 is not divisible by 4, which 3 levels"),
    ({"heads": 3}, 8, "16 channels at feature-map size 4 are not divisible by heads 3 (config.model.heads)"),
    ({"head_channels": 5}, 8, "not divisible by head_channels 5 (config.model.head_channels)"),
    ({"attention": "flash"}, 8, "unknown attention (config.model.attention) 'flash'"),
  ],
)
def test_what_does_not_fit_is_said_in_one_line(change, size, message):
  with pytest.raises(UserError) as error:
    jax.eval_shape(small.models.build(small.UNET | change).init, jax.random.key(0), *small.inputs(size))
  assert message in str(error.value)
