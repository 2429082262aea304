import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import optim, tasks
from jaxdiff.tasks import denoise
from jaxdiff.types import NULL_LABEL, Cond
from tests import small


def test_labels_are_dropped_at_the_rate_asked_for():
  label, index = jnp.full((20_000,), 3), jnp.arange(20_000, dtype=jnp.uint32)
  dropped = denoise.drop_labels(label, 0.1, jax.random.key(0), index) == NULL_LABEL
  assert float(dropped.mean()) == pytest.approx(0.1, abs=4 * (0.09 / 20_000) ** 0.5)


@pytest.mark.parametrize(("rate", "kept"), [(0.0, 1.0), (1.0, 0.0)])
def test_the_extreme_rates_are_exact(rate, kept):
  label = jnp.arange(1000)
  out = denoise.drop_labels(label, rate, jax.random.key(0), label.astype(jnp.uint32))
  assert float((out == label).mean()) == kept


def test_a_dropped_label_depends_on_key_and_index_alone():
  index = jnp.arange(500, dtype=jnp.uint32)
  whole = denoise.drop_labels(jnp.zeros(500, jnp.int32), 0.3, jax.random.key(1), index)
  order = np.random.default_rng(0).permutation(500)[:100]
  part = denoise.drop_labels(jnp.zeros(100, jnp.int32), 0.3, jax.random.key(1), index[order])
  assert (part == whole[order]).all()
  other = denoise.drop_labels(jnp.zeros(500, jnp.int32), 0.3, jax.random.key(2), index)
  assert 100 < int((other != whole).sum()) < 320


@pytest.fixture(scope="module")
def made():
  config = small.config("dit")
  return config, *small.made(config)


def batch_of(index):
  image = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8)[np.asarray(index) % 64]
  return {"image": image, "label": np.asarray(index, np.int32) % 10, "index": np.asarray(index, np.uint32)}


def test_the_loss_of_an_example_does_not_depend_on_its_batch(made):
  _, task, state = made
  loss = jax.jit(lambda batch, key: task.loss(state.params, state, batch, key)[0])
  key, indices = jax.random.key(3), [5, 9, 2]
  alone = [float(loss(batch_of([i]), key)) for i in indices]
  assert float(loss(batch_of(indices), key)) == pytest.approx(np.mean(alone), rel=1e-5)
  assert len(set(alone)) == 3


def test_a_fresh_network_says_nothing_so_the_loss_is_that_of_zero(made):
  """adaLN-Zero: the output is 0 at first, so the loss is the mean of v^2, alpha^2 E[eps^2] + sigma^2 E[x^2]."""
  _, task, state = made
  loss, metrics = jax.jit(task.loss)(state.params, state, batch_of(range(64)), jax.random.key(0))
  assert 0.5 < float(loss) < 0.9
  assert metrics == {}


def test_the_denoiser_explains_z(made):
  _, task, state = made
  z, t = jax.random.normal(jax.random.key(0), (4, 8, 8, 1)), jnp.asarray([0.1, 0.4, 0.7, 1.0])
  prediction = jax.jit(task.denoiser(state.params, state))(z, t, Cond(jnp.asarray([0, 1, NULL_LABEL, 9])))
  from jaxdiff.diffusion import schedules

  alpha, sigma = schedules.alpha_sigma(schedules.cosine(), t)
  np.testing.assert_allclose(alpha * prediction.x + sigma * prediction.eps, z, atol=1e-5)


def test_the_initial_state_is_a_function_of_the_seed(made):
  config, _, state = made
  _, again = small.made(config)
  assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), state.params, again.params))
  _, other = small.made(small.config("dit", "seed=1"))
  assert not jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), state.params, other.params))


def test_unknown_names_in_a_config_are_told():
  from jaxdiff.errors import UserError

  for line, message in (
    ("diffusion.schedule=cosin", "unknown schedule 'cosin'. Did you mean 'cosine'"),
    ("diffusion.parameterization=epsilon", "unknown parameterization 'epsilon'. Did you mean 'eps'"),
    (
      "diffusion.weighting=min_snr(gama=3)",
      "unknown argument of weighting 'min_snr': 'gama'. Did you mean 'gamma'",
    ),
    ("model.learn_sigma=true", "Use --config.diffusion.time_density=uniform_discrete"),
    ("diffusion.shift=-1.0", "the shift is a factor of the noise and must be above 0"),
    (
      "diffusion.schedule=linear(num_steps=15)",
      "a table needs 2 steps or more, and each of its betas between 0 and 1",
    ),
    ("diffusion.time_density=clean", "has no noise to predict; it is for classifiers. Use uniform."),
    ("diffusion.time_density=clean()", "has no noise to predict; it is for classifiers. Use uniform."),
    ("diffusion.time_density=logit_norm", "unknown time density 'logit_norm'. Did you mean 'logit_normal'"),
    ("task=denois", "unknown task 'denois'. Did you mean 'denoise'"),
  ):
    with pytest.raises(UserError) as told:
      config = small.config("dit", line)
      tasks.make(config, optim.make_optimizer(config.optim, 1))
    assert message in str(told.value)


