"""The one train step: every task, optimizer and parallel strategy runs these lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdiff.types import Array, Batch, Metrics, PyTree, Task

TrainStep = Callable[..., tuple[Any, Metrics]]  # (state, batch, *, pmean=identity) -> (state, metrics)


def make_train_step(task: Task, tx: optax.GradientTransformation, skip_norm: float = 0.0) -> TrainStep:
  """The function (state, batch) -> (state after one step, metrics) for a task and its optimizer.

  A step whose loss or gradients are not finite, or whose gradient norm is above skip_norm (0: any may be), is skipped: the
  state stays as it was, but for the number of the step.  For that tx must be of optim.make_optimizer.
  """
  tx = optax.with_extra_args_support(tx)

  def train_step(state: Any, batch: Batch, *, pmean: Callable[[PyTree], PyTree] = lambda tree: tree) -> Any:
    """One step: gradients of task.loss in state.params alone, averaged by pmean, then the optimizer's update.

    pmean averages over the devices of a pmap; under jit with sharded arrays it is the identity.  Clipping is part of
    tx, so it sees averaged gradients.  All randomness of the step comes from fold_in(state.rng, state.step).
    """
    key = jax.random.fold_in(state.rng, state.step)

    def loss(params: PyTree) -> tuple[Array, Metrics]:
      return task.loss(params, state, batch, key)

    (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
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
