import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdiff.diffusion import guidance, samplers, schedules
from jaxdiff.types import NULL_LABEL, Cond, Prediction
from tests.diffusion import mixture
from tests.diffusion.mixture import THREE

SCHEDULE = schedules.cosine()
Z = jax.random.normal(jax.random.key(0), (3, 4, 4, 1))
T = jnp.full((3,), 0.6)
COND = Cond(jnp.asarray([0, 1, 2]), hint=jnp.arange(3.0).reshape(3, 1, 1, 1))
NULL = COND.replace(label=jnp.full((3,), NULL_LABEL))


def toy(z, t, cond):
  """Depends on every argument, on the label of each row by itself, and on being unconditional."""
  alpha, sigma = schedules.alpha_sigma(SCHEDULE, t, z.ndim)
  pull = jnp.where(cond.label == NULL_LABEL, 0.1, jnp.sin(1.0 + cond.label))[:, None, None, None]
  x = jnp.tanh(z * pull + 0.01 * cond.hint)
  return Prediction(x=x, eps=(z - alpha * x) / sigma)


def by(scale):
  return lambda denoise: guidance.classifier_free(denoise, scale)


def obedient(z, t, cond):
  """Follows its hint as strongly as it is told to."""
  return toy(z, t, cond.replace(hint=20 * cond.hint * cond.hint_scale[:, :1, None, None]))


def assert_equal(got, wanted):
  """Bit for bit."""
  for a, b in zip(got, wanted, strict=True):
    assert a is b is None or (np.asarray(a) == np.asarray(b)).all()


def assert_consistent(prediction, z=Z, t=T):
  alpha, sigma = schedules.alpha_sigma(SCHEDULE, t)
  np.testing.assert_allclose(alpha * prediction.x + sigma * prediction.eps, z, atol=1e-5)


@settings(max_examples=15)
@given(t=st.floats(0.0, 1.0, width=32), seed=st.integers(0, 2**31 - 1), label=st.integers(NULL_LABEL, 9))
@pytest.mark.parametrize(
  "guide",
  [
    guidance.classifier_free,
    lambda denoise, scale: guidance.compose(denoise, [COND], [scale]),
    lambda denoise, scale: guidance.classifier_free(denoise, lambda t: scale + 0 * t),
    lambda denoise, scale: guidance.rescaled(denoise, by(scale), SCHEDULE, share=0.0),
  ],
  ids=["classifier_free", "compose", "function of t", "rescaled with share 0"],
)
def test_scale_one_is_conditional_and_zero_unconditional_bit_for_bit(guide, t, seed, label):
  z, times = jax.random.normal(jax.random.key(seed), Z.shape), jnp.full((3,), t)
  cond = COND if guide is not guidance.classifier_free else COND.replace(label=jnp.array([label, 0, label]))
  assert_equal(guide(toy, 1.0)(z, times, cond), toy(z, times, cond))
  assert_equal(guide(toy, 0.0)(z, times, cond), toy(z, times, NULL))


@pytest.mark.parametrize("name", ["ddim", "ddpm", "heun", "unipc"])
def test_the_same_holds_for_whole_trajectories_to_the_last_step(name):
  """Operation by operation: two compiled programs may round differently where the compiler fuses around a denoiser."""
  sampler, key, times = samplers.SAMPLERS[name](), jax.random.key(1), samplers.time_grid(4)
  with jax.disable_jit():
    for scale, cond in ((1.0, COND), (0.0, NULL)):
      guided = samplers.path(sampler, SCHEDULE, guidance.classifier_free(toy, scale), key, Z, times, COND)
      assert (guided == samplers.path(sampler, SCHEDULE, toy, key, Z, times, cond)).all()


def test_guidance_extrapolates_and_keeps_x_and_eps_consistent():
  guided = guidance.classifier_free(toy, 3.0)(Z, T, COND)
  conditional = toy(Z, T, COND)
  unconditional = toy(Z, T, NULL)
  wanted = unconditional.x + 3 * (conditional.x - unconditional.x)
  np.testing.assert_allclose(guided.x, wanted, atol=1e-6)
  assert_consistent(guided)


def test_guidance_acts_on_the_last_step():
  weak, strong = (
    samplers.sample(
      samplers.ddim(),
      SCHEDULE,
      guidance.classifier_free(toy, s),
      jax.random.key(0),
      Z,
      np.array([0.05, 0.0]),
      COND,
    )
    for s in (1.0, 4.0)
  )
  assert float(jnp.abs(weak - strong).max()) > 0.01