HYBRID = ("model.learn_sigma=true", "diffusion.schedule=linear")


@pytest.mark.parametrize("steps", [1000, 2])  # with 2 steps the decoder's term is hit all the time
def test_the_hybrid_loss_teaches_the_variance_alone_by_the_bound(steps):
  density = f"diffusion.time_density=uniform_discrete(num_steps={steps})"
  config = small.config("dit", *HYBRID, density, "diffusion.vlb_weight=1.0")
  task, state = small.made(config)
  batch, key = batch_of(range(64)), jax.random.key(0)

  @jax.jit
  def slopes(params):
    def parts(params):
      loss, metrics = task.loss(params, state, batch, key)
      return jnp.stack([loss, metrics["simple"], metrics["vlb"]])

    return parts(params), jax.jacrev(parts)(params)["final"]["out"]["bias"]

  (loss, simple, bound), slope = slopes(state.params)
  assert float(loss) == pytest.approx(float(simple + bound), rel=1e-6)
  slope = np.asarray(slope).reshape(3, -1, 2)  # a patch's outputs are pixels times (prediction, variance)
  assert np.isfinite(slope).all()
  assert (slope[1, :, 1] == 0).all() and (slope[1, :, 0] != 0).all()
  assert (slope[2, :, 0] == 0).all() and (slope[2, :, 1] != 0).all()


def test_a_learned_variance_reaches_the_sampler():
  config = small.config("dit", *HYBRID, "diffusion.time_density=uniform_discrete")
  task, state = small.made(config)
  z = jnp.zeros((2, 8, 8, 1))
  denoiser = jax.jit(task.denoiser(state.params, state))
  prediction = denoiser(z, jnp.full((2,), 0.5), Cond(jnp.zeros((2,), jnp.int32)))
  assert prediction.x.shape == z.shape
  assert (prediction.log_var == 0.5).all()  # a fresh network says 0: half-way between the bounds


@pytest.mark.parametrize(
  ("lines", "message"),
  [
    (
      ("parameterization=eps", "zero_terminal_snr=true"),
      "says nothing of the image where the schedule leaves",
    ),
    (("parameterization=eps", "schedule=rectified_flow"), "Use v, x or velocity"),
    (("zero_terminal_snr=true", "schedule=edm"), "zero terminal SNR is defined for variance-preserving"),
    (("shift=2.0", "schedule=edm"), "a shift is defined for variance-preserving schedules and for flows"),
  ],
)
def test_parts_of_a_process_that_do_not_fit_together_are_told(lines, message):
  from jaxdiff.errors import UserError

  config = small.config("dit", *(f"diffusion.{line}" for line in lines))
  with pytest.raises(UserError, match=message):
    tasks.make(config, optim.make_optimizer(config.optim, 1))


@pytest.mark.parametrize(
  "lines",
  [
    ("schedule=edm", "parameterization=edm", "weighting=edm", "time_density=edm_log_normal"),
    ("schedule=rectified_flow", "parameterization=velocity", "time_density=logit_normal", "shift=2.0"),
    (
      "zero_terminal_snr=true",
      "parameterization=x_and_eps",
      "weighting=sigmoid",
      "time_density=low_discrepancy",
    ),
    ("schedule=linear", "weighting=vlb"),
  ],
)
def test_every_family_trains_and_draws(lines):
  from jaxdiff import draw

  config = small.config("dit", *(f"diffusion.{line}" for line in lines))
  task, state = small.made(config)
  loss, gradient = jax.jit(
    jax.value_and_grad(lambda p: task.loss(p, state, batch_of(range(64)), jax.random.key(0))[0])
  )(state.params)
  assert jnp.isfinite(loss) and 0 < float(optax.tree.norm(gradient)) < 100
  images = draw.make_draw(config, task, lambda rows: rows)(state, np.arange(4), np.arange(4))
  assert len({image.tobytes() for image in images}) == 4
