"""Error against the number of evaluations of the denoiser (NFE), for each sampler on the grids that suit it.

python -m benchmarks.samplers [--workdir DIR] [--quick] [--out docs]

On a Gaussian mixture, whose denoiser is known in closed form: how far the deterministic samplers end from the probability
flow, and how far the distribution of the stochastic ones is from the data's.  On a digits model, with the guidance and
threshold of its config: how far the images are from those of the probability flow, and the share that an SVC, trained on
the real digits, assigns to the class asked for.  The model is that of --workdir, trained first if there is none.

Writes samplers.md and images/samplers.png into --out.  Two CPU cores: about 25 min and, where it has to train, 4 more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from benchmarks import digits
from jaxdiff import checkpoints, configuration, optim, parallel, platform, reporting, runs, steering, toy
from jaxdiff.data import pixels
from jaxdiff.diffusion import samplers, schedules
from jaxdiff.tasks import process
from jaxdiff.types import Array, Cond, Denoiser, NoiseSchedule, Sampler

matplotlib.use("Agg")
from matplotlib import pyplot, ticker

Table = dict[str, list[float]]  # name of a method -> a value for each NFE
CONFIG = "configs/dit_cfg.py"


class Method(NamedTuple):
  """A sampler on a grid."""

  sampler: Sampler
  grid: str | Callable[..., np.ndarray]
  evaluations: int = 1  # a step

  def times(self, nfe: int, schedule: NoiseSchedule) -> np.ndarray:
    """The grid for at most nfe evaluations: N of them take N steps, or 2N - 1 of them N steps of heun."""
    return samplers.time_grid((nfe + self.evaluations - 1) // self.evaluations, self.grid, schedule)


# "uniform" is the configs' default; the others take more of their steps where there is little noise.
DETERMINISTIC = {
  "ddim, uniform": Method(samplers.ddim(), "uniform"),
  "ddim, quadratic": Method(samplers.ddim(), "quadratic"),
  "heun, quadratic": Method(samplers.heun(), "quadratic", evaluations=2),
  "heun, karras": Method(samplers.heun(), "karras", evaluations=2),
  "dpmpp_2m, uniform": Method(samplers.dpmpp_2m(), "uniform"),
  "dpmpp_2m, quadratic": Method(samplers.dpmpp_2m(), "quadratic"),
  "dpmpp_2m, log_snr": Method(samplers.dpmpp_2m(), "log_snr"),
  "dpmpp_3m, log_snr": Method(samplers.dpmpp_3m(), "log_snr"),
  "unipc, quadratic": Method(samplers.unipc(), "quadratic"),
  "unipc, log_snr": Method(samplers.unipc(), "log_snr"),
}
STOCHASTIC = {
  "ddim(eta=0.5), uniform": Method(samplers.ddim(0.5), "uniform"),
  "ddpm, uniform": Method(samplers.ddpm(), "uniform"),
  "dpmpp_sde_2m, uniform": Method(samplers.dpmpp_sde_2m(), "uniform"),
  "dpmpp_sde_2m, quadratic": Method(samplers.dpmpp_sde_2m(), "quadratic"),
}


class Sizes(NamedTuple):
  """How much is drawn."""

  nfe: tuple[int, ...] = (5, 8, 12, 18, 25, 50, 100)  # distances
  nfe_classified: tuple[int, ...] = (5, 10, 20, 50)
  points: int = 2000  # of the mixture, followed along the flow
  drawn: int = 100_000  # of the mixture, compared as a distribution
  flow_steps: int = 10_000  # of the mixture's reference
  images: int = 100  # followed along the flow
  classified: int = 500
  image_flow_steps: int = 1000  # of the images' reference
  train: tuple[str, ...] = ()  # overrides


QUICK = Sizes(
  nfe=(5, 20),
  nfe_classified=(5,),
  points=200,
  drawn=5000,
  flow_steps=1000,
  images=10,
  classified=20,
  image_flow_steps=100,
  train=("--config.train.steps=200",),
)


class Problem(NamedTuple):
  """What is solved: a denoiser, and a way to start it."""

  schedule: NoiseSchedule
  denoise: Denoiser
  eps: Array  # [B,H,W,C], z at the first time t is sigma_t eps
  cond: Cond

  def solve(self, method: Method, times: np.ndarray) -> Array:
    @jax.jit
    def run(eps: Array, times: Array, cond: Cond) -> Array:
      z = self.schedule.sigma(times[0]) * eps
      return samplers.sample(method.sampler, self.schedule, self.denoise, jax.random.key(1), z, times, cond)

    return run(self.eps, jnp.asarray(times, self.eps.dtype), self.cond)

  def first(self, count: int) -> Problem:
    return self._replace(eps=self.eps[:count], cond=Cond(self.cond.label[:count]))


COMPONENTS, RADIUS, STD = 8, 1.0, 0.1


def circle() -> toy.Mixture:
  """The mean over k of N(m_k, STD^2 I), m_k f64[1,1,2] evenly spaced on a circle in the plane; one label for all."""
  angle = 2 * np.pi * np.arange(COMPONENTS) / COMPONENTS
  means = RADIUS * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
  return toy.Mixture(means.reshape(-1, 1, 1, 2), np.zeros(COMPONENTS, np.int32), STD)


def circle_draws(count: int, seed: int) -> np.ndarray:
  """Exact draws of the data, f64[count,2]."""
  return toy.draw(circle(), count, seed)[0].reshape(-1, 2)


def sliced_distance(a: np.ndarray, b: np.ndarray, directions: int = 32) -> float:
  """The mean over directions of the plane of the Wasserstein-1 distance between projections; a, b: [N,2]."""
  angle = np.pi * np.arange(directions) / directions
  lines = np.stack([np.cos(angle), np.sin(angle)])
  return float(np.abs(np.sort(a @ lines, axis=0) - np.sort(b @ lines, axis=0)).mean())


def rms(a: Array, b: Array) -> float:
  return float(jnp.sqrt(jnp.mean((a - b) ** 2)))


def whole_range(num_steps: int, schedule: NoiseSchedule) -> np.ndarray:
  """A grid even in log-SNR over all of the cosine schedule, where the grid log_snr leaves out both ends."""
  return np.append(schedules.time_of_log_snr(schedule, np.linspace(-20, 19.9, num_steps)), 0.0)


MIXTURE_FLOW = Method(samplers.dpmpp_3m(), whole_range)
IMAGE_FLOW = Method(
  samplers.dpmpp_2m(), "uniform"
)  # a threshold has kinks, where a third order gains nothing


def flow(problem: Problem, method: Method, num_steps: int) -> tuple[Array, float]:
  """(end points of the probability flow, their RMS distance from those of half the steps)."""
  fine, coarse = (
    problem.solve(method, method.times(n, problem.schedule)) for n in (num_steps, num_steps // 2)
  )
  return fine, rms(fine, coarse)


def distances(problem: Problem, reference: Array, nfe: tuple[int, ...]) -> Table:
  """RMS distance of each deterministic method's end points to the reference."""
  table: Table = {}
  for name, method in DETERMINISTIC.items():
    ends = [problem.solve(method, method.times(n, problem.schedule)) for n in nfe]
    table[name] = [rms(end, reference) for end in ends]
    report(name, table[name])
  return table


