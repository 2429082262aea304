"""Optimizers as chains of gradient transformations; the EMA of the parameters is one of them.

Their update takes `is_good`, bool[], as a further argument: where it is False the step is skipped. The gradients may then be
anything; the updates are 0, and the state stays as it was, bit for bit. It costs a selection for each of Adam's moments, which
is fused with their update; what comes after them is frozen by scalars.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdiff.errors import unknown
from jaxdiff.types import Array, PyTree


class ParamsEmaState(NamedTuple):
  """State of `params_ema`."""

  count: Array  # type: ignore[assignment]  # i32[], updates applied so far
  ema_params: PyTree  # like params, in their dtype: the average that sampling and scoring use


def params_ema(decay: float, start_step: int = 0) -> optax.GradientTransformationExtraArgs:
  """An exponential moving average of the parameters as they are *after* each update; updates pass through unchanged.

  Update n = 1, 2, ... makes params_n.  For n <= start_step the average is a copy of params_n; from then on
  ema_n = decay ema_{n-1} + (1 - decay) params_n.  So it never needs debiasing, and the noisy first parameters do not
  linger in it.  It must come last in a chain, and be read with `optax.tree.get(opt_state, "ema_params")`.

  Raises ValueError for a decay outside [0, 1] and, at update, if params are not given.
  Source: Polyak & Juditsky 1992; the use in diffusion models: Ho et al. 2020, appendix B.
  """
  if not 0 <= decay <= 1:
    raise ValueError(f"EMA decay {decay} is not in [0, 1]")

  def init_fn(params: PyTree) -> ParamsEmaState:
    # A copy: donated parameters and their average must not share a buffer.
    return ParamsEmaState(count=jnp.zeros((), jnp.int32), ema_params=jax.tree.map(jnp.copy, params))

  def update_fn(
    updates: PyTree,
    state: ParamsEmaState,
    params: PyTree | None = None,
    *,
    is_good: Array | bool = True,
    **others: Any,
  ) -> tuple[PyTree, ParamsEmaState]:
    del others
    if params is None:
      raise ValueError("params_ema averages parameters: call update(updates, state, params)")
    started = state.count >= start_step
    new_params = optax.apply_updates(params, updates)
    kept, added = chosen(is_good, decay, 1.0), chosen(is_good, 1 - decay, 0.0)

    def average(ema: Array, new: Array) -> Array:
      return jnp.where(started, kept.astype(ema.dtype) * ema + added.astype(ema.dtype) * new, new)

    ema_params = jax.tree.map(average, state.ema_params, new_params)
    return updates, ParamsEmaState(count=_counted(state.count, is_good), ema_params=ema_params)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def chosen(is_good: Array | bool, this: Array | float, other: Array | float) -> Array:
  """`this` where is_good, else `other`, f32[]: as a sum with a 0.

  XLA repeats a scalar select in each of the hundreds of fusions that use it, but computes a reduction once.
  """
  good = jnp.asarray(is_good)
  return jnp.sum(jnp.where(jnp.stack([good, ~good]), jnp.stack([jnp.float32(this), jnp.float32(other)]), 0.0))


def _counted(count: Array, is_good: Array | bool) -> Array:
  """The updates applied so far, after one more that may have been skipped."""
  return jnp.where(is_good, optax.safe_increment(count), count)


def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
  """optax.scale_by_adam, operation for operation, of which a step can be skipped.

  m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  update m / (1 - b1^n) / (sqrt(v / (1 - b2^n)) + eps).
  Source: Kingma & Ba 2015, algorithm 1.
  """

  def update_fn(
    updates: PyTree,
    state: optax.ScaleByAdamState,
    params: PyTree | None = None,
    *,
    is_good: Array | bool = True,
    **others: Any,
  ) -> tuple[PyTree, optax.ScaleByAdamState]:
    del params, others
    moment = lambda g, m: jnp.where(is_good, (1 - b1) * g + b1 * m, m)
    square = lambda g, v: jnp.where(is_good, (1 - b2) * (g**2) + b2 * v, v)
    mu, nu = jax.tree.map(moment, updates, state.mu), jax.tree.map(square, updates, state.nu)
    n = optax.safe_increment(state.count)  # where the step is skipped too: 1 - b1^0 would be 0
    mu_hat, nu_hat = optax.tree.bias_correction(mu, b1, n), optax.tree.bias_correction(nu, b2, n)
    scaled = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu_hat, nu_hat)
    return scaled, optax.ScaleByAdamState(count=_counted(state.count, is_good), mu=mu, nu=nu)

  return optax.GradientTransformationExtraArgs(optax.scale_by_adam(b1, b2, eps).init, update_fn)


class ScheduledState(NamedTuple):
  """State of `scale_by_schedule`."""

  count: Array  # type: ignore[assignment]  # i32[], updates applied so far
  learning_rate: Array  # f32[], the rate of the last update, for the logs


def scale_by_schedule(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
  """Update n (from 0) is multiplied by -schedule(n): the descent step of a chain.

  As optax.scale_by_learning_rate, but the rate in force is in the state, where any loop can read it:
  `optax.tree.get(opt_state, "learning_rate")`.
  """

  def init_fn(params: PyTree) -> ScheduledState:
    del params
    return ScheduledState(count=jnp.zeros((), jnp.int32), learning_rate=jnp.zeros((), jnp.float32))

  def update_fn(
    updates: PyTree,
    state: ScheduledState,
    params: PyTree | None = None,
    *,
    is_good: Array | bool = True,
    **others: Any,
  ) -> tuple[PyTree, ScheduledState]:
    del params, others
    rate = jnp.asarray(schedule(state.count), jnp.float32)
    factor = chosen(is_good, rate, 0.0)
    scaled = jax.tree.map(lambda update: -factor * update, updates)
    in_force = jnp.where(is_good, rate, state.learning_rate)
    return scaled, ScheduledState(count=_counted(state.count, is_good), learning_rate=in_force)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def learning_rate(config: Any, *stages: int) -> optax.Schedule:
  """The learning rate of update n = 0, 1, ...: in each stage of so many updates what `stage_rate` says, from its beginning."""
  rates = [stage_rate(config, stage) for stage in stages]
  return optax.join_schedules(rates, list(itertools.accumulate(stages))[:-1]) if rates[1:] else rates[0]


def stage_rate(config: Any, num_updates: int) -> optax.Schedule:
  """The learning rate of update n = 0, 1, ...: linear warm-up, then constant, or a cosine or a line to 0 at num_updates.

  Update n of a warm-up of W uses (n + 1) / W of the peak: none is wasted on a rate of 0.
  Raises UserError for an unknown config.decay.
  """
  rest = max(num_updates - config.warmup_steps, 1)
  decays = {
    "constant": lambda: optax.constant_schedule(config.learning_rate),
    "cosine": lambda: optax.cosine_decay_schedule(config.learning_rate, rest),
    "linear": lambda: optax.linear_schedule(config.learning_rate, 0.0, rest),
  }
  if config.decay not in decays:
    raise unknown("learning rate decay (config.optim.decay)", config.decay, decays)
  decay = decays[config.decay]()
  if not config.warmup_steps:
    return decay
  share = config.learning_rate / config.warmup_steps
  warmup = optax.linear_schedule(share, config.learning_rate + share, config.warmup_steps)
  return optax.join_schedules([warmup, decay], [config.warmup_steps])


def make_optimizer(config: Any, *stages: int) -> optax.GradientTransformationExtraArgs:
  """The optimizer that a config's `optim` section describes, for a run of stages of so many train steps, mostly one.

  clip by global norm -> Adam -> weight decay (matrices and kernels only) -> learning rate -> params_ema.  With
  accumulate_steps = k gradients are averaged over k train steps and all of the chain, EMA included, moves once; a
  skipped one does not count among the k.

  Source: AdamW, Loshchilov & Hutter 2019.
  """
  rate = learning_rate(config, *(stage // config.accumulate_steps for stage in stages))
  chain = optax.chain(
    optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
    scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon),
    optax.add_decayed_weights(config.weight_decay, mask=decayed),
    scale_by_schedule(rate),
    params_ema(config.ema_decay, config.ema_start_step),
  )
  return chain if config.accumulate_steps == 1 else accumulated(chain, config.accumulate_steps)


def decayed(params: PyTree) -> PyTree:
  """Which parameters weight decay acts on: matrices and kernels, not biases and scales, also where a scan has stacked these."""
  is_decayed = lambda path, p: p.ndim > 1 and getattr(path[-1], "key", "") not in ("bias", "scale")
  return jax.tree_util.tree_map_with_path(is_decayed, params)


def accumulated(tx: optax.GradientTransformation, steps: int) -> optax.GradientTransformationExtraArgs:
  """optax.MultiSteps: tx moves once in so many good steps, with the mean of their gradients."""

  def update_fn(
    updates: PyTree,
    state: optax.MultiStepsState,
    params: PyTree | None = None,
    *,
    is_good: Array | bool = True,
    **others: Any,
  ) -> tuple[PyTree, optax.MultiStepsState]:
    del others
    skips = lambda *given: (jnp.logical_not(is_good), ())
    return optax.MultiSteps(tx, steps, should_skip_update_fn=skips).update(updates, state, params)

  return optax.GradientTransformationExtraArgs(optax.MultiSteps(tx, steps).init, update_fn)


def restarted(tx: optax.GradientTransformation, opt_state: PyTree, params: PyTree, count: Array) -> PyTree:
  """A fresh optimizer state for params, but for the learning rate: the last one stays, and update `count` (i32[]) is next.

  The count is an argument because some of the updates that were due by now may have been skipped.
  """

  def is_schedule(node: Any) -> bool:
    return isinstance(node, ScheduledState)

  pick = lambda new, old: old._replace(count=jnp.asarray(count, jnp.int32)) if is_schedule(new) else new
  return jax.tree.map(pick, tx.init(params), opt_state, is_leaf=is_schedule)


def ema_params(state: Any) -> PyTree:
  """The averaged parameters of a train state, those to sample and score with."""
  return optax.tree.get(state.opt_state, "ema_params")
