import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import tasks
from jaxdiff.diffusion import schedules
from jaxdiff.errors import UserError
from jaxdiff.tasks import classifier, process
from jaxdiff.types import NULL_LABEL, ClassifierState
from tests import small

SGD = optax.sgd(1.0)
Z = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))


@pytest.fixture(scope="module")
def made():
  config = small.config("classifier", "model.dropout=0")
  task, state = small.made(config)
  return config, task, small.woken(state)


def batch_of(index, label=None):
  image = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8)[np.asarray(index) % 64]
  label = np.asarray(index, np.int32) % 10 if label is None else np.asarray(label, np.int32)
  return {"image": image, "label": label, "index": np.asarray(index, np.uint32)}


def test_its_state_is_a_classifiers_and_it_draws_no_images(made):
  _, task, state = made
  assert isinstance(state, ClassifierState) and task.denoiser is None


def test_the_loss_is_the_cross_entropy_of_the_log_probabilities_it_guides_by(made):
  """Written out from z_t: what is trained and what steers are one function."""
  config, task, state = made
  key, batch = jax.random.key(3), batch_of(range(16))
  schedule, draw_time = process.build_schedule(config.diffusion), process.build_time_density(config.diffusion)
  time_key, noise_key, _ = jax.random.split(key, 3)
  _, t, _, z = process.noised(schedule, draw_time, batch, time_key, noise_key)
  said = jax.jit(classifier.make_log_probs(config))(state.params, z, t)
  np.testing.assert_allclose(jnp.exp(said).sum(axis=1), 1, atol=1e-5)
  loss, metrics = jax.jit(task.loss)(state.params, state, batch, key)
  assert float(loss) == pytest.approx(-float(said[np.arange(16), batch["label"]].mean()), rel=1e-5)
  ranks = np.argsort(-np.asarray(said), axis=1)
  for k in (1, 5):
    wanted = np.mean([label in row[:k] for label, row in zip(batch["label"], ranks, strict=True)])
    assert float(metrics[f"top{k}"]) == pytest.approx(wanted)


def test_the_loss_of_an_example_does_not_depend_on_its_batch(made):
  _, task, state = made
  loss = jax.jit(lambda batch, key: task.loss(state.params, state, batch, key)[0])
  key, indices = jax.random.key(3), [5, 9, 2]
  alone = [float(loss(batch_of([i]), key)) for i in indices]
  assert float(loss(batch_of(indices), key)) == pytest.approx(np.mean(alone), rel=1e-5)


def test_examples_without_label_add_nothing_wherever_they_lie(made):
  _, task, state = made
  loss = jax.jit(task.loss)
  of = lambda *given: loss(state.params, state, batch_of(*given), jax.random.key(0))
  some, right = of([1, 2, 3, 4], [1, NULL_LABEL, 3, NULL_LABEL])
  few, of_few = of([1, 3], [1, 3])
  assert float(some) == pytest.approx(float(few) / 2, rel=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), right, of_few)
  parts = [of([1, 3], [1, 3])[0], of([2, 4], [NULL_LABEL, NULL_LABEL])[0]]
  assert float(some) == pytest.approx(np.mean(parts), rel=1e-5), "on two devices as on one"
  assert float(parts[1]) == 0


@pytest.mark.parametrize(("k", "wanted"), [(1, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1])])
def test_top_k_counts_labels_among_the_k_likeliest_and_ties_against(k, wanted):
  said = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.4, 0.4, 0.4]]))
  np.testing.assert_array_equal(classifier.is_among(said, jnp.array([0, 1, 0]), k), wanted)


def test_a_classifier_that_says_nan_is_not_right():
  said = jnp.array([[jnp.nan] * 3, [0.0, jnp.nan, -1.0]])
  np.testing.assert_array_equal(classifier.is_among(said, jnp.array([1, 0]), 1), [0, 0])


def test_dropout_acts_in_training_alone():
  config = small.config("classifier", "model.dropout=0.5")
  task, state = small.made(config)
  state, dry = small.woken(state), tasks.make(small.config("classifier", "model.dropout=0"), SGD)
  run = lambda task: float(jax.jit(task.loss)(state.params, state, batch_of(range(8)), jax.random.key(0))[0])
  assert run(task) != run(dry)
  log_probs = jax.jit(classifier.make_log_probs(config))
  t = jnp.full((2,), 0.5)
  np.testing.assert_array_equal(log_probs(state.params, Z, t), log_probs(state.params, Z, t))


def test_trained_at_t_zero_it_sees_images_as_they_are(made):
  config = small.config("classifier", "diffusion.time_density=clean")
  schedule, draw_time = process.build_schedule(config.diffusion), process.build_time_density(config.diffusion)
  noised = process.noised(schedule, draw_time, batch_of(range(8)), jax.random.key(0), jax.random.key(1))
  assert (noised.t == 0).all()
  np.testing.assert_allclose(noised.z, noised.x, atol=3e-4)  # the cosine's last log-SNR of 20 is sigma 5e-5
  with pytest.raises(UserError, match="has no noise to predict"):
    tasks.make(small.config("dit", "diffusion.time_density=clean"), SGD)


@pytest.mark.parametrize("name", ["linear", "rectified_flow", "edm", "cosine_discrete"])
def test_it_reads_images_that_another_schedule_noised(made, name):
  """The same x and eps at the same signal-to-noise ratio look alike to it, whatever the scale of z and the name of t."""
  config, _, state = made
  own, other = schedules.cosine(), schedules.SCHEDULES[name]()
  x, eps = (jax.random.normal(jax.random.key(i), (4, 8, 8, 1)) for i in (1, 2))
  own_t = jnp.array([0.2, 0.4, 0.6, 0.8])
  other_t = schedules.time_of_log_snr(other, own.log_snr(own_t))
  said = jax.jit(classifier.make_log_probs(config))(
    state.params, schedules.add_noise(own, x, eps, own_t), own_t
  )
  foreign = jax.jit(classifier.make_log_probs(config, noised_by=other))
  np.testing.assert_allclose(
    foreign(state.params, schedules.add_noise(other, x, eps, other_t), other_t), said, atol=5e-4
  )
  assert float(jnp.ptp(said, axis=0).max()) > 0.02  # what it says depends on z and t


def test_at_both_ends_of_another_schedule_it_stays_finite(made):
  config, _, state = made
  for name in ("linear", "rectified_flow", "edm"):
    ends = jax.jit(classifier.make_log_probs(config, noised_by=schedules.SCHEDULES[name]()))
    assert jnp.isfinite(ends(state.params, jnp.ones((2, 8, 8, 1)), jnp.array([0.0, 1.0]))).all()


def test_half_precision_gives_gradients_in_single():
  config = small.config("classifier", "model.dtype=bfloat16")
  state = small.woken(small.made(config)[1])
  t = jnp.full((2,), 0.3)

  def slope(config):
    log_probs = classifier.make_log_probs(config)
    return jax.jit(jax.grad(lambda z: log_probs(state.params, z, t)[:, 0].sum()))(Z)

  gradient, wanted = slope(config), slope(small.config("classifier"))
  assert gradient.dtype == jnp.float32 and jnp.isfinite(gradient).all() and jnp.abs(gradient).max() > 0
  cosine = jnp.vdot(gradient, wanted) / (jnp.linalg.norm(gradient) * jnp.linalg.norm(wanted))
  assert float(cosine) > 0.99


def test_without_classes_there_is_nothing_to_tell_apart():
  with pytest.raises(UserError, match="config.model.num_classes is 1"):
    tasks.make(small.config("classifier", "model.num_classes=1"), SGD)
