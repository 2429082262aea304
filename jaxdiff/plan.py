"""--mode plan: what a run takes on devices that are not here. Memory by what it is for, FLOPs, the largest batch that fits.

No array is made. The state's shapes are those of jax.eval_shape, placed as parallel.py places them. What a step needs beside
the state (activations, gradients, temporaries) is what the compiler plans for it, ahead of time, for as many devices: real ones
where they are here, else the CPU, which passes for them. (Where they share no state, config.parallel.fsdp=1, each does what
one alone would, and one is compiled for.) It is compiled for the config's batch, which gives the figure, and for one near the
largest that fits. A line through both leads to it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax

from jaxdiff import flops, optim, parallel, platform, tasks
from jaxdiff.errors import UserError
from jaxdiff.train_step import TrainStep, check_microbatches, make_train_step
from jaxdiff.types import PyTree

GIB = 2**30
FURTHEST = 64  # times the config's batch: the largest that is compiled
NEAR = 1.25  # times a batch that is compiled: as far as the line through it is trusted
TRIES = 5  # batches that are compiled, at most; mostly two


class Line(NamedTuple):
  """Bytes of a device that are needed beside the state, by the examples on it."""

  fixed: float
  each: float
  through: tuple[int, int]  # where it was measured

  def end(self, room: float) -> float:
    """How many examples fit into so many bytes."""
    return (room - self.fixed) / self.each


class Plan(NamedTuple):
  """What a run takes."""

  title: str
  parameters: int  # those that are trained
  held: dict[str, float]  # bytes of a device, by what they are for
  memory: float  # bytes of a device that it may take
  flops: float | None  # of a step, on all devices; None where this compiler does not count
  devices: int
  batch_size: int
  largest: int  # batch that fits, over all devices; 0: none
  remarks: tuple[str, ...]


def make(config: Any) -> Plan:
  """Plans a run of a config on config.plan.devices devices.

  Raises UserError for settings of config.plan that cannot be, for a batch or a mesh that cannot be split over the devices, and
  for whatever keeps the model from being built.
  """
  count, budget, microbatches = config.plan.devices, config.plan.memory_gib * GIB, config.train.microbatches
  group = _checked_group(config)
  devices = devices_for(count if group > 1 else 1)
  compiled, remarks = _compilable(config, devices)
  size = config.train.batch_size
  state, _ = abstract(_changed(compiled, {"model.scan": config.model.get("scan")}))
  held = state_bytes(state, parallel.shardings(config.parallel, count, state))
  room, share = budget - sum(held.values()), size // count

  like_state, step = abstract(compiled)

  @functools.cache
  def measure(examples: int) -> float:
    """Bytes of a device beside the state, with so many examples on each."""
    batch = tasks.abstract_batch(config, examples * len(devices))
    return tree_bytes(batch) / len(devices) + step_bytes(step, like_state, batch, devices, group)

  with ThreadPoolExecutor(1) as pool:  # beside the compiler, which does not hold Python's lock
    counted = pool.submit(step_flops, compiled)
    line = grown(measure, share, room, microbatches)
  batch = tree_bytes(tasks.abstract_batch(config, share))
  held |= {"batch": batch, "activations": measure(share) - batch}
  return Plan(
    title=_title(config, group),
    parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    held=held,
    memory=budget,
    flops=counted.result(),
    devices=count,
    batch_size=size,
    largest=max(0, int(line.end(room)) // microbatches * microbatches) * count,
    remarks=(_source(share, line, devices), *remarks),
  )


def abstract(config: Any) -> tuple[Any, TrainStep]:
  """The shapes of a run's state, and its train step."""
  tx = tasks.optimizer(config)
  task = tasks.make(config, tx)
  state = jax.eval_shape(functools.partial(tasks.initial_state, config, task))
  return state, make_train_step(task, tx, config.optim.skip_norm, config.train.microbatches)


def state_bytes(state: Any, places: PyTree) -> dict[str, float]:
  """Bytes of a state on one device, by what they are for; `frozen` only where there is a base or a teacher."""

  def on_a_device(leaf: Any, place: jax.sharding.NamedSharding) -> int:
    return math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize

  sizes = jax.tree.map(on_a_device, state, places)
  add = lambda tree: sum(jax.tree.leaves(tree))
  average = add(optim.ema_params(sizes))
  found: dict[str, float] = {
    "params": add(sizes.params),
    "optimizer": add(sizes.opt_state) - average,
    "EMA": average,
  }
  # A step's number and a key are counted with it where there is nothing frozen.
  rest = add(sizes) - sum(found.values())
  if rest > sum(leaf.dtype.itemsize for leaf in (state.step, state.rng)):
    return found | {"frozen": rest}
  return found | {"optimizer": found["optimizer"] + rest}