def test_one_call_of_twice_the_batch_and_no_recompilation_for_another_scale():
  shapes = []

  def counting(z, t, cond):
    shapes.append(z.shape)
    return toy(z, t, cond)

  guided = jax.jit(lambda scale: guidance.classifier_free(counting, scale)(Z, T, COND))
  guided(1.5), guided(3.0)
  assert shapes == [(6, 4, 4, 1)]


def test_another_null_label_can_be_named():
  seen = []
  guidance.classifier_free(lambda z, t, cond: seen.append(cond.label) or toy(z, t, cond), 2.0, null_label=10)(
    Z, T, COND
  )
  assert seen[0].tolist() == [0, 10, 1, 10, 2, 10]


def test_a_scale_may_be_a_function_of_time_for_each_image():
  t = jnp.array([0.2, 0.5, 0.9])
  got = guidance.classifier_free(toy, lambda t: 1 + 4 * t)(Z, t, COND)
  for i in range(3):
    one = jax.tree.map(lambda a, i=i: a[i : i + 1], (Z, t, COND))
    wanted = guidance.classifier_free(toy, float(1 + 4 * t[i]))(*one)
    np.testing.assert_allclose(got.x[i], wanted.x[0], atol=1e-6)


def test_composing_adds_each_conditions_difference():
  other = COND.replace(label=jnp.array([2, 0, 5]), hint=COND.hint + 7)
  got = guidance.compose(toy, [COND, other], [1.5, -0.5])(Z, T, None)
  first, second, null = toy(Z, T, COND), toy(Z, T, other), toy(Z, T, NULL)
  for i in range(2):
    np.testing.assert_allclose(
      got[i], null[i] + 1.5 * (first[i] - null[i]) - 0.5 * (second[i] - null[i]), atol=1e-5
    )
  assert_consistent(got)


def test_one_condition_composed_is_classifier_free_bit_for_bit():
  composed = guidance.compose(toy, [COND], [2.5])(Z, T, NULL)
  assert_equal(composed, guidance.classifier_free(toy, 2.5)(Z, T, COND))


def varied(z, t, cond):
  """toy with a learned variance that tells labels apart."""
  return toy(z, t, cond)._replace(log_var=cond.label[:, None, None, None] + 0 * z)


@pytest.mark.parametrize(
  "guided",
  [
    guidance.classifier_free(varied, 3.0),
    guidance.compose(varied, [COND, NULL], [3.0, 1.0]),
    guidance.rescaled(varied, by(3.0), SCHEDULE),
    lambda z, t, cond: guidance.label_and_hint(varied, 3.0, 2.0)(z, t, HINTED),
    guidance.autoguidance(varied, toy, 3.0),
    guidance.interval(guidance.classifier_free(varied, 3.0), varied, SCHEDULE, 0.1, 10.0),
    guidance.classifier(varied, lambda z, t, cond: -jnp.sum(z**2, (1, 2, 3)), 3.0, SCHEDULE),
    guidance.clip_x(varied, SCHEDULE),
    guidance.dynamic_threshold(varied, SCHEDULE),
  ],
)
def test_a_learned_variance_is_the_conditional_one(guided):
  assert (guided(Z, T, COND).log_var == varied(Z, T, COND).log_var).all()


HINTED = COND.replace(hint_scale=jnp.ones((3, 2)))


@pytest.mark.parametrize("of_hint", [0.0, 1.0, 2.0, lambda t: 1 + t])
@pytest.mark.parametrize("of_label", [0.0, 1.0, 3.0, lambda t: 4 * t])
def test_label_and_hint_have_a_scale_each(of_label, of_hint):
  guided = guidance.label_and_hint(obedient, of_label, of_hint)(Z, T, HINTED)
  null = HINTED.replace(label=NULL.label)
  neither, hint, both = (
    np.asarray(obedient(Z, T, cond).x, np.float64)
    for cond in (null.replace(hint_scale=jnp.zeros((3, 2))), null, HINTED)
  )
  assert np.abs(hint - neither)[1:].max() > 0.1 < np.abs(both - hint).max(), "the hint and the label matter"
  w, v = (scale(float(T[0])) if callable(scale) else scale for scale in (of_label, of_hint))
  np.testing.assert_allclose(guided.x, neither + v * (hint - neither) + w * (both - hint), atol=2e-6)
  assert_consistent(guided)


