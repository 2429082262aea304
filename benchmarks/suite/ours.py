"""jaxdiff's side: the project's own train step, sampler, data, loop and checkpoints, each as a Runner.

Where ml_collections is missing, wheels.stand_in comes before the import of this module.
"""

from __future__ import annotations

import collections
import functools
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks.suite.cases import Case
from benchmarks.suite.runner import Runner, resident_memory, scratch
from configs import base, controlnet_cfg, distill_cfg
from jaxdiff import configuration, parallel, tasks
from jaxdiff.diffusion import guidance, samplers, schedules
from jaxdiff.flops import count, counted
from jaxdiff.train_step import TrainStep, make_train_step
from jaxdiff.types import Cond

GUIDANCE = 2.0
WINDOW = 50  # steps of a run that are timed together, after which it reports, as by default
MATMULS = {"cpu": ((1024, 1), (2048, 1)), "gpu": ((4096, 20), (8192, 20))}  # (size, how many in a row)
PICTURES, PICTURE_SIZE, BATCHES = 512, 80, 24  # of the folder that is read; how many batches in a row


def make(case: Case) -> Runner:
  """The case, done by jaxdiff."""
  return MAKERS[case.kind](case)


def config(case: Case) -> Any:
  """The config of a case: that of its task, with its network and sizes."""
  configs = {"control": controlnet_cfg.get_config, "distill": distill_cfg.get_config}
  c = configs.get(case.kind, base.get_config)()
  c.model = ConfigDict(case.model | {"dtype": case.dtype, "attention": "auto", "remat": "none"})
  c.data.image_size, c.data.channels = case.image_size, case.model["channels"]
  c.train.batch_size, c.train.steps = case.batch_size, case.steps or 1000
  if case.kind == "control":
    c.control.blocks = case.blocks
  if case.kind == "distill":
    c.train.steps = sum(tasks.stages(c))
  configuration.override(c, [f"--config.{change}" for change in case.changes])
  given = {f"model.{key}": (value, c.model[key]) for key, value in case.model.items()} | {
    "data.image_size": (case.image_size, c.data.image_size),
    "train.batch_size": (case.batch_size, c.train.batch_size),
  }
  for key, (value, asked) in given.items():
    if asked != value:
      raise SystemExit(
        f"{key}={asked}: this case and its rivals have {value}, which --set cannot change for ours alone (--batch changes that of all)."
      )
  return c


def host_batch(case: Case, c: Any) -> dict[str, np.ndarray]:
  """A batch as the data pipeline gives it, of noise."""
  rng, classes = np.random.default_rng(0), max(1, case.model["num_classes"])
  values = {
    "image": lambda like: rng.integers(0, 256, like.shape, like.dtype),
    "label": lambda like: np.arange(like.size, dtype=like.dtype) % classes,
    "index": lambda like: np.arange(like.size, dtype=like.dtype),
    "hint": lambda like: rng.integers(0, 2, like.shape, like.dtype) * np.uint8(255),
  }
  return {name: values[name](like) for name, like in tasks.abstract_batch(c, case.batch_size).items()}


def one_device(case: Case, c: Any) -> parallel.Strategy:
  return parallel.mesh(c.parallel, case.batch_size, jax.devices()[:1])


def train_step(c: Any, task: Any, tx: Any) -> TrainStep:
  """The step as train.py makes it of a config."""
  return make_train_step(task, tx, c.optim.skip_norm, c.train.microbatches)


def compiled_step(case: Case) -> tuple[Callable[..., Any], Any, Any, dict[str, Any]]:
  """(the compiled train step, state, batch, facts), as train.py makes them."""
  c = config(case)
  tx = tasks.optimizer(c)
  task, strategy = tasks.make(c, tx), one_device(case, c)
  state = strategy.init(functools.partial(tasks.initial_state, c, task))
  batch = strategy.place_batch(host_batch(case, c))
  step, facts = compiled(case, lambda: strategy.lower(train_step(c, task, tx), state, batch))
  return step, state, batch, facts | {"parameters": size(state.params)}


def abstract(case: Case) -> tuple[Any, ...]:
  """A case's computation as (function, *arguments), the state by its shapes."""
  c = config(case)
  tx = tasks.optimizer(c)
  task, batch = tasks.make(c, tx), host_batch(case, c)
  state = jax.eval_shape(functools.partial(tasks.initial_state, c, task))
  if case.kind == "sample":
    return drawing(case, task), state.params, np.int32(2), batch["label"]
  return train_step(c, task, tx), state, batch


