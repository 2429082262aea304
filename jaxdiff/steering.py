"""What config.sample makes of a model's denoiser: labels or none, guidance of both kinds, the image's range.

The order, from the inside: classifier-free guidance by label and hint, the classifier, the interval in which both act, the threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxdiff import classifiers, configuration
from jaxdiff.classifiers import Classifier
from jaxdiff.diffusion import guidance
from jaxdiff.errors import UserError
from jaxdiff.types import Array, Cond, Denoiser, NoiseSchedule, Prediction, PyTree

ALWAYS = (0.0, float("inf"))  # the interval of guidance that leaves nothing out


class Steering(NamedTuple):
  """How a denoiser is steered, and by what: numbers and parameters are arguments of what is compiled."""

  wrap: Callable[[Denoiser, PyTree], Denoiser]  # (denoise, values()) -> denoise
  values: Callable[[], PyTree]  # the scales and the classifier's parameters


def make(config: Any, schedule: NoiseSchedule) -> Steering:
  """The steering of config.sample; reads the classifier it names.  Raises UserError for what cannot be.

  Which guidance acts is settled here; how much is read by values(), from config.sample as it is then.
  """
  s = config.sample
  classifier = classifiers.load(config) if has_classifier(s) else None
  has_label = is_labelled(config) and s.guidance != 0
  is_free = is_guided_by_hint(s) or (is_guided(s) and not guidance_range(config))

  def values() -> PyTree:
    params = classifier.params if classifier else {}
    scales = {key: s[key] for key in ("guidance", "hint_guidance", "classifier_scale")}
    return scales | {"classifier": params}

  def wrap(denoise: Denoiser, given: PyTree) -> Denoiser:
    if guidance_range(config):
      denoise = guidance.told(denoise, given["guidance"])
    plain = denoise if has_label else guidance.unlabelled(denoise)
    steered = _classifier_free(s, has_label, denoise, given, schedule) if is_free else plain
    if classifier:
      steered = _classified(classifier, steered, given, schedule)
    if steered is not plain and tuple(s.guidance_interval) != ALWAYS:
      steered = guidance.interval(steered, plain, schedule, *s.guidance_interval)
    return threshold(s, steered, schedule)

  return Steering(wrap, values)


def is_labelled(config: Any) -> bool:
  """Whether the model was ever shown a label."""
  return config.model.num_classes > 0 and config.diffusion.label_dropout < 1


def guidance_range(config: Any) -> tuple[float, ...]:
  """The scales that a guided student takes as an input, at the cost of one evaluation; empty for all other models."""
  return tuple(config.model.get("guidance_range", ()))


def is_guided(s: Any) -> bool:
  """Whether classifier-free guidance acts: at 1 the labelled prediction stands, at 0 the unlabelled one, at half the cost."""
  return s.guidance not in (0, 1)


def is_guided_by_hint(s: Any) -> bool:
  """Whether images are drawn away from what the base draws without the hint: at 1 the hint's prediction stands."""
  return s.hint_guidance != 1


def has_classifier(s: Any) -> bool:
  return bool(s.classifier) and s.classifier_scale != 0


def asks_for_labels(config: Any) -> bool:
  """Whether a label has any part in what is drawn."""
  return has_classifier(config.sample) or (is_labelled(config) and config.sample.guidance != 0)


def check(config: Any) -> None:
  """Raises UserError for guidance that cannot work with this config's model."""
  s = config.sample
  scales = guidance_range(config)
  if scales and not scales[0] <= s.guidance <= scales[-1]:
    raise UserError(
      f"guidance {s.guidance:g} (config.sample.guidance) is outside what this student has learned, {scales[0]:g} to "
      f"{scales[-1]:g}."
    )
  for key, off in (("guidance_interval", ALWAYS), ("guidance_rescale", 0.0)) if scales else ():
    if s[key] != off:
      raise UserError(
        f"config.sample.{key} is {s[key]!r}; this student has learned guidance itself, over all of its steps. Use {off!r}."
      )
  if is_guided(s) and not is_labelled(config):
    raise UserError(
      f"guidance {s.guidance:g} (config.sample.guidance) needs a model that has seen labels; this one has not "
      f"(config.model.num_classes={config.model.num_classes}, config.diffusion.label_dropout="
      f"{config.diffusion.label_dropout:g}). Use --config.sample.guidance=0."
    )
  if s.guidance != 1 and is_labelled(config) and not config.diffusion.label_dropout:
    raise UserError(
      f"guidance {s.guidance:g} (config.sample.guidance) needs a model trained with label dropout; this one was trained "
      "with config.diffusion.label_dropout=0. Use --config.sample.guidance=1."
    )
  if len(s.guidance_interval) != 2 or not s.guidance_interval[0] < s.guidance_interval[1]:
    raise UserError(
      f"config.sample.guidance_interval is {s.guidance_interval}; give two noise levels sigma/alpha, low,high as 0.2,5."
    )
  if not 0 <= s.guidance_rescale <= 1:
    raise UserError(f"config.sample.guidance_rescale is {s.guidance_rescale:g}; give a share from 0 to 1.")
  classifiers.check(config)


def threshold(s: Any, denoise: Denoiser, schedule: NoiseSchedule) -> Denoiser:
  """The denoiser with its x kept in range as config.sample.threshold says.  Raises UserError."""
  name, arguments = configuration.parse_call(s.threshold, guidance.THRESHOLDS, "threshold")
  try:
    return guidance.THRESHOLDS[name](denoise, schedule, **arguments)
  except ValueError as error:
    raise UserError(f"{error} (config.sample.threshold={s.threshold!r}).") from None


def check_threshold(s: Any, schedule: NoiseSchedule) -> None:
  threshold(s, lambda z, t, cond: Prediction(z, z), schedule)


def _classifier_free(
  s: Any, has_label: bool, denoise: Denoiser, given: PyTree, schedule: NoiseSchedule
) -> Denoiser:
  """Guidance by the label, by the hint, or by both, where any of them acts."""
  scale, hint_scale = given["guidance"], given["hint_guidance"]

  def guide(denoise: Denoiser) -> Denoiser:
    if not has_label:
      return guidance.unlabelled(guidance.classifier_free(denoise, hint_scale, keep_hint=False))
    if is_guided_by_hint(s):
      return guidance.label_and_hint(denoise, scale, hint_scale)
    return guidance.classifier_free(denoise, scale, keep_hint=not s.guess)

  if s.guidance_rescale:
    return guidance.rescaled(denoise, guide, schedule, s.guidance_rescale)
  return guide(denoise)


def _classified(
  classifier: Classifier, denoise: Denoiser, given: PyTree, schedule: NoiseSchedule
) -> Denoiser:
  def log_prob(z: Array, t: Array, cond: Cond) -> Array:
    return classifier.log_prob(given["classifier"], z, t, cond.label)

  steer = guidance.classifier_of_x if classifier.sees_x else guidance.classifier
  return steer(denoise, log_prob, given["classifier_scale"], schedule)
