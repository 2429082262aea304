"""Floating-point operations of a program, as XLA counts them before it optimises: one turn of each loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def count(lowered: jax.stages.Lowered, function: Callable[..., Any], *args: Any) -> float | None:
  """FLOPs of `lowered`, which is function(*args) for its devices; None where no compiler here counts them.

  Compilers of GPUs and TPUs do not count what they have not compiled; then the function is lowered again for the host.
  """
  return counted(lowered) or on_host(function, *args)


def on_host(function: Callable[..., Any], *args: Any) -> float | None:
  """FLOPs of function(*args), arrays or their shapes, lowered for this machine's CPU; None where JAX may not use it."""
  try:
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
      return counted(jax.jit(function).lower(*jax.tree.map(_unplaced, args)))
  except (RuntimeError, NotImplementedError):  # no CPU backend; an operation that only the accelerator has
    return None


def _unplaced(leaf: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def counted(stage: Any) -> float | None:
  """What the compiler counts of a jax.stages.Lowered or Compiled; None where it does not count."""
  try:
    cost = stage.cost_analysis()
  except (NotImplementedError, RuntimeError):
    return None
  cost = cost[0] if isinstance(cost, list) else cost
  return float(cost["flops"]) if cost and cost.get("flops", 0) > 0 else None
