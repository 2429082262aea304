"""What averaging the parameters gives, and from which update on: digits, one training for each learning rate decay.

python -m benchmarks.ema --judge checkpoints/classifier_clean [--decay cosine constant] [--num 1000]

An average only watches, so that one run of configs/dit_cfg.py carries them all: several decays, each started at several
updates (a copy of the parameters until then), beside the parameters themselves. At each step of --at, the last of which ends
the run, --num images with balanced labels are drawn from each, always of the same noise; scored are the Frechet distance to the
digits in the features of --judge (a run of configs/classifier_cfg.py:clean) and the share that it takes for the class asked for.
The images are not guided, unless --guidance says so: guidance hides what the averages differ in.

Prints a table for each decay of the learning rate and draws --out. In brackets: a copy, as that average has not begun.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from configs import dit_cfg
from jaxdiff import data, draw, optim, parallel, platform, reporting, tasks
from jaxdiff.evaluation import drawn, features, figures, gather, images, reference
from jaxdiff.train_step import make_train_step
from jaxdiff.types import PyTree

BATCH = 100  # images drawn at a time
COLORS = {0.995: "#1f6fb4", 0.999: "#d98a1f", 0.9999: "#c0392b"}  # by an average's decay
STYLES = {0: ":", 100: "-", 500: "--", 1000: "-."}  # by its start


class Average(NamedTuple):
  """One average of the parameters."""

  decay: float
  start: int  # updates

  def __str__(self) -> str:
    return f"{self.decay:g} from {self.start}"


AVERAGES = (
  *(Average(0.995, start) for start in (0, 100, 500, 1000)),
  *(Average(decay, start) for decay in (0.999, 0.9999) for start in (0, 500)),
)


class Point(NamedTuple):
  """How good the images of one set of parameters are."""

  frechet: float
  accuracy: float
  is_copy: bool = False  # of the parameters: the average has not begun

  def __str__(self) -> str:
    text = f"{self.frechet:.3g}, {100 * self.accuracy:.1f}%"
    return f"({text})" if self.is_copy else text


Curves = dict[Average | None, list[Point]]  # a point for each step of --at; None: the parameters themselves


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--judge", type=Path, required=True, metavar="DIR")
  parser.add_argument("--decay", nargs="+", default=["cosine", "constant"], help="of the learning rate")
  parser.add_argument("--at", type=int, nargs="+", default=[300, 600, 1200, 1800], help="steps, rising")
  parser.add_argument("--num", type=int, default=1000, help="images of each set of parameters")
  parser.add_argument("--sampler", default="dpmpp_2m")
  parser.add_argument("--steps", type=int, default=20, help="of the sampler")
  parser.add_argument("--guidance", type=float, default=1.0)
  parser.add_argument("--out", type=Path, default=Path("docs/images/ema.png"))
  flags = parser.parse_args()
  platform.configure()
  reporting.setup_logging()
  found = {}
  for decay in flags.decay:
    found[decay] = curves(configured(flags, decay), flags.at)
    print(f"\nlearning rate: {decay}\n\n{table(found[decay], flags.at)}\n", flush=True)
  plot(found, flags.at, flags.out)


def configured(flags: argparse.Namespace, decay: str) -> Any:
  """The digits' config with the settings of this benchmark."""
  config = dit_cfg.get_config()
  config.optim.decay = decay
  config.train.steps = flags.at[-1]
  config.sample.update({"sampler": flags.sampler, "steps": flags.steps, "guidance": flags.guidance})
  config.sample.ema = False  # each average is put in the parameters' place
  config.eval.num, config.eval.features = flags.num, f"classifier:{flags.judge}"
  draw.check(config)
  return config


def curves(config: Any, at: list[int]) -> Curves:
  """Trains once and scores the images of all parameters at each of these steps."""
  tx = optax.chain(tasks.optimizer(config), *map(transform, AVERAGES))
  task, strategy = tasks.make(config, tx), parallel.mesh(config.parallel, BATCH)
  extractor = features.load(config.eval.features, "--judge")
  extractor.check(images.shape(config.data))
  real = reference.of_split(config, config.data.split, extractor, None)._replace(kept=None)
  drawing = draw.make_draw(config, task, strategy.place_rows)
  label = drawn.labels(config, config.eval.num)

  def scored(state: Any, params: PyTree) -> Point:
    batches = drawn.in_memory(drawing, state.replace(params=params), label, BATCH)()
    told = figures.score(gather.gather(batches, len(label), extractor, lambda _, seen: seen.logits), real)
    return Point(told["frechet"], told["accuracy"])

  found: Curves = {average: [] for average in (None, *AVERAGES)}
  for step, state in states(config, task, tx, strategy, at):
    raw = scored(state, state.params)
    found[None].append(raw)
    for average, kept in zip(AVERAGES, state.opt_state[1:], strict=True):
      has_begun = step > average.start
      found[average].append(scored(state, kept.ema_params) if has_begun else raw._replace(is_copy=True))
  return found


def transform(average: Average) -> optax.GradientTransformation:
  return optim.params_ema(average.decay, average.start)


def states(
  config: Any, task: Any, tx: optax.GradientTransformation, strategy: parallel.Strategy, at: list[int]
) -> Iterator[tuple[int, Any]]:
  """(step, state) of one run after each of these steps; a state is good until the next is asked for."""
  source = data.load(config.data.source, config.data.split)
  stream = data.stream(source, config.data, batch_size=config.train.batch_size, seed=config.seed)
  state = strategy.init(lambda: tasks.initial_state(config, task))
  with contextlib.closing(data.device_prefetch(stream, strategy.place_batch)) as batches:
    batch = next(batches)
    step = strategy.lower(make_train_step(task, tx), state, batch).compile()
    with reporting.progress(at[-1]) as bar:
      for number in range(1, at[-1] + 1):
        state, measured = step(state, batch)
        batch = next(batches)
        jax.block_until_ready(measured)
        bar.update()
        if number in at:
          yield number, state


def table(found: Curves, at: list[int]) -> str:
  """Markdown: a row for each set of parameters, distance and accuracy at each step."""
  head = ["average: decay, from update", *(f"step {step:,}" for step in at)]
  rows = [[str(average or "none"), *map(str, points)] for average, points in found.items()]
  return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def plot(found: dict[str, Curves], at: list[int], path: Path) -> None:
  """Frechet distance over the step, a picture for each decay of the learning rate."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(4.6 * len(found) + 1.8, 4.0), dpi=120, layout="constrained")
  axes = np.atleast_1d(figure.subplots(1, len(found), sharey=True))
  for axis, (decay, own) in zip(axes, found.items(), strict=True):
    for average, points in own.items():
      begun = [(step, p.frechet) for step, p in zip(at, points, strict=True) if not p.is_copy]
      color, style = (COLORS[average.decay], STYLES[average.start]) if average else ("#222222", "-")
      steps, distances = zip(*begun, strict=True) if begun else ((), ())
      axis.plot(steps, distances, style, color=color, marker="o", markersize=4, label=str(average or "none"))
    axis.set(yscale="log", xlabel="step", xticks=at, title=f"learning rate: {decay}")
    axis.grid(color="#e6e6e6")
  axes[0].set_ylabel("Frechet distance, classifier features (log)")
  handles, names = axes[0].get_legend_handles_labels()
  figure.legend(handles, names, loc="outside right upper", title="average", fontsize=8)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path)


if __name__ == "__main__":
  platform.with_huge_pages()
  main()
