"""The task of progressive distillation: a student learns to take in one step what its teacher takes in two.

A run is a sequence of rounds. When one ends, the student becomes the teacher and the number of steps is halved.
Source: Salimans & Ho 2022, algorithm 2; a guided teacher: Meng et al. 2023 (arXiv 2210.03142).
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdiff import configuration, optim
from jaxdiff.diffusion import distillation, guidance, losses, parameterization, schedules
from jaxdiff.errors import UserError
from jaxdiff.tasks import denoise
from jaxdiff.tasks import process as processes
from jaxdiff.types import Array, Batch, Cond, Denoiser, DistillState, Metrics, Prediction, PyTree, Task

# Parameterizations that say something of the image also where there is noise alone.
TAUGHT = ("v", "x", "x_and_eps")


class Round(NamedTuple):
  """One student."""

  num_steps: int  # in which it samples
  updates: int  # train steps


def make(config: Any, tx: optax.GradientTransformation) -> Task:
  """The task of config.distill for the network that config.model describes, trained by tx.

  Raises UserError for rounds that cannot be, and for a teacher whose students would not work.
  """
  distill, every = config.distill, rounds(config.distill)
  check(config)
  module, process = denoise.build_network(config), processes.build(config.diffusion)
  schedule, reading = process.schedule, process.reading

  def init(key: Array, batch: Batch) -> DistillState:
    params_key, run_key = jax.random.split(key)
    params = module.init(params_key, *denoise.example(batch))["params"]
    num_steps = jnp.asarray(every[0].num_steps, jnp.int32)
    state = DistillState(jnp.zeros((), jnp.int32), params, tx.init(params), run_key, params, num_steps)
    return adopt(state, params)

  ends = tuple(itertools.accumulate(each.updates for each in every))
  counts = tuple(itertools.accumulate(each.updates // config.optim.accumulate_steps for each in every))

  def adopt(state: DistillState, teacher_params: PyTree) -> DistillState:
    """The state at a round's beginning: the student is its teacher, all but the learning rate begins anew."""
    # Copies: the student, its average and its teacher must not share a buffer when they are donated.
    whole = merged(state.params, teacher_params)
    student, teacher = (jax.tree.map(jnp.copy, whole) for _ in range(2))
    rounds_over = jnp.searchsorted(jnp.asarray(ends), state.step, side="right")
    opt_state = optim.restarted(tx, state.opt_state, student, jnp.asarray((0, *counts))[rounds_over])
    return state.replace(params=student, teacher_params=teacher, opt_state=opt_state)

  def advance(state: DistillState) -> DistillState:
    return adopt(state, optim.ema_params(state)).replace(num_steps=state.num_steps // 2)

  def teacher_of(state: DistillState) -> Denoiser:
    """The first teacher is guided, by one scale or by each example's; those that were students have guidance built in."""
    plain = denoise.read(functools.partial(module.apply, {"params": state.teacher_params}), process)
    if distill.guidance == 1 and not is_input(distill):
      return plain

    def guided(z: Array, t: Array, cond: Cond) -> Prediction:
      scale = distill.guidance if cond.guidance is None else cond.guidance
      return guidance.classifier_free(plain, lambda t: jnp.broadcast_to(scale, t.shape))(z, t, cond)

    def teach(z: Array, t: Array, cond: Cond) -> Prediction:
      return jax.lax.cond(state.num_steps == every[0].num_steps, guided, plain, z, t, cond)

    return teach

  def condition(batch: Batch, key: Array) -> Cond:
    label_key, scale_key = jax.random.split(key)
    label = denoise.drop_labels(batch["label"], config.diffusion.label_dropout, label_key, batch["index"])
    if not is_input(distill):
      return Cond(label)
    low, high = distill.guidance_range
    share = losses.per_example(jax.random.uniform, scale_key, batch["index"])
    return Cond(label, guidance=low + (high - low) * share)

  def loss(params: PyTree, state: DistillState, batch: Batch, key: Array) -> tuple[Array, Metrics]:
    """w(t) |x_hat(z_t) - x~|^2, the mean over the batch: x~ is distillation.target, w config.diffusion.weighting."""
    step_key, noise_key, label_key, dropout_key = jax.random.split(key, 4)
    index = batch["index"]
    i = distillation.draw_step(step_key, index, state.num_steps)
    time_of = lambda schedule, key, index: (i + 1) / state.num_steps
    _, t, _, z = processes.noised(schedule, time_of, batch, step_key, noise_key)
    cond = condition(batch, label_key)
    wanted = distillation.target(schedule, teacher_of(state), z, i, state.num_steps, cond)
    wanted = jax.lax.stop_gradient(wanted)

    alpha, sigma = schedules.alpha_sigma(schedule, t, z.ndim)
    seen, rngs = reading.encode(z, alpha, sigma), processes.dropout_rngs(dropout_key, index)
    told = module.apply({"params": params}, seen, schedule.model_time(t), cond, train=True, rngs=rngs)
    out, _ = denoise.interpret(reading, told, z, alpha, sigma)
    eps = (z - alpha * wanted) / sigma
    error = losses.denoising(out, schedule, reading, process.weighting, wanted, t, eps)
    return jnp.mean(error), {"num_steps": state.num_steps.astype(jnp.float32)}

  def denoiser(params: PyTree, state: DistillState) -> Denoiser:
    del state
    return denoise.read(functools.partial(module.apply, {"params": params}), process)

  return Task(init=init, loss=loss, denoiser=denoiser, advance=advance, stages=ends[:-1], adopt=adopt)


def is_input(distill: Any) -> bool:
  """Whether students take the scale of guidance as an input."""
  low, high = distill.guidance_range
  return low < high


def merged(own: PyTree, given: PyTree) -> PyTree:
  """The given parameters, and of the own ones those that are not among them: what a guided student has and no teacher."""
  if not isinstance(own, dict):
    return given
  return {name: merged(own[name], given[name]) if name in given else own[name] for name in own}


def rounds(distill: Any) -> tuple[Round, ...]:
  """The students of config.distill, in their order: start_steps, half of it, ... down to end_steps.

  Raises UserError where halving does not lead from one to the other, and for rounds without updates.
  """
  found = []
  num_steps = distill.start_steps
  while num_steps >= max(1, distill.end_steps):
    updates = distill.updates_last if num_steps <= 2 else distill.updates
    found.append(Round(num_steps, updates))
    if num_steps % 2:
      break
    num_steps //= 2
  if not found or found[-1].num_steps != distill.end_steps:
    raise UserError(
      f"halving config.distill.start_steps={distill.start_steps} does not come to config.distill.end_steps="
      f"{distill.end_steps}. Use powers of two, as 128 and 1."
    )
  for key in ("updates", "updates_last"):
    if distill[key] < 1:
      raise UserError(f"config.distill.{key} is {distill[key]}; a round has at least 1 update.")
  return tuple(found)


def stages(config: Any) -> tuple[int, ...]:
  """The train steps of each round."""
  return tuple(each.updates for each in rounds(config.distill))


def check(config: Any) -> None:
  """Raises UserError for a config whose students could not sample in few steps."""
  diffusion = config.diffusion
  name, _ = configuration.parse_call(
    diffusion.parameterization, parameterization.PARAMETERIZATIONS, "parameterization"
  )
  if name not in TAUGHT:
    raise UserError(
      f"the teacher predicts {name} (config.diffusion.parameterization); at the first of few steps there is noise alone, of "
      f"which {name} says nothing. Train a teacher that predicts v: --config.diffusion.parameterization=v."
    )
  if config.model.learn_sigma:
    raise UserError(
      "students take DDIM's steps, which have no variance: use a teacher with config.model.learn_sigma=False."
    )
  low, high = config.distill.guidance_range
  if low > high or (low < high and config.distill.guidance != 1):
    raise UserError(
      f"config.distill.guidance_range is {low:g},{high:g} and config.distill.guidance {config.distill.guidance:g}. Give a "
      "range, as 1,4, for students that take the scale as an input, or one scale that is built into them."
    )
  total = sum(stages(config))
  if config.train.steps != total:
    raise UserError(
      f"config.train.steps is {config.train.steps}, but the rounds of config.distill take {total}. Leave it out, and set "
      "config.distill.updates and updates_last."
    )
