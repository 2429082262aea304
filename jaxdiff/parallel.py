"""Strategies: how one train step runs on the devices there are. The loop does not know which it runs under."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdiff.errors import UserError, unknown
from jaxdiff.types import PyTree


class Strategy(NamedTuple):
  """What the loop needs of a strategy."""

  # (make, *given): make(*given), a state, on its devices
  init: Callable[..., PyTree]
  # (() -> state), to the shapes, dtypes and places to restore to
  abstract: Callable[[Callable[[], PyTree]], PyTree]
  # a restored state to its devices
  place_state: Callable[[PyTree], PyTree]
  # this process's share of a batch, NumPy, to its devices; or to where the step takes it from
  place_batch: Callable[[PyTree], PyTree]
  # rows to draw images for, all of them known to every process, to where a fetched state can meet them
  place_rows: Callable[[PyTree], PyTree]
  # (step, state, batch), state donated
  lower: Callable[[Callable[..., Any], PyTree, PyTree], jax.stages.Lowered]
  # (function, state): function(state), placed as the state was, which is donated
  advance: Callable[[Callable[[PyTree], PyTree], PyTree], PyTree]
  # a placed state, or part of it, without the axis of devices, if it has one
  fetch: Callable[[PyTree], PyTree]


def multiple(count: int, devices: int | None = None) -> int:
  """The next multiple of the number of devices, by default all: rows are split over them evenly."""
  return count + -count % (devices or jax.device_count())


def mesh(config: Any, batch_size: int, devices: Sequence[jax.Device] | None = None) -> Strategy:
  """jit over a mesh with the axes `data` (the batch is split) and `fsdp` (batch and large state leaves are split).

  On one device this is plain jit.  Gradients are averaged by the compiler: the loss is a mean over the global batch.
  The devices of a process lie beside each other: its share of a batch is a slice.
  Raises UserError when the devices do not divide by config.fsdp, or the batch by the devices.
  """
  devices = sorted(jax.devices() if devices is None else devices, key=lambda device: device.process_index)
  check_groups(len(devices), config.fsdp)
  check_batch_size(batch_size, len(devices))
  # Built by hand: jax.make_mesh changed its default axis types between the versions of JAX in use.
  grid = Mesh(np.asarray(devices).reshape(-1, config.fsdp), ("data", "fsdp"))
  split = NamedSharding(grid, P(("data", "fsdp")))
  is_host = len(devices) == 1 and devices[0].platform == "cpu"

  def init(make: Callable[..., PyTree], *given: PyTree) -> PyTree:
    return _run_once(make, *given, out_shardings=_state_shardings(grid, jax.eval_shape(make, *given)))

  def abstract(make: Callable[[], PyTree]) -> PyTree:
    shapes = jax.eval_shape(make)
    return jax.tree.map(_with_sharding, shapes, _state_shardings(grid, shapes))

  def place_batch(batch: PyTree) -> PyTree:
    if is_host:
      return batch  # the step takes it as it is, in less time
    if jax.process_count() == 1:
      return jax.device_put(batch, split)  # the same, in one call
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(split, a), batch)

  def place_rows(rows: PyTree) -> PyTree:
    return jax.tree.map(lambda a: jax.make_array_from_callback(a.shape, split, lambda part: a[part]), rows)

  def lower(step: Callable[..., Any], state: PyTree, batch: PyTree) -> jax.stages.Lowered:
    shardings = _state_shardings(grid, state)
    jitted = jax.jit(step, donate_argnums=0, in_shardings=(shardings, split), out_shardings=(shardings, None))
    return jitted.lower(state, batch)

  def advance(function: Callable[[PyTree], PyTree], state: PyTree) -> PyTree:
    return jax.jit(function, donate_argnums=0, out_shardings=_state_shardings(grid, state))(state)

  return Strategy(
    init, abstract, lambda state: state, place_batch, place_rows, lower, advance, lambda tree: tree
  )


def pmap(config: Any, batch_size: int, devices: Sequence[jax.Device] | None = None) -> Strategy:
  """jax.pmap: every device holds a copy of the state and an equal share of the batch; gradients are averaged by pmean.

  Raises UserError when the batch does not divide by the devices, and in one of several processes: what pmap returns there
  is of that process alone, and no checkpoint or picture could be made of it by all.
  """
  del config
  if jax.process_count() > 1:
    raise UserError(
      f"config.parallel.strategy=pmap runs in one process, and this is one of {jax.process_count()}. Use mesh."
    )
  check_batch_size(batch_size, jax.device_count() if devices is None else len(devices))
  devices = jax.local_devices() if devices is None else devices
  one_device = jax.sharding.SingleDeviceSharding(devices[0])
  split = NamedSharding(Mesh(np.asarray(devices), ("batch",)), P("batch"))

  def copied(leaf: jax.Array) -> jax.Array:
    """A copy on each device, as one array with an axis of devices; no device ever holds those of others."""
    copies = [jax.device_put(leaf, device)[None] for device in devices]
    return jax.make_array_from_single_device_arrays((len(devices), *leaf.shape), split, copies)

  def place_state(state: PyTree) -> PyTree:
    return jax.tree.map(copied, state)

  def place_batch(batch: PyTree) -> PyTree:
    return jax.tree.map(lambda a: jax.device_put(a.reshape(len(devices), -1, *a.shape[1:]), split), batch)

  def lower(step: Callable[..., Any], state: PyTree, batch: PyTree) -> jax.stages.Lowered:
    averaged = functools.partial(step, pmean=functools.partial(jax.lax.pmean, axis_name="batch"))
    mapped = jax.pmap(averaged, axis_name="batch", out_axes=(0, None), donate_argnums=0, devices=devices)
    return mapped.lower(state, batch)

  return Strategy(
    init=lambda make, *given: place_state(_run_once(make, *given)),
    abstract=lambda make: jax.tree.map(lambda a: _with_sharding(a, one_device), jax.eval_shape(make)),
    place_state=place_state,
    place_batch=place_batch,
    place_rows=lambda rows: rows,
    lower=lower,
    advance=lambda function, state: jax.pmap(function, donate_argnums=0, devices=devices)(state),
    fetch=lambda tree: jax.tree.map(_of_first_device, tree),
  )


def _of_first_device(leaf: jax.Array) -> jax.Array:
  """leaf[0] of an array with an axis of devices, from that device alone.

  leaf[0] itself is a program with a collective on all devices; on a CPU of few cores some of the many that a state needs
  were seen to wait for each other for ever.
  """
  return leaf.addressable_shards[0].data[0]


def check_batch_size(batch_size: int, devices: int) -> None:
  """Raises UserError when a batch cannot be split evenly over the devices."""
  if batch_size % devices:
    nearest = max(devices, round(batch_size / devices) * devices)
    raise UserError(
      f"batch size {batch_size} (config.train.batch_size) is not divisible by {devices} devices. Use {nearest}."
    )


def check_groups(devices: int, fsdp: int) -> None:
  """Raises UserError when devices cannot be split evenly into groups that share one copy of the state."""
  if fsdp < 1 or devices % fsdp:
    raise UserError(f"{devices} devices cannot be split into groups of {fsdp} (config.parallel.fsdp).")


def group_size(config: Any, devices: int) -> int:
  """How many of so many devices share one copy of the state.

  Raises UserError for an unknown strategy, and where the devices cannot be split like that.
  """
  if config.strategy not in STRATEGIES:
    raise unknown("parallel strategy", config.strategy, STRATEGIES)
  fsdp = config.fsdp if config.strategy == "mesh" else 1
  check_groups(devices, fsdp)
  return fsdp


def shardings(config: Any, devices: int, state: PyTree) -> PyTree:
  """How the strategy of a config places each leaf of a state on so many devices, which need not be here: NamedShardings.

  Raises UserError as group_size.
  """
  group = group_size(config, devices)
  return _state_shardings(AbstractMesh((devices // group, group), ("data", "fsdp")), state)


def _state_shardings(grid: Mesh | AbstractMesh, state: PyTree) -> PyTree:
  """Large leaves split over `fsdp` along their largest divisible dimension; all else replicated."""
  count = grid.shape["fsdp"]

  def sharding(leaf: Any) -> NamedSharding:
    divisible = [axis for axis, size in enumerate(leaf.shape) if size % count == 0]
    if count == 1 or leaf.size < SMALL_LEAF or not divisible:
      return NamedSharding(grid, P())
    largest = max(divisible, key=lambda axis: leaf.shape[axis])
    return NamedSharding(grid, P(*(None,) * largest, "fsdp"))

  return jax.tree.map(sharding, state)


def _run_once(make: Callable[..., PyTree], *given: PyTree, out_shardings: PyTree = None) -> PyTree:
  """make(*given), compiled.  On a CPU without optimisation: drawing parameters runs once, and compiling it well takes longer."""
  options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
  return jax.jit(make, out_shardings=out_shardings, compiler_options=options)(*given)


def _with_sharding(shape: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


# Elements; below this, splitting a leaf costs more in communication than it saves in memory.
SMALL_LEAF = 2**14
STRATEGIES = {"mesh": mesh, "pmap": pmap}


def make(config: Any, batch_size: int) -> Strategy:
  """The strategy that config.parallel.strategy names.  Raises UserError for an unknown one."""
  if config.strategy not in STRATEGIES:
    raise unknown("parallel strategy", config.strategy, STRATEGIES)
  return STRATEGIES[config.strategy](config, batch_size)