@pytest.mark.parametrize(
  ("hint_scale", "one_scale"),
  [
    (1.0, guidance.classifier_free(obedient, 3.0)),
    (3.0, guidance.classifier_free(obedient, 3.0, keep_hint=False)),
  ],
)
def test_a_scale_for_the_hint_holds_guidance_by_the_label_and_by_both(hint_scale, one_scale):
  guided = guidance.label_and_hint(obedient, 3.0, hint_scale)(Z, T, HINTED)
  for got, wanted in zip(guided[:2], one_scale(Z, T, HINTED)[:2], strict=True):
    np.testing.assert_allclose(got, wanted, atol=2e-6)


def test_rescaling_in_full_gives_each_image_the_conditionals_contrast():
  conditional = toy(Z, T, COND).x.std((1, 2, 3))
  guided = guidance.classifier_free(toy, 6.0)(Z, T, COND).x
  whole = guidance.rescaled(toy, by(6.0), SCHEDULE, share=1.0)(Z, T, COND)
  np.testing.assert_allclose(whole.x.std((1, 2, 3)), conditional, rtol=1e-5)
  assert (jnp.abs(guided.std((1, 2, 3)) / conditional - 1) > 0.1).all()
  both = guidance.rescaled(obedient, lambda d: guidance.label_and_hint(d, 6.0, 2.0), SCHEDULE, share=1.0)
  np.testing.assert_allclose(
    both(Z, T, HINTED).x.std((1, 2, 3)), obedient(Z, T, HINTED).x.std((1, 2, 3)), rtol=1e-5
  )
  part = guidance.rescaled(toy, by(6.0), SCHEDULE, share=0.7)(Z, T, COND)
  np.testing.assert_allclose(part.x, 0.7 * whole.x + 0.3 * guided, atol=1e-6)
  assert_consistent(whole)
  assert_consistent(part)


def test_an_interval_is_guided_inside_and_not_outside_bit_for_bit_and_image_by_image():
  guided = guidance.classifier_free(toy, 4.0)
  limited = jax.jit(guidance.interval(guided, toy, SCHEDULE, 0.2, 5.0))
  inside, outside = jax.jit(guided), jax.jit(toy)
  clean, middle, noisy = (
    float(schedules.time_of_log_snr(SCHEDULE, np.float64(-2 * np.log(r)))) for r in (0.19, 1.0, 5.1)
  )
  for t, wanted in ((clean, outside), (middle, inside), (noisy, outside)):
    assert_equal(limited(Z, jnp.full((3,), t), COND), wanted(Z, jnp.full((3,), t), COND))
  mixed = jnp.array([noisy, middle, clean])
  got, on, off = (d(Z, mixed, COND) for d in (limited, inside, outside))
  for a, b, c in zip(got[:2], on[:2], off[:2], strict=True):
    assert (a[1] == b[1]).all() and (a[0] == c[0]).all() and (a[2] == c[2]).all()
    assert (b != c).any(axis=(1, 2, 3)).all()


def test_the_intervals_upper_end_is_inside_and_its_lower_end_is_not():
  flow, t = schedules.rectified_flow(), jnp.array([0.25, 0.5, 0.75])  # sigma / alpha: 1/3, 1, 3
  got = guidance.interval(lambda *_: Prediction(Z, Z), lambda *_: Prediction(-Z, -Z), flow, 1.0, 3.0)(
    Z, t, COND
  )
  assert_equal(got[:1], [Z * jnp.array([-1, -1, 1]).reshape(3, 1, 1, 1)])


def test_outside_its_interval_guidance_is_not_evaluated():
  calls = []

  def guided(z, t, cond):
    jax.debug.callback(lambda: calls.append(1))
    return toy(z, t, cond)

  limited = guidance.interval(guided, toy, SCHEDULE, 0.5, 2.0)
  for t, count in ((0.9, 0), (0.5, 1), (0.1, 1)):
    limited(Z, jnp.full((3,), t), COND)
    jax.effects_barrier()
    assert len(calls) == count