def mixture(sizes: Sizes) -> tuple[Table, float, Table]:
  """(distances to the flow, that of the reference from a coarser one, distances between distributions)."""
  schedule = schedules.cosine()
  eps = jax.random.normal(jax.random.key(0), (sizes.drawn, 1, 1, 2), jnp.float64)
  every = Problem(schedule, toy.denoiser(circle(), schedule), eps, Cond(jnp.zeros(sizes.drawn, jnp.int32)))
  some = every.first(sizes.points)
  reference, accuracy = flow(some, MIXTURE_FLOW, sizes.flow_steps)
  to_flow = distances(some, reference, sizes.nfe)

  data = circle_draws(sizes.drawn, seed=0)
  exact = np.median([sliced_distance(circle_draws(sizes.drawn, seed), data) for seed in range(1, 6)])
  to_data: Table = {"exact draws": [float(exact)] * len(sizes.nfe)}
  for name, method in {"ddim, uniform": DETERMINISTIC["ddim, uniform"], **STOCHASTIC}.items():
    ends = [every.solve(method, method.times(n, schedule)) for n in sizes.nfe]
    to_data[name] = [sliced_distance(np.asarray(end).reshape(-1, 2), data) for end in ends]
    report(name, to_data[name])
  return to_flow, accuracy, to_data


