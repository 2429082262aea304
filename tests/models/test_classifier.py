import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.models import classifier
from tests.models.small import jit

UNET = classifier.UNetClassifier(
  num_classes=5, channels=2, width=8, channel_mults=(1, 2), num_blocks=1, attention_sizes=(4,), heads=2
)
DIT = classifier.DiTClassifier(num_classes=5, channels=2, width=16, depth=2, heads=2)
Z, T = jax.random.normal(jax.random.key(0), (3, 8, 8, 2)), jnp.asarray([0.0, 500.0, 999.0])


def params_of(module):
  """Parameters of no particular start, so that nothing is trivially zero."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), Z, T)["params"]
  random = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: jnp.asarray(0.3 * random.normal(size=leaf.shape), leaf.dtype), shapes)


def test_adms_classifier_has_the_published_number_of_parameters():
  module = classifier.UNetClassifier(**classifier.PRESETS["adm_imagenet64"])
  z = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), z, jax.ShapeDtypeStruct((1,), jnp.float32))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 65_438_568


@pytest.mark.parametrize("module", [UNET, DIT], ids=["unet", "dit"])
def test_logits_are_linear_in_the_features(module):
  params = params_of(module)
  run = jit(lambda p, **kwargs: module.apply({"params": p}, Z, T, **kwargs), static_argnames="features")
  logits, features = run(params), run(params, features=True)
  assert logits.shape == (3, 5) and features.shape == (3, 16) and logits.dtype == jnp.float32
  np.testing.assert_allclose(
    logits, features @ params["out"]["kernel"] + params["out"]["bias"], rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize("module", [UNET, DIT], ids=["unet", "dit"])
def test_every_pixel_and_the_time_count_but_no_other_image(module):
  params = params_of(module)
  apply = lambda z, t: module.apply({"params": params}, z, t)
  slopes = jit(jax.jacrev(apply))(Z, T)  # [3,5,3,8,8,2]
  own = np.asarray(jnp.abs(slopes[jnp.arange(3), :, jnp.arange(3)]).sum(1))
  assert (own > 0).all()
  others = np.asarray(jnp.abs(slopes).sum((1, 3, 4, 5))) * (1 - np.eye(3))
  assert (others == 0).all()
  assert (jit(apply)(Z, T) != jit(apply)(Z, T[::-1]))[0].all()


@pytest.mark.parametrize(
  ("module", "message"),
  [(UNET, "image size 9 is not divisible by 2"), (DIT, "image size 9 is not divisible by patch size 2")],
)
def test_an_image_that_does_not_fit_is_told(module, message):
  with pytest.raises(UserError, match=message):
    jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 9, 9, 2)), T[:1])