def test_autoguidance_moves_from_the_weak_model_through_the_strong_one():
  def weak(z, t, cond):
    return toy(0.5 * z, t, cond)

  strong, poor = toy(Z, T, COND), weak(Z, T, COND)
  assert_equal(guidance.autoguidance(toy, weak, 1.0)(Z, T, COND), strong)
  assert_equal(guidance.autoguidance(toy, weak, 0.0)(Z, T, COND), poor)
  for got, a, b in zip(
    guidance.autoguidance(toy, weak, lambda t: 5 * t)(Z, T, COND)[:2], strong, poor, strict=False
  ):
    np.testing.assert_allclose(got, b + 3 * (a - b), atol=1e-5)


FEW = jax.random.normal(jax.random.key(3), (6, 1, 1, 2))
LABELS = Cond(jnp.array([0, 1, 2, 2, 1, 0]))
NO_LABELS = Cond(jnp.full((6,), NULL_LABEL))
EXACT, CLASSIFY = mixture.denoiser(THREE, SCHEDULE), mixture.log_prob(THREE, SCHEDULE)


def without_label(z, t, cond):
  return EXACT(z, t, Cond(jnp.full_like(cond.label, NULL_LABEL)))


@pytest.mark.parametrize("t", [0.999, 0.9, 0.5, 0.2, 0.05])
def test_an_exact_classifier_makes_the_unconditional_prediction_the_conditional_one(t):
  """Bayes: the score of p(z_t) p(label | z_t) is that of p(z_t | label)."""
  t = jnp.full((6,), t)
  guided = guidance.classifier(without_label, CLASSIFY, 1.0, SCHEDULE)(FEW, t, LABELS)
  wanted = EXACT(FEW, t, LABELS)
  np.testing.assert_allclose(guided.eps, wanted.eps, atol=2e-5)
  alpha, sigma = schedules.alpha_sigma(SCHEDULE, t)
  np.testing.assert_allclose(guided.x, wanted.x, atol=float(2e-5 * jnp.max(1 + sigma / alpha)))
  assert_consistent(guided, FEW, t)


def test_a_classifier_of_scale_zero_changes_nothing():
  t = jnp.full((6,), 0.5)
  guided = guidance.classifier(EXACT, CLASSIFY, 0.0, SCHEDULE)(FEW, t, LABELS)
  assert_equal(guided, EXACT(FEW, t, LABELS))


def test_a_classifier_moves_the_mean_of_ddpm_by_its_gradient():
  """By alpha_s / alpha_t sigma_ts^2 scale g: Sigma g of Dhariwal & Nichol 2021, algorithm 1."""
  t, s, key = jnp.float32(0.6), jnp.float32(0.5), jax.random.key(0)
  step = samplers.ddpm().step
  guided = guidance.classifier(EXACT, CLASSIFY, 2.5, SCHEDULE)
  after, before = (step(key, FEW, (), t, s, LABELS, d, SCHEDULE)[0] for d in (guided, EXACT))
  gradient = jax.vmap(
    jax.grad(lambda z, label: CLASSIFY(z[None], t[None], Cond(label[None]))[0]), in_axes=(0, 0)
  )(FEW, LABELS.label)
  (alpha_t, sigma_t), (alpha_s, sigma_s) = (
    (SCHEDULE.alpha(float(u)), SCHEDULE.sigma(float(u))) for u in (t, s)
  )
  variance = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
  np.testing.assert_allclose(after - before, alpha_s / alpha_t * variance * 2.5 * gradient, atol=1e-5)
  assert float(jnp.abs(gradient).max()) > 0.5


def test_without_signal_a_classifier_leaves_x_and_stays_finite():
  zero, ones = schedules.zero_terminal_snr(schedules.linear()), jnp.ones(6)
  denoise, classify = mixture.denoiser(THREE, zero), mixture.log_prob(THREE, zero)
  assert (zero.alpha(ones) == 0).all()
  got = jax.jit(guidance.classifier(denoise, classify, 3.0, zero))(FEW, ones, LABELS)
  np.testing.assert_allclose(got.x, denoise(FEW, ones, LABELS).x, atol=1e-6)
  assert jnp.isfinite(got.eps).all()


def test_a_classifier_steers_what_classifier_free_has_guided():
  t = jnp.full((6,), 0.5)
  free = guidance.classifier_free(EXACT, 2.0)
  both = guidance.classifier(free, CLASSIFY, 1.0, SCHEDULE)(FEW, t, LABELS)
  null, conditional = EXACT(FEW, t, NO_LABELS), EXACT(FEW, t, LABELS)
  # The classifier's pull is once more the difference that classifier_free doubles: scale 3 in all.
  for got, a, b in zip(both[:2], conditional, null, strict=False):
    np.testing.assert_allclose(got, b + 3 * (a - b), atol=1e-4)


