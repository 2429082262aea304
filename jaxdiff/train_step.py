"""The one train step: every task, optimizer and parallel strategy runs these lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdiff.errors import UserError
from jaxdiff.types import Array, Batch, Metrics, PyTree, Task

TrainStep = Callable[..., tuple[Any, Metrics]]  # (state, batch, *, pmean=identity) -> (state, metrics)


def make_train_step(
  task: Task, tx: optax.GradientTransformation, skip_norm: float = 0.0, microbatches: int = 1
) -> TrainStep:
  """The function (state, batch) -> (state after one step, metrics) for a task and its optimizer.

  A step whose loss or gradients are not finite, or whose gradient norm is above skip_norm (0: any may be), is skipped: the
  state stays as it was, but for the number of the step.  For that tx must be of optim.make_optimizer.

  With microbatches = m the gradients are those of m parts of the batch, one after the other, averaged: those of the whole, as
  every loss is a mean over examples, with the activations of a part in memory.
  """
  tx = optax.with_extra_args_support(tx)

  def train_step(state: Any, batch: Batch, *, pmean: Callable[[PyTree], PyTree] = lambda tree: tree) -> Any:
    """One step: gradients of task.loss in state.params alone, averaged by pmean, then the optimizer's update.

    pmean averages over the devices of a pmap; under jit with sharded arrays it is the identity.  Clipping is part of
    tx, so it sees averaged gradients.  All randomness of the step comes from fold_in(state.rng, state.step).
    """
    key = jax.random.fold_in(state.rng, state.step)

    def gradients(part: Batch) -> tuple[tuple[Array, Metrics], PyTree]:
      def loss(params: PyTree) -> tuple[Array, Metrics]:
        return task.loss(params, state, part, key)

      return jax.value_and_grad(loss, has_aux=True)(state.params)

    (value, metrics), grads = mean_over_parts(gradients, batch, microbatches)
    grads, value, metrics = pmean((grads, value, metrics))
    # The norm is finite if and only if all gradients are; to ask each would make the compiled step many times longer.  So
    # would `&` of two scalars, which XLA repeats in each fusion that uses it: a reduction of a vector is computed once.
    norm = optax.tree.norm(grads)
    length = jnp.where(norm <= skip_norm, norm, jnp.inf) if skip_norm else norm
    is_good = jnp.all(jnp.isfinite(jnp.stack([length, value])))
    updates, opt_state = tx.update(grads, state.opt_state, state.params, is_good=is_good)
    metrics = metrics | {
      "loss": value,
      "grad_norm": norm,
      "skipped": 1.0 - is_good,
      "learning_rate": optax.tree.get(opt_state, "learning_rate"),
    }
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

  return train_step


def mean_over_parts(function: Callable[[Batch], PyTree], batch: Batch, parts: int) -> PyTree:
  """The mean of function(part) over a batch in so many equal parts, one after the other.

  Part j holds the examples j, j + parts, j + 2 parts, ...: so a batch that is split over devices is not moved between them.
  """
  if parts == 1:
    return function(batch)
  split = jax.tree.map(lambda a: jnp.swapaxes(a.reshape(-1, parts, *a.shape[1:]), 0, 1), batch)
  shapes = jax.eval_shape(function, jax.tree.map(lambda a: a[0], split))
  zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
  add = lambda total, part: (jax.tree.map(jnp.add, total, function(part)), None)
  total, _ = jax.lax.scan(add, zeros, split)
  return jax.tree.map(lambda leaf: leaf / parts, total)


def check_microbatches(microbatches: int, batch_size: int, devices: int) -> None:
  """Raises UserError where each device's share of a batch cannot be split evenly."""
  if microbatches < 1:
    raise UserError(f"config.train.microbatches is {microbatches}; it must be at least 1.")
  unit = microbatches * devices
  if batch_size % unit:
    raise UserError(
      f"batch size {batch_size} (config.train.batch_size) is not divisible by {microbatches} microbatches "
      f"(config.train.microbatches) on {devices} devices. Use {max(unit, round(batch_size / unit) * unit)}."
    )
