"""Wrappers from Denoiser to Denoiser: samplers, models and wrappers know nothing of each other.

They nest: a classifier may steer what classifier_free has guided, and clip_x comes last.  Shapes throughout: z: f32[B,H,W,C],
t: f32[B]; scales are f32[] and may be traced, or functions of t (f32[B] -> f32[B]).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxdiff.diffusion import schedules
from jaxdiff.types import NULL_LABEL, Array, Cond, Denoiser, NoiseSchedule, Prediction

Scale = float | Array | Callable[[Array], Array]
LogProb = Callable[[Array, Array, Cond], Array]  # (z, t, cond) -> log p(label | z_t, t), f32[B]


def classifier_free(
  denoise: Denoiser, scale: Scale, null_label: int = NULL_LABEL, keep_hint: bool = True
) -> Denoiser:
  """Classifier-free guidance: prediction = scale * conditional + (1 - scale) * unconditional.

  scale 1 is the conditional prediction and 0 the unconditional one, bit for bit; above 1 it extrapolates away from
  what any label would give.  Both predictions are linear in the network's eps, so x and eps are combined alike.
  The two evaluations are one call on 2B examples, interleaved, so that a batch sharded over devices stays where it is.

  A learned variance is the conditional one.  The hint, if any, is kept in both; with keep_hint=False (cond.hint_scale has to
  be given) it is the condition too, so that an image is drawn towards it, also without a label (ControlNet's guess mode).
  Source: Ho & Salimans 2022, eq. 6, with scale = 1 + w; guess mode: Zhang et al. 2023, section 3.4.
  """

  def guided(z: Array, t: Array, cond: Cond) -> Prediction:
    null = _without_label(cond, null_label)
    return _guide(denoise, z, t, [cond], [scale], null if keep_hint else _without_hint(null))

  return guided


def label_and_hint(
  denoise: Denoiser, scale: Scale, hint_scale: Scale, null_label: int = NULL_LABEL
) -> Denoiser:
  """Classifier-free guidance by hint and label, with a scale for each: e(h, y) the prediction by hint h and label y, 0 for neither,

    e(0, 0) + hint_scale (e(h, 0) - e(0, 0)) + scale (e(h, y) - e(h, 0)).

  hint_scale 1 is classifier_free, and hint_scale = scale is classifier_free without keep_hint; above 1 an image is drawn away
  from what the base draws by itself.  A branch that never saw an empty hint will do: without its hint the base stands alone
  (cond.hint_scale, which has to be given, is 0).  Three evaluations, in one call on 3B examples.
  Source: Brooks et al. 2023 (InstructPix2Pix), eq. 3.
  """

  def guided(z: Array, t: Array, cond: Cond) -> Prediction:
    null = _without_label(cond, null_label)
    of_label, of_hint = _value(scale, t), _value(hint_scale, t)
    return _guide(denoise, z, t, [cond, null], [of_label, of_hint - of_label], _without_hint(null))

  return guided


def told(denoise: Denoiser, scale: Scale) -> Denoiser:
  """The denoiser of a student that takes the scale of classifier-free guidance as an input: one evaluation, not two.

  Source: Meng et al. 2023, section 3.1.
  """

  def guided(z: Array, t: Array, cond: Cond) -> Prediction:
    return denoise(z, t, cond.replace(guidance=jnp.broadcast_to(_value(scale, t), t.shape)))

  return guided


def unlabelled(denoise: Denoiser, null_label: int = NULL_LABEL) -> Denoiser:
  """The denoiser without a label: the unconditional prediction, at the cost of one."""
  return lambda z, t, cond: denoise(z, t, _without_label(cond, null_label))


def compose(
  denoise: Denoiser, conds: Sequence[Cond], scales: Sequence[Scale], null_label: int = NULL_LABEL
) -> Denoiser:
  """Several conditions at once: unconditional + sum_k scale_k (conditional_k - unconditional).

  The conditions given to the wrapper replace the sampler's own; all evaluations are one call on (K + 1) B examples.
  Source: Liu et al. 2022b, eq. 11 ("composable diffusion", conjunction).
  """

  def guided(z: Array, t: Array, cond: Cond) -> Prediction:
    del cond
    return _guide(denoise, z, t, conds, scales, _without_label(conds[0], null_label))

  return guided


def _guide(
  denoise: Denoiser, z: Array, t: Array, conds: Sequence[Cond], scales: Sequence[Scale], null: Cond
) -> Prediction:
  """(1 - sum_k scale_k) unconditional + sum_k scale_k conditional_k, in one call with the rows of an image together."""
  count = len(conds) + 1
  rows = jax.tree.map(lambda *a: jnp.stack(a, axis=1).reshape(-1, *a[0].shape[1:]), *conds, null)
  many = denoise(jnp.repeat(z, count, axis=0), jnp.repeat(t, count, axis=0), rows)
  weights = [_at(scale, t, z.ndim) for scale in scales]
  rest = 1 - sum(weights[1:], start=weights[0])

  def combine(a: Array) -> Array:
    return sum((w * a[k::count] for k, w in enumerate(weights)), start=0.0) + rest * a[count - 1 :: count]

  log_var = None if many.log_var is None else many.log_var[0::count]
  return Prediction(combine(many.x), combine(many.eps), log_var)


def _without_label(cond: Cond, null_label: int) -> Cond:
  return cond.replace(label=jnp.full_like(cond.label, null_label))


def _without_hint(cond: Cond) -> Cond:
  return cond.replace(hint_scale=jax.tree.map(jnp.zeros_like, cond.hint_scale))


def rescaled(
  denoise: Denoiser,
  guide: Callable[[Denoiser], Denoiser],
  schedule: NoiseSchedule,
  share: float | Array = 0.7,
) -> Denoiser:
  """guide(denoise), brought back to the contrast of the conditional prediction, which large scales overdo.

  guide: a wrapper that evaluates B k rows in one call, the conditional one first of an image's k, as those here do.
  x = share x_guided std(x_conditional) / std(x_guided) + (1 - share) x_guided, std over the values of an image; eps moves
  to match.  Source: Lin et al. 2023, eq. 15 and 16, for x where they write the network's output.
  """

  def guided(z: Array, t: Array, cond: Cond) -> Prediction:
    kept = []

    def remember(z: Array, t: Array, cond: Cond) -> Prediction:
      kept.append(denoise(z, t, cond))
      return kept[-1]

    prediction = guide(remember)(z, t, cond)
    axes = tuple(range(1, z.ndim))
    wanted = jnp.std(kept[0].x[:: len(kept[0].x) // len(z)], axes, keepdims=True)
    factor = wanted / jnp.maximum(jnp.std(prediction.x, axes, keepdims=True), 1e-8)
    return with_x(prediction, (share * factor + (1 - share)) * prediction.x, t, schedule)

  return guided


def interval(
  inside: Denoiser, outside: Denoiser, schedule: NoiseSchedule, low: float | Array, high: float | Array
) -> Denoiser:
  """`inside` where low < sigma_t / alpha_t <= high, elsewhere `outside`: guidance only where it helps.

  A batch that lies wholly inside or outside, as a sampler's does, costs one of them: outside, guidance costs nothing.
  Source: Kynkaanniemi et al. 2024, eq. 5.
  """

  def limited(z: Array, t: Array, cond: Cond) -> Prediction:
    noise = schedules.noise_ratio(schedule, t)
    is_inside = (low < noise) & (noise <= high)

    def mixed() -> Prediction:
      choose = schedules.match(is_inside, z.ndim)
      return jax.tree.map(lambda a, b: jnp.where(choose, a, b), inside(z, t, cond), outside(z, t, cond))

    branch = jnp.where(is_inside.all(), 0, jnp.where(is_inside.any(), 1, 2))
    return jax.lax.switch(branch, (lambda: inside(z, t, cond), mixed, lambda: outside(z, t, cond)))

  return limited


def autoguidance(denoise: Denoiser, weak: Denoiser, scale: Scale) -> Denoiser:
  """scale * denoise + (1 - scale) * weak: away from the mistakes that a worse model of the same data makes.

  weak: a smaller or less trained model.  A learned variance is that of `denoise`.  Source: Karras et al. 2024, eq. 3.
  """

  def guided(z: Array, t: Array, cond: Cond) -> Prediction:
    strong, poor = denoise(z, t, cond), weak(z, t, cond)
    w = _at(scale, t, z.ndim)
    x, eps = (w * a + (1 - w) * b for a, b in zip(strong[:2], poor[:2], strict=True))
    return Prediction(x, eps, strong.log_var)

  return guided


def classifier(denoise: Denoiser, log_prob: LogProb, scale: Scale, schedule: NoiseSchedule) -> Denoiser:
  """Classifier guidance: towards images that log_prob gives the label, by the score of p(z_t) p(label | z_t)^scale.

  eps = eps_hat - sigma_t scale g and x = x_hat + sigma_t^2 / alpha_t scale g, with g = grad_z log_prob(z, t, cond).
  Deterministic samplers follow the shifted eps.  In ddpm the shifted x moves the mean of p(z_s | z_t) by
  (alpha_s / alpha_t) sigma_ts^2 scale g: the paper's Sigma g, with fixed_large's variance, up to that ratio, which is 1 in
  the limit of many steps.  Where alpha_t = 0 there is nothing to classify, and x stays.

  Source: Dhariwal & Nichol 2021, algorithm 1 (mean) and 2, eq. 14 (eps).
  """

  def guided(z: Array, t: Array, cond: Cond) -> Prediction:
    gradient = jax.grad(lambda z: jnp.sum(log_prob(z, t, cond).astype(jnp.float32)))(z)
    return _towards(denoise(z, t, cond), gradient, scale, schedule, t)

  return guided


def classifier_of_x(denoise: Denoiser, log_prob: LogProb, scale: Scale, schedule: NoiseSchedule) -> Denoiser:
  """Classifier guidance by one that knows clean images alone: log p(label | z_t) is taken to be log_prob(x_hat(z_t), 0, cond).

  The shift is that of `classifier`; g = grad_z of log_prob goes back through the network, which is evaluated once.
  Source: Bansal et al. 2023, section 3.1 (forward universal guidance; their s(t) is sigma_t scale); Chung et al. 2023,
  algorithm 1.
  """

  def guided(z: Array, t: Array, cond: Cond) -> Prediction:
    def judged(z: Array) -> tuple[Array, Prediction]:
      prediction = denoise(z, t, cond)
      return jnp.sum(log_prob(prediction.x, jnp.zeros_like(t), cond).astype(jnp.float32)), prediction

    gradient, prediction = jax.grad(judged, has_aux=True)(z)
    return _towards(prediction, gradient, scale, schedule, t)

  return guided


def _towards(
  prediction: Prediction, gradient: Array, scale: Scale, schedule: NoiseSchedule, t: Array
) -> Prediction:
  """eps - sigma scale g and x + sigma^2 / alpha scale g, which leave z = alpha x + sigma eps; x stays where alpha is 0."""
  alpha, sigma = schedules.alpha_sigma(schedule, t, gradient.ndim)
  shift = sigma * _at(scale, t, gradient.ndim) * gradient
  x = prediction.x + jnp.where(alpha > 0, sigma * shift / jnp.where(alpha > 0, alpha, 1.0), 0.0)
  return prediction._replace(x=x, eps=prediction.eps - shift)


def clip_x(denoise: Denoiser, schedule: NoiseSchedule, limit: float = 1.0) -> Denoiser:
  """Clips the predicted x to [-limit, limit], the range of images, and moves eps to match: eps = (z - alpha x) / sigma.

  Source: Ho et al. 2020 (their code's `clip_denoised`).
  """

  def clipped(z: Array, t: Array, cond: Cond) -> Prediction:
    prediction = denoise(z, t, cond)
    return with_x(prediction, jnp.clip(prediction.x, -limit, limit), t, schedule)

  return clipped


def dynamic_threshold(denoise: Denoiser, schedule: NoiseSchedule, percentile: float = 0.995) -> Denoiser:
  """Divides the predicted x by s = max(1, the percentile of |x| over an image), clipped to [-s, s] before.

  Strong guidance then brings pixels back from saturation, where clip_x leaves them.
  Raises ValueError for a percentile outside (0, 1].  Source: Saharia et al. 2022, section 2.3.
  """

  if not 0 < percentile <= 1:
    raise ValueError(f"percentile {percentile} is not in (0, 1]")

  def limited(z: Array, t: Array, cond: Cond) -> Prediction:
    prediction = denoise(z, t, cond)
    size = jnp.quantile(jnp.abs(prediction.x).reshape(len(z), -1), percentile, axis=1)
    s = schedules.match(jnp.maximum(size, 1.0), z.ndim)
    return with_x(prediction, jnp.clip(prediction.x, -s, s) / s, t, schedule)

  return limited


def unlimited(denoise: Denoiser, schedule: NoiseSchedule) -> Denoiser:
  """The predicted x as it is: for latents, which have no range."""
  del schedule
  return denoise


# Called as THRESHOLDS[name](denoise, schedule, **arguments).
THRESHOLDS: dict[str, Callable[..., Denoiser]] = {
  "none": unlimited,
  "clip": clip_x,
  "dynamic": dynamic_threshold,
}


def with_x(prediction: Prediction, x: Array, t: Array, schedule: NoiseSchedule) -> Prediction:
  """The prediction with another x for the same z: eps = eps_hat + alpha (x_hat - x) / sigma.

  Written as a correction: where x is as before, eps stays bit-equal, and sigma = 0 divides nothing.
  """
  alpha, sigma = schedules.alpha_sigma(schedule, t, x.ndim)
  moved = alpha * (prediction.x - x) / jnp.maximum(sigma, 1e-12)
  return prediction._replace(x=x, eps=prediction.eps + jnp.where(x == prediction.x, 0.0, moved))


def _at(scale: Scale, t: Array, ndim: int) -> Array:
  """A scale at the times of a batch, to multiply images."""
  return schedules.match(_value(scale, t), ndim)


def _value(scale: Scale, t: Array) -> Array:
  """A scale at the times of a batch, f32[] or f32[B]."""
  return jnp.asarray(scale(t) if callable(scale) else scale, jnp.float32)