def test_steering_by_the_exact_classifier_draws_the_component():
  z, cond = jax.random.normal(jax.random.key(5), (2048, 1, 1, 2)), Cond(jnp.full((2048,), 1))
  denoise = guidance.classifier(without_label, CLASSIFY, 1.0, SCHEDULE)
  run = jax.jit(
    lambda z: samplers.sample(
      samplers.dpmpp_2m(), SCHEDULE, denoise, jax.random.key(0), z, samplers.time_grid(40), cond
    )
  )
  out = np.asarray(run(z)).reshape(-1, 2)
  covariance = THREE.covariances[1]
  np.testing.assert_array_less(
    np.abs(out.mean(0) - THREE.means[1]), 4 * (np.diag(covariance) / 2048) ** 0.5 + 1e-3
  )
  np.testing.assert_allclose(np.cov(out.T), covariance, atol=4 * (2 / 2048) ** 0.5 * 0.09)


BLUR = np.array([[0.08, 0.03], [0.03, 0.04]])
BUMP = mixture.gaussian([0.2, -0.1], BLUR)
PULL = jnp.array([0.9, -0.6])


def tilt(z, t, cond):
  """log E[exp(PULL x) | z_t] for x ~ BUMP, up to a constant of t: a classifier p(label | x) ~ exp(PULL x)."""
  return (mixture.denoiser(BUMP, SCHEDULE)(z, t, None).x * PULL).sum(axis=(1, 2, 3))


def tilt_of_x(x, t, cond):
  return (x * PULL).sum(axis=(1, 2, 3))


GUIDES = {"of z": (guidance.classifier, tilt), "of x": (guidance.classifier_of_x, tilt_of_x)}


@pytest.mark.parametrize("scale", [-1.0, 0.5, 3.0])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "heun"])
@pytest.mark.parametrize("guide", GUIDES)
def test_guided_samplers_draw_the_tilted_distribution(guide, name, scale):
  """N(m, C) times exp(scale b x) is N(m + scale C b, C), and here the classifier at every t is exact for every scale."""
  wrap, log_prob = GUIDES[guide]
  plain = mixture.denoiser(BUMP, SCHEDULE)
  z, cond = jax.random.normal(jax.random.key(7), (8, 1, 1, 2)), Cond(jnp.zeros((8,), jnp.int32))

  def drawn(denoise):
    sampler, grid = samplers.SAMPLERS[name](), samplers.time_grid(200)
    return jax.jit(lambda z: samplers.sample(sampler, SCHEDULE, denoise, jax.random.key(1), z, grid, cond))(z)

  # All is linear, so that with the same noise every sample is moved alike; what is left is what 200 steps miss.
  moved = (drawn(wrap(plain, log_prob, scale, SCHEDULE)) - drawn(plain)).reshape(-1, 2)
  wanted = scale * BLUR @ np.asarray(PULL)
  np.testing.assert_allclose(moved, np.tile(wanted, (8, 1)), rtol=0.01)


@pytest.mark.parametrize("guide", ["of z", "of x"])
def test_the_shift_is_the_gradient_by_finite_differences(guide):
  """eps - eps_hat = -sigma scale grad_z log p, of the classifier, or of the classifier of the predicted x."""
  t, scale, step = jnp.full((6,), 0.4), 1.7, 1e-2
  predict = lambda z: EXACT(z, t, LABELS)
  classify = CLASSIFY if guide == "of z" else lambda x, t, cond: -((x**2 - 0.1) ** 2).sum((1, 2, 3))
  log_prob = (
    (lambda z: classify(z, t, LABELS)) if guide == "of z" else (lambda z: classify(predict(z).x, t, LABELS))
  )
  wrap = guidance.classifier if guide == "of z" else guidance.classifier_of_x
  shift = wrap(EXACT, classify, scale, SCHEDULE)(FEW, t, LABELS).eps - predict(FEW).eps
  for axis in range(2):
    ahead = step * jax.nn.one_hot(axis, 2)
    slope = (log_prob(FEW + ahead) - log_prob(FEW - ahead)) / (2 * step)
    wanted = -SCHEDULE.sigma(0.4) * scale * slope
    np.testing.assert_allclose(shift[:, 0, 0, axis], wanted, atol=5e-3 * float(jnp.abs(shift).max()))