def step_bytes(step: TrainStep, state: Any, batch: PyTree, devices: Sequence[jax.Device], fsdp: int) -> float:
  """Bytes of a device that the compiler plans for a step on all of these beside state and batch; so many share a state."""
  strategy = parallel.mesh(SimpleNamespace(fsdp=fsdp), batch["label"].size, devices)
  lowered = strategy.lower(step, state, batch)
  # Memory is planned before machine code is made, which need not be good.
  options: dict[str, Any] | None = (
    {"xla_backend_optimization_level": 0} if devices[0].platform == "cpu" else None
  )
  memory = lowered.compile(compiler_options=options).memory_analysis()
  if memory is None:
    raise UserError(
      f"the compiler for {devices[0].platform} does not tell how it plans memory. Use JAX_PLATFORMS=cpu."
    )
  return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


def step_flops(config: Any) -> float | None:
  """FLOPs of a train step over the whole batch, as the compiler counts them before optimisation; None where it does not.

  It counts one turn of a loop, so there is none here: microbatches and model.scan are left out.
  """
  config = _changed(config, {"train.microbatches": 1, "model.scan": False})
  state, step = abstract(config)
  return flops.on_host(step, state, tasks.abstract_batch(config, config.train.batch_size))


def tree_bytes(tree: PyTree) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def text(plan: Plan) -> str:
  """A plan as an aligned table and what it comes to."""
  total = sum(plan.held.values())
  rows = [
    (name, f"{size / GIB:,.3f}", f"{size / total:.0%}", NOTES.get(name, ""))
    for name, size in plan.held.items()
  ]
  rows.append(("total", f"{total / GIB:,.3f}", "", f"of {plan.memory / GIB:g} (config.plan.memory_gib)"))
  table = [f"{name:<14}{size:>12}{share:>6}  {note}".rstrip() for name, size, share, note in rows]
  facts = {
    "parameters": f"{plan.parameters:,}",
    "a step": _flops(plan),
    "largest batch": _largest(plan),
  }
  return "\n".join(
    [
      f"{'plan':<14}{plan.title}",
      f"{'':<14}{'GiB a device':>12}",
      *table,
      *(f"{name:<14}{said}" for name, said in facts.items()),
      _what_dominates(plan),
      *plan.remarks,
    ]
  )


NOTES = {
  "optimizer": "Adam's two moments",
  "EMA": "the average of the parameters",
  "frozen": "the base of a branch, the teacher of a student",
  "activations": "with gradients and temporaries, as the compiler plans them",
}


def _flops(plan: Plan) -> str:
  if plan.flops is None:
    return "FLOPs unknown to this compiler"
  unit, size = ("TFLOP", 1e12) if plan.flops >= 1e12 else ("GFLOP", 1e9)
  return f"{plan.flops / size:,.1f} {unit} for {plan.batch_size} images, {plan.flops / size / plan.devices:,.1f} a device"


def _largest(plan: Plan) -> str:
  if not plan.largest:
    return "none: not one image a device fits"
  return f"{plan.largest:,} images, {plan.largest // plan.devices:,} a device (config.train.batch_size is {plan.batch_size:,})"


def _what_dominates(plan: Plan) -> str:
  name = max(plan.held, key=lambda key: plan.held[key])
  total = sum(plan.held.values())
  if name == "activations":
    less = "config.train.microbatches, config.model.remat or a smaller batch need less"
  else:
    less = "config.parallel.fsdp splits params, optimizer and EMA over devices"
  fits = "It fits" if total <= plan.memory else "It does not fit"
  return f"{fits}. The largest part, {plan.held[name] / total:.0%}, is {NAMES.get(name, name)}: {less}."


NAMES = {"optimizer": "the optimizer", "EMA": "the EMA", "frozen": "what is frozen"}