def lowered(case: Case) -> jax.stages.Lowered:
  """What the compiler is given of a case's computation, from shapes alone."""
  function, *args = abstract(case)
  return (
    function.lower(*args) if case.kind == "sample" else one_device(case, config(case)).lower(function, *args)
  )


def drawing(case: Case, task: Any) -> Any:
  """The jitted function (params, seed, label) -> images: DDIM with classifier-free guidance."""
  times = samplers.time_grid(case.steps)

  @jax.jit
  def draw(params: Any, seed: int, label: Any) -> Any:
    key = jax.random.key(seed)
    z = jax.random.normal(key, case.shape)
    guided = guidance.classifier_free(task.denoiser(params, None), GUIDANCE)
    return samplers.sample(samplers.ddim(), schedules.cosine(), guided, key, z, times, Cond(label))

  return draw


def compiled(case: Case, lower: Callable[[], jax.stages.Lowered]) -> tuple[Any, dict[str, Any]]:
  """(what a program compiles to, facts): the seconds that took, FLOPs by the compiler's account."""
  start = time.perf_counter()
  given = lower()
  program = given.compile()
  facts: dict[str, Any] = {"compile_s": time.perf_counter() - start}
  facts |= {"flops_lowered": count(given, *abstract(case)), "flops_compiled": counted(program)}
  return program, facts


def train(case: Case) -> Runner:
  """Forward, backward, clipping, AdamW and EMA: the step that every run takes."""
  step, state, batch, facts = compiled_step(case)

  def run() -> dict[str, float]:
    nonlocal state
    state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    return {}

  return Runner(run, facts, peak_memory, functools.partial(matmul_rate, case.dtype))


def sample(case: Case) -> Runner:
  """Noise to images, as one program."""
  c = config(case)
  task = tasks.make(c, tasks.optimizer(c))
  # Parameters alone: optimizer and average would count as memory.
  params = one_device(case, c).init(lambda: tasks.initial_state(c, task).params)
  label = jnp.asarray(host_batch(case, c)["label"])
  program, facts = compiled(case, lambda: drawing(case, task).lower(params, 2, label))

  def run() -> dict[str, float]:
    program(params, 2, label).block_until_ready()
    return {}

  facts["parameters"] = size(params)
  return Runner(run, facts, peak_memory, functools.partial(matmul_rate, case.dtype))


def data(case: Case) -> Runner:
  """JPEG files to batches with Canny hints: decode, resize, random crop and flip, edges; host alone."""
  from jaxdiff import data as pipeline

  folder, c = scratch(), base.get_config()
  write_pictures(folder)
  c.data.source, c.data.hint, c.data.in_memory = f"folder:{folder}", "canny", False
  c.data.image_size, c.data.channels = case.image_size, case.model["channels"]
  c.data.random_crop = c.data.random_flip = True
  source = pipeline.load(c.data.source, c.data.split, skip_unreadable=False)

  def run() -> dict[str, float]:
    # A stream of its own each time: one that goes on has read ahead while nobody asked.
    batches = pipeline.stream(source, c.data, batch_size=case.batch_size, seed=0)
    start = time.perf_counter()
    for _ in range(BATCHES):
      next(batches)
    seconds = time.perf_counter() - start
    batches.close()
    return {"seconds": seconds / BATCHES}

  return Runner(run, {"threads": c.data.threads}, resident_memory, None)


def write_pictures(folder: Path) -> None:
  """A folder of scenes as JPEG files, two classes."""
  import cv2

  from jaxdiff import data as pipeline

  source = pipeline.load(f"shapes:{PICTURE_SIZE}", "train", skip_unreadable=False)
  examples = source.take(np.arange(PICTURES))
  for i, example in enumerate(examples):
    path = folder / str(i % 2) / f"{i}.jpg"
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), example["image"][..., ::-1])