def test_a_classifier_of_x_leaves_z_explained_and_changes_nothing_at_scale_zero():
  t = jnp.full((6,), 0.5)
  guided = guidance.classifier_of_x(EXACT, tilt_of_x, 2.0, SCHEDULE)(FEW, t, LABELS)
  assert_consistent(guided, FEW, t)
  assert_equal(
    guidance.classifier_of_x(EXACT, tilt_of_x, 0.0, SCHEDULE)(FEW, t, LABELS), EXACT(FEW, t, LABELS)
  )


@pytest.mark.parametrize("guide", GUIDES)
def test_the_network_is_evaluated_once_and_another_scale_compiles_nothing(guide):
  calls, traces = [], []
  wrap, log_prob = GUIDES[guide]

  def counted(z, t, cond):
    traces.append(1)
    jax.debug.callback(lambda: calls.append(1))
    return EXACT(z, t, cond)

  step = jax.jit(lambda scale: wrap(counted, log_prob, scale, SCHEDULE)(FEW, jnp.full((6,), 0.5), LABELS).eps)
  outputs = [np.asarray(step(scale)) for scale in (1.0, 2.0, 0.0)]
  jax.effects_barrier()
  assert len(traces) == 1 and len(calls) == 3
  assert (outputs[0] != outputs[1]).any()


def test_a_classifier_is_told_the_label_but_unlabelled_the_network_is_not():
  seen = []

  def watched(z, t, cond):
    seen.append(cond)
    return toy(z, t, cond)

  assert_equal(guidance.unlabelled(watched)(Z, T, COND), toy(Z, T, NULL))
  assert (seen[0].hint == COND.hint).all()
  labels = []
  log_prob = lambda z, t, cond: labels.append(cond.label) or z.sum((1, 2, 3))
  guidance.classifier(guidance.unlabelled(watched), log_prob, 1.0, SCHEDULE)(Z, T, COND)
  assert (labels[0] == COND.label).all() and (seen[1].label == NULL_LABEL).all()


def test_clipping_moves_eps_along_and_leaves_the_rest_alone():
  clipped = guidance.clip_x(bold, SCHEDULE)(Z, T, COND)
  free = bold(Z, T, COND)
  inside = jnp.abs(free.x) <= 1
  assert 0 < int(inside.sum()) < inside.size
  assert float(jnp.abs(clipped.x).max()) == 1
  assert (jnp.where(inside, clipped.eps, 0) == jnp.where(inside, free.eps, 0)).all()
  assert_consistent(clipped)


def bold(z, t, cond):
  """Leaves the range of images in most images, not in the third."""
  del cond
  alpha, sigma = schedules.alpha_sigma(SCHEDULE, t, z.ndim)
  x = z * jnp.array([3.0, 1.5, 0.2]).reshape(3, 1, 1, 1)
  return Prediction(x=x, eps=(z - alpha * x) / sigma)


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.995, 1.0])
def test_dynamic_thresholding_divides_by_the_percentile_of_each_image(percentile):
  got, x = guidance.dynamic_threshold(bold, SCHEDULE, percentile)(Z, T, COND), np.asarray(bold(Z, T, COND).x)
  for i in range(3):
    s = max(1.0, np.quantile(np.abs(x[i].astype(np.float64)), percentile))
    np.testing.assert_allclose(got.x[i], np.clip(x[i], -s, s) / s, atol=1e-6)
  assert (got.x[2] == x[2]).all() and float(jnp.abs(got.x[0]).max()) == pytest.approx(1)


@pytest.mark.parametrize("name", guidance.THRESHOLDS)
@pytest.mark.parametrize("t", [1.0, 0.5, 0.01])
def test_every_threshold_keeps_z_between_x_and_eps(name, t):
  t = jnp.full((3,), t)
  limited = guidance.THRESHOLDS[name](bold, SCHEDULE)
  assert_consistent(limited(Z, t, COND), t=t)
  assert_equal([d[2:] for d in limited(Z, t, COND)[:2]], [d[2:] for d in bold(Z, t, COND)[:2]])


def test_thresholds_at_clean_data_divide_nothing_by_zero():
  table, t = schedules.linear(), jnp.zeros(3)
  for limit in guidance.THRESHOLDS.values():
    got = limit(lambda z, t, cond: Prediction(3 * z, z), table)(Z, t, COND)
    assert jnp.isfinite(got.x).all() and jnp.isfinite(got.eps).all()