def load(workdir: Path, count: int) -> tuple[Any, Problem]:
  """(config, guided denoiser and start noise) of the newest checkpoint of a workdir."""
  config = configuration.of_run(workdir)
  run = runs.restore(config, workdir, parallel.mesh(config.parallel, jax.device_count()))
  if run.task.denoiser is None:
    raise SystemExit(f"there is no model that draws images in {str(workdir)!r}.")
  schedule, s = process.build_schedule(config.diffusion), config.sample
  steer = steering.make(config, schedule)
  denoise = run.task.denoiser(optim.ema_params(run.state) if s.ema else run.state.params, run.state)
  denoise = steer.wrap(denoise, steer.values())
  shape = (count, config.data.image_size, config.data.image_size, config.data.channels)
  eps = jax.random.normal(jax.random.key(s.seed), shape)
  return config, Problem(schedule, denoise, eps, Cond(jnp.arange(count, dtype=jnp.int32) % 10))


def of_digits(problem: Problem, sizes: Sizes) -> tuple[Table, float, Table]:
  """(distances to the flow, that of the reference from a coarser one, shares of the asked class)."""
  some = problem.first(sizes.images)
  reference, accuracy = flow(some, IMAGE_FLOW, sizes.image_flow_steps)
  to_flow = distances(some, reference, sizes.nfe)

  shares: Table = {}
  for name, method in {**DETERMINISTIC, **STOCHASTIC}.items():
    ends = [problem.solve(method, method.times(n, problem.schedule)) for n in sizes.nfe_classified]
    images = [np.asarray(pixels.to_uint8(end)).reshape(len(end), -1) / 255 * 16 for end in ends]
    shares[name] = [digits.accuracy(image, np.asarray(problem.cond.label)) for image in images]
    report(name, shares[name])
  return to_flow, accuracy, shares


def report(name: str, values: list[float]) -> None:
  print(f"{name:28}", *(f"{value:.2e}" for value in values), file=sys.stderr, flush=True)


def markdown(table: Table, nfe: tuple[int, ...], form: Callable[[float], str]) -> str:
  """A table with a row for each method and a column for each NFE."""
  lines = ["| NFE | " + " | ".join(map(str, nfe)) + " |", "| --- |" + " ---: |" * len(nfe)]
  for name, values in table.items():
    lines.append(f"| {name} | " + " | ".join(map(form, values)) + " |")
  return "\n".join(lines)


STYLES = {  # by sampler: one of Okabe and Ito's colours, which the colour-blind can tell apart, and a marker
  "ddim": ("#000000", "o"),
  "heun": ("#E69F00", "s"),
  "dpmpp_2m": ("#0072B2", "^"),
  "dpmpp_3m": ("#D55E00", "D"),
  "unipc": ("#009E73", "v"),
}
LINES = {  # by grid
  "uniform": "-",
  "quadratic": "-.",
  "karras": ":",
  "log_snr": "--",
}


def plot(path: Path, panels: dict[str, Table], nfe: tuple[int, ...]) -> None:
  """A panel for each table, both axes logarithmic."""
  figure, all_axes = pyplot.subplots(1, len(panels), figsize=(12, 5.2), layout="constrained")
  for axes, (title, table) in zip(all_axes, panels.items(), strict=True):
    for name, values in table.items():
      sampler, grid = name.split(", ")
      colour, marker = STYLES[sampler]
      axes.loglog(nfe, values, LINES[grid], color=colour, marker=marker, markersize=5, label=name)
    axes.set(title=title, xlabel="evaluations of the denoiser (NFE)", ylabel="RMS distance to the flow")
    axes.set_xticks(nfe, labels=map(str, nfe))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, handlelength=3.5)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=110)