def _checked_group(config: Any) -> int:
  """How many devices share a state, after what cannot be was told as a UserError."""
  p, t = config.plan, config.train
  if p.devices < 1:
    raise UserError(f"config.plan.devices is {p.devices}; it must be at least 1.")
  if not p.memory_gib > 0:
    raise UserError(f"config.plan.memory_gib is {p.memory_gib:g}; it must be above 0, as 80.")
  group = parallel.group_size(config.parallel, p.devices)
  if t.batch_size < 1:
    raise UserError(f"config.train.batch_size is {t.batch_size}; it must be at least 1.")
  parallel.check_batch_size(t.batch_size, p.devices)
  check_microbatches(t.microbatches, t.batch_size, p.devices)
  return group


def devices_for(count: int) -> Sequence[jax.Device]:
  """So many devices to compile for: those that are here, or else the CPU's, which passes for as many.

  Raises UserError where XLA_FLAGS say that it passes for fewer. Has to run before the first JAX array.
  """
  platform.simulate(count)
  here = jax.devices() if jax.device_count() >= count else jax.devices("cpu")
  if len(here) < count:
    raise UserError(
      f"to compile for {count} devices that share a state (config.parallel.fsdp) the CPU has to pass for as many, and XLA_FLAGS "
      f"let it for {len(here)}. Leave {platform.DEVICES_FLAG} out of them."
    )
  return here[:count]


def _compilable(config: Any, devices: Sequence[jax.Device]) -> tuple[Any, tuple[str, ...]]:
  """The config as these devices' compiler can compile it, and what makes its figures differ from those of others."""
  if devices[0].platform != "cpu":
    return config, ()
  # auto would look at the machine's default device: a GPU, where the CPU passes for more of them than are here
  changes: dict[str, Any] = {"model.attention": "xla"}
  model, remarks = config.model, list[str]()
  if model.dtype != "float32":
    remarks.append(
      f"The CPU's compiler computes {model.dtype} in float32: elsewhere activations take less, down to half."
    )
  if model.attention == "cudnn" or (model.attention == "auto" and model.dtype != "float32"):
    remarks.append("Attention is planned without cuDNN's, which keeps no matrices of tokens by tokens.")
  if model.remat != "none" and "scan" in model:
    changes["model.scan"] = (
      True  # elsewhere the CPU's compiler finds that two parts are alike, and computes them once
    )
    remarks.append(
      "Planned with config.model.scan: the CPU's compiler keeps to config.model.remat only in a loop."
    )
  elif model.remat != "none":
    remarks.append("The CPU's compiler does not keep to config.model.remat: elsewhere activations take less.")
  return _changed(config, changes), tuple(remarks)


def _source(share: int, line: Line, devices: Sequence[jax.Device]) -> str:
  kind = "simulated on the CPU" if devices[0].platform == "cpu" else devices[0].device_kind
  low, high = line.through
  return (
    f"Activations are those of the step compiled for {len(devices)} device(s), {kind}, at {share:,} images a device. The largest "
    f"batch is where a line ends through those at {low:,} and {high:,}."
  )


def _changed(config: Any, values: dict[str, Any]) -> Any:
  """A copy of a config with some values set, where it has the key."""
  copy = config.copy_and_resolve_references()
  for key, value in values.items():
    section, _, leaf = key.partition(".")
    if leaf in copy[section]:
      copy[section][leaf] = value
  return copy


def grown(measure: Callable[[int], float], examples: int, room: float, unit: int) -> Line:
  """Bytes by examples on a device: a line through two points that were measured, mostly `examples` and near the end of `room`.

  What a step takes is a maximum of lines, one for each moment that may be the fullest. So a line is right between two points,
  and beyond them once the last bend is passed: where it ends far from both it is measured again, as in the secant method.
  """
  low, at = (0, 0.0), examples
  for _ in range(TRIES):
    high = (at, measure(at))
    line = _through(low, high)
    end = min(max(int(line.end(room)) // unit, 1) * unit, FURTHEST * examples)
    if low[0] and (end == at or at / NEAR <= line.end(room) <= at * NEAR):
      break
    low, at = high, end if end != at else 2 * at
  return line


def _through(point: tuple[int, float], other: tuple[int, float]) -> Line:
  each = max(1.0, (other[1] - point[1]) / (other[0] - point[0]))
  return Line(point[1] - each * point[0], each, (point[0], other[0]))


def _title(config: Any, group: int) -> str:
  shared = f"{group} share a state (config.parallel.fsdp)" if group > 1 else "each with a whole state"
  return f"{config.name}, batch {config.train.batch_size:,} on {config.plan.devices} devices, {shared}"
