"""How well control branches obey, whether the label is still obeyed, and what control costs.

python -m benchmarks.controlnet obey checkpoints/controlnet_canny [DIR ...] --judge checkpoints/classifier_shapes_clean
python -m benchmarks.controlnet cost checkpoints/controlnet_canny --base checkpoints/dit_shapes

obey: --num images by the hints of the held-out examples and their labels, drawn as config.sample of each run says, scored
against the hint (scores.fidelity) without the branch (the floor), with it, and of the real images (the ceiling); "of the
way" is (with - without) / (real - without).  The judge, a classifier of clean images, tells how many are of the class that
was asked for.  --scale: how strongly branches act (config.sample.control_scale), --hint_guidance: how far images are drawn
away from the base's (config.sample.hint_guidance), a row for each of both.  --reader: how hints are found where the source
has no detector, as segmentation=FILE.onnx.

cost: milliseconds of a train step of the branch and of its base, in turn, and the peak memory that the compiler plans; and
of drawing a batch without the branch, with it, and with guidance by the hint too.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import turns
from jaxdiff import (
  classifiers,
  configuration,
  control,
  data,
  draw,
  hint_reader,
  parallel,
  platform,
  reporting,
  runs,
  sample,
  steering,
  tasks,
)
from jaxdiff.data import pixels
from jaxdiff.scores.fidelity import FIDELITY
from jaxdiff.tasks import classifier
from jaxdiff.train_step import make_train_step

BATCH = 50


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  kinds = parser.add_subparsers(required=True)
  of_obey = kinds.add_parser("obey")
  of_obey.add_argument("workdirs", type=Path, nargs="+", metavar="DIR")
  of_obey.add_argument("--judge", type=Path, required=True, metavar="DIR")
  of_obey.add_argument("--num", type=int, default=500)
  of_obey.add_argument("--steps", type=int, default=25)
  of_obey.add_argument("--scale", type=float, nargs="+", default=[1.0])
  of_obey.add_argument("--hint_guidance", type=float, nargs="+", default=[1.0])
  of_obey.add_argument("--reader", action="append", default=[], metavar="HINT=FILE")
  of_obey.set_defaults(run=obey)
  of_cost = kinds.add_parser("cost")
  of_cost.add_argument("workdir", type=Path, metavar="DIR")
  of_cost.add_argument("--base", type=Path, required=True, metavar="DIR")
  of_cost.add_argument("--rounds", type=int, default=7)
  of_cost.set_defaults(run=cost)
  flags = parser.parse_args()
  platform.configure()
  reporting.setup_logging()
  flags.run(flags)


def obey(flags: argparse.Namespace) -> None:
  judge = accuracy_by(flags.judge)
  readers = dict(reader.split("=", 1) for reader in flags.reader)
  print(
    "| run | hint | scale | hint guidance | without | with | real | of the way | class without | class with |"
  )
  print("| --- " * 10 + "|")
  for workdir in flags.workdirs:
    ways = ((0.0, 1.0), *itertools.product(flags.scale, flags.hint_guidance))
    hint, real, found = obeyed(workdir, ways, flags.num, flags.steps, readers, judge)
    without, class_without = next(found)
    for way, (obedience, class_with) in zip(ways[1:], found, strict=True):
      asked = " | ".join(f"{figure:g}" for figure in way)
      figures = " | ".join(f"{figure:.3f}" for figure in (without, obedience, real))
      share = (obedience - without) / (real - without)
      classes = f"{100 * class_without:.1f}% | {100 * class_with:.1f}%"
      print(f"| {workdir.name} | {hint} | {asked} | {figures} | {100 * share:.0f}% | {classes} |", flush=True)


def obeyed(
  workdir: Path,
  ways: Sequence[tuple[float, float]],
  num: int,
  steps: int,
  readers: dict[str, str],
  judge: Callable[..., float],
) -> tuple[str, float, Iterator[tuple[float, float]]]:
  """(the hint, the real images' fidelity, for each way (fidelity, share in class)), all from the same noise.

  ways: (control_scale, hint_guidance) of config.sample.
  """
  config = configuration.of_run(workdir)
  config.sample.hint, config.sample.steps = "data", steps
  hint = config.data.hint.partition("(")[0]
  if hint in readers:
    config.control.reader = f"{hint}(onnx={readers[hint]!r}, scaling=unit)"
  number, label = np.arange(num), sample.labels(config, num)
  asked, reader, real = (
    control.own_hints(config)(number),
    hint_reader.make_reader(config),
    control.real_images(config, number),
  )
  if reader is None or real is None:
    raise SystemExit(f"{workdir}: no detector finds {hint} in images; give --reader {hint}=FILE.onnx")
  ceiling = FIDELITY[hint](asked, reader(real))  # before minutes of drawing: a reader may not suit

  @functools.cache
  def opened(is_guided_by_hint: bool) -> tuple[Any, draw.Draw]:
    """What is compiled for one scale draws at all others, but for guidance or none."""
    del is_guided_by_hint
    return turns.opened(config, workdir, BATCH)

  def score(scale: float, hint_guidance: float) -> tuple[float, float]:
    config.sample.control_scale, config.sample.hint_guidance = (scale,), hint_guidance
    state, drawing = opened(steering.is_guided_by_hint(config.sample))
    way = f"{workdir.name}, scale {scale:g}, hint guidance {hint_guidance:g}"
    images = sample.draw_shown(drawing, state, label, BATCH, way)
    return FIDELITY[hint](asked, reader(images)), judge(images, label)

  return hint, ceiling, itertools.starmap(score, ways)


def accuracy_by(workdir: Path) -> Callable[[np.ndarray, np.ndarray], float]:
  """The share of images that a classifier of clean images assigns to their label."""
  config = classifiers.read_config(workdir, "--judge")
  params, log_probs = runs.averaged_params(config, workdir), jax.jit(classifier.make_log_probs(config))

  def accuracy(images: np.ndarray, label: np.ndarray) -> float:
    said = log_probs(params, pixels.to_signed(jnp.asarray(images)), jnp.zeros(len(images)))
    return float(np.mean(np.asarray(said).argmax(-1) == label))

  return accuracy


def cost(flags: argparse.Namespace) -> None:
  workdirs, branch = {"base": flags.base, "branch": flags.workdir}, configuration.of_run(flags.workdir)
  steps = {name: trainer(workdir, branch.train.batch_size) for name, workdir in workdirs.items()}
  print("train step", table({name: step for name, (step, _) in steps.items()}, flags.rounds))
  print("planned by the compiler, MiB:", {name: round(memory / 2**20) for name, (_, memory) in steps.items()})
  draws = {name: drawer(workdir, branch.sample) for name, workdir in workdirs.items()}
  draws["branch, hint guidance 2"] = drawer(flags.workdir, branch.sample, hint_guidance=2.0)
  print("drawing", table(draws, flags.rounds))


def trainer(workdir: Path, batch_size: int) -> tuple[Callable[[], None], int]:
  """(one train step of a run on so many images, bytes that it needs)."""
  config = configuration.of_run(workdir)
  strategy = parallel.make(config.parallel, batch_size)
  run = runs.restore(config, workdir, strategy)
  source = data.load(config.data.source, config.data.split)
  batch = strategy.place_batch(data.examples(source, config.data, np.arange(batch_size)))
  step = make_train_step(run.task, tasks.optimizer(config))
  compiled = strategy.lower(step, run.state, batch).compile()
  # Of a model file parameters and average are one buffer, which cannot be given away twice.
  kept, memory = [jax.tree.map(jnp.copy, run.state)], compiled.memory_analysis()

  def once() -> None:
    kept[0], metrics = compiled(kept[0], batch)
    jax.block_until_ready(metrics["loss"])

  return once, memory.temp_size_in_bytes + memory.argument_size_in_bytes


def drawer(workdir: Path, asked: Any, hint_guidance: float = 1.0) -> Callable[[], Any]:
  """Draws a batch of a run's images, with the sampler, steps and guidance that are asked for."""
  config = configuration.of_run(workdir)
  config.sample.update({key: asked[key] for key in ("sampler", "steps", "grid", "guidance")})
  config.sample.hint = "data" if config.task == "controlnet" else ""
  config.sample.hint_guidance = hint_guidance
  return turns.drawer(config, workdir, np.zeros(BATCH, np.int32))


def table(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, str]:
  """Milliseconds of each way, in turn, and their ratios to the base's: medians and quartiles of the rounds."""
  seconds = turns.timed(ways, rounds)
  found = {}
  for name, times in seconds.items():
    found[name] = f"{1000 * np.median(times):.0f} ms"
    if name != "base":
      ratio = turns.quartiles(times / seconds["base"])
      found[name] += ", {1:.2f} ({0:.2f} to {2:.2f}) of the base's".format(*ratio)
  return found


if __name__ == "__main__":
  platform.with_huge_pages()
  main()