PAGE = """\
# Samplers: error against evaluations

Made by `{command}` (JAX {version}).

In short: `dpmpp_2m` or `unipc` in 10 to 20 steps, `ddim` in 50, `ddpm` in all steps of its table. A share of right classes near 100% in five
steps is no merit: guided images of few steps are typical and alike. What few steps cost shows in the distances.

NFE is the number of evaluations of the denoiser; a guided one counts once. N steps take N of them, but N steps of
`heun` take 2N - 1: it gets the most steps that stay within a column's number. After the comma stands the grid
(`jaxdiff/diffusion/grids.py`). `euler` and `dpmpp_1` are `ddim` by other names, and `euler_ancestral` is `ddpm`.

![error against evaluations](images/samplers.png)

## A Gaussian mixture, exact denoiser

{components} components of standard deviation {std} on a circle of radius {radius} in the plane; cosine schedule, float64.

### Deterministic samplers: RMS distance to the probability flow

Of {points} points, from the same noise. The reference has {flow_steps} steps; with half of them it differs by {mixture_accuracy:.0e}.
In the plot, a method of order p approaches a line of slope -p. All start from sigma_t eps at their grid's first time
t and end with one step to t = 0, so what a grid leaves out at its ends counts as error.

{mixture_to_flow}

### Stochastic samplers: distance between distributions

Sliced Wasserstein-1 distance between {drawn} draws and as many of the data. "exact draws" is that of two sets of draws
of the data: a sampler near this value cannot be told from the data. `ddim` without noise is there to compare with.

{mixture_to_data}

## Digits

`{config}` after {train_steps} training steps; guidance {guidance:g}, threshold {threshold}, float32.

### Deterministic samplers: RMS distance to the probability flow

Over the pixels (-1 to 1) of {images} images, from the same noise and labels. The reference has {image_flow_steps} steps; with half
of them it differs by {digits_accuracy:.0e}: values near this say little. What is measured is the solver's error, not how
good the images are: the flow of a trained model is not the data.

{digits_to_flow}

### All samplers: share assigned to the class asked for

By an `SVC(gamma=0.001)` trained on the 1,797 real digits, of {classified} images with balanced labels. The standard deviation
of a share of 95% is {share_error:.1f} points. The classifier does not measure variety.

{digits_shares}
"""


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", type=Path, help="a run on digits; trained there if it is empty")
  parser.add_argument("--quick", action="store_true", help="few draws of everything, to see that it works")
  parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of samplers.md and images/")
  flags = parser.parse_args()
  platform.configure()
  reporting.setup_logging()
  sizes = QUICK if flags.quick else Sizes()
  workdir = flags.workdir or Path(tempfile.mkdtemp(prefix="jaxdiff-samplers-"))
  if not (workdir / checkpoints.FOLDER).is_dir():
    digits.train(CONFIG, workdir, list(sizes.train))

  with jax.enable_x64(True):
    mixture_to_flow, mixture_accuracy, mixture_to_data = mixture(sizes)
  config, problem = load(workdir, sizes.classified)
  digits_to_flow, digits_accuracy, shares = of_digits(problem, sizes)

  def number(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-3 else f"{value:.1e}"

  page = PAGE.format(
    command="python -m benchmarks.samplers" + " --quick" * flags.quick,
    version=f"{jax.__version__}, {jax.default_backend()}",
    components=COMPONENTS,
    std=STD,
    radius=RADIUS,
    mixture_accuracy=mixture_accuracy,
    mixture_to_flow=markdown(mixture_to_flow, sizes.nfe, number),
    mixture_to_data=markdown(mixture_to_data, sizes.nfe, number),
    config=config.name,
    train_steps=config.train.steps,
    guidance=config.sample.guidance,
    threshold=config.sample.threshold,
    digits_accuracy=digits_accuracy,
    digits_to_flow=markdown(digits_to_flow, sizes.nfe, number),
    share_error=100 * (0.95 * 0.05 / sizes.classified) ** 0.5,
    digits_shares=markdown(shares, sizes.nfe_classified, lambda share: f"{100 * share:.1f}%"),
    **sizes._asdict(),
  )
  print(page)
  flags.out.mkdir(parents=True, exist_ok=True)
  (flags.out / "samplers.md").write_text(page)
  plot(
    flags.out / "images" / "samplers.png",
    {
      "Gaussian mixture, exact denoiser": mixture_to_flow,
      f"Digits, guidance {config.sample.guidance:g}": digits_to_flow,
    },
    sizes.nfe,
  )


if __name__ == "__main__":
  platform.with_huge_pages()
  main()