def loop(case: Case) -> Runner:
  """Seconds of a step inside a run, with data, metrics and logs, and its `overhead`.

  After each window of the run's steps as many follow of the same step on one batch that lies on the device, and nothing else,
  where a run would show pictures: its clock does not count these.  The overhead is the median of the windows, each beside the
  one that follows.  In two processes, or a minute apart, the same step differs by more than the loop costs.
  """
  from jaxdiff import previews
  from jaxdiff import train as trainer
  from jaxdiff.metrics import RUN_AHEAD
  from jaxdiff.reporting import Shown

  if not jax.config.jax_compilation_cache_dir:  # as `main` has one
    jax.config.update("jax_compilation_cache_dir", str(scratch()))
  c = config(case)
  c.data.source = "digits"
  window = min(WINDOW, max(1, case.steps // 3))
  c.train.log_every, c.train.sample_every, c.train.checkpoint_every = 10**9, window, 10**9
  c.parallel.fsdp = 1
  step, state, batch, facts = compiled_step(case)
  batch = jax.device_put(batch)
  alone: list[float] = []

  def show(given: Any, number: int, is_last: bool = False) -> Any:
    nonlocal state
    del number, is_last
    jax.block_until_ready(given)
    start, queued = time.perf_counter(), collections.deque[Any]()
    for _ in range(window):
      state, metrics = step(state, batch)
      queued.append(metrics["loss"])
      if len(queued) > RUN_AHEAD:  # as a run, which is no slower for it
        queued.popleft().block_until_ready()
    jax.block_until_ready(state)
    alone.append((time.perf_counter() - start) / window)
    return Shown({}, {})

  part = previews.Part(lambda *run: show, lambda config, task, number: number % window == 0)

  def run() -> dict[str, float]:
    alone.clear()
    with (
      tempfile.TemporaryDirectory(prefix="jaxdiff-suite-") as folder,
      mock.patch.dict(previews.PREVIEWS, denoise=(part,)),
    ):
      trainer.train(c, Path(folder))
      rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    inside = [case.batch_size / row["images_per_s"] for row in rows]
    overheads = [one / other - 1 for one, other in zip(inside, alone, strict=True)]
    return {"seconds": statistics.median(inside[1:]), "overhead": statistics.median(overheads[1:])}

  return Runner(run, facts, peak_memory, None, warmup=1)


def checkpoint(case: Case) -> Runner:
  """A train state saved with its sums: seconds until it is on disk, and those for which the loop waits."""
  from jaxdiff import checkpoints

  c = config(case)
  task = tasks.make(c, tasks.optimizer(c))
  state = one_device(case, c).init(functools.partial(tasks.initial_state, c, task))
  manager = checkpoints.open_manager(scratch())
  numbers: Iterator[int] = itertools.count(1)

  def run() -> dict[str, float]:
    start = time.perf_counter()
    checkpoints.save(manager, next(numbers), state, {})
    blocked = time.perf_counter() - start
    checkpoints.finish(manager)
    return {"seconds": time.perf_counter() - start, "loop_waits": blocked}

  held = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))
  return Runner(run, {"parameters": size(state.params), "bytes": held}, peak_memory, None)


MAKERS: dict[str, Callable[[Case], Runner]] = {
  "train": train,
  "control": train,
  "distill": train,
  "sample": sample,
  "data": data,
  "loop": loop,
  "checkpoint": checkpoint,
}


def size(params: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def peak_memory() -> int:
  """The most bytes in use: on the device where it tells, else of this process."""
  stats = jax.devices()[0].memory_stats() or {}
  return int(stats["peak_bytes_in_use"]) if "peak_bytes_in_use" in stats else resident_memory()


@functools.cache
def _matmul(dtype: str, side: int) -> tuple[Callable[..., jax.Array], jax.Array]:
  a = jax.random.normal(jax.random.key(0), (side, side)).astype(dtype)
  return jax.jit(jnp.matmul).lower(a, a).compile(), a


def matmul_rate(dtype: str) -> float:
  """FLOP/s of the fastest of a few products of square matrices: what a step's rate is held against."""
  sizes = MATMULS.get(jax.default_backend(), MATMULS["gpu"])
  return max(_rate(dtype, side, number) for side, number in sizes)


def _rate(dtype: str, side: int, number: int, tries: int = 3) -> float:
  product, a = _matmul(dtype, side)
  product(a, a).block_until_ready()
  seconds = []
  for _ in range(tries):
    start = time.perf_counter()
    for _ in range(number):
      out = product(a, a)
    out.block_until_ready()
    seconds.append(time.perf_counter() - start)
  return number * 2.0 * side**3 / min(seconds)
