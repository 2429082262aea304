"""Pictures that explain: what noising does to images, what a network is asked for, how solvers, guidance and averages work.

Each is a function of its arguments and returns a picture, u8[H,W,3].  Formulas: docs/math.md.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import data, optim, pictures, plots, toy
from jaxdiff.data import hinted, hints, pixels, transforms
from jaxdiff.diffusion import guidance, parameterization, samplers, schedules
from jaxdiff.types import NULL_LABEL, Array, Cond, Denoiser, NoiseSchedule, Sampler

Averaged = tuple[Array, dict[str, optax.OptState]]  # a parameter, and the states of its averages
SPAN = 2.0  # noise is shown from -SPAN to SPAN, images from -1 to 1


def noising(schedule: NoiseSchedule, images: np.ndarray, times: np.ndarray, seed: int = 0) -> np.ndarray:
  """Images on their way to noise, q(z_t | x): a row for each, a column for each time.

  Shapes: images: f32[N,H,W,C] in [-1, 1]; times: f[T].
  """
  x = jnp.asarray(images)
  eps = jax.random.normal(jax.random.key(seed), x.shape)
  frames = [schedules.add_noise(schedule, x, eps, jnp.float32(t)) for t in times]
  return pictures.film_strip(np.asarray(pixels.to_uint8(jnp.stack(frames))), times)


def targets(schedule: NoiseSchedule, image: np.ndarray, times: np.ndarray, seed: int = 0) -> np.ndarray:
  """One image at each time, and what a network may be asked for there: x, eps or v = alpha eps - sigma x.

  Shapes: image: f32[H,W,C]; times: f[T].
  """
  x, eps, z, alpha, sigma = _noised(schedule, image, times, seed)
  v = parameterization.v().target(x, eps, alpha, sigma)
  return _rows({"z": z, "x": x, "eps": eps / SPAN, "v": v / SPAN}, times)


def guesses(
  denoise: Denoiser, schedule: NoiseSchedule, image: np.ndarray, label: int, times: np.ndarray, seed: int = 0
) -> np.ndarray:
  """The same as a denoiser sees it: z_t, and the x, eps and v that it believes in.

  Shapes: image: f32[H,W,C]; times: f[T].
  """
  *_, z, alpha, sigma = _noised(schedule, image, times, seed)
  x, eps, _ = denoise(z, jnp.asarray(times, jnp.float32), Cond(jnp.full(len(times), label)))
  v = parameterization.v().target(x, eps, alpha, sigma)
  return _rows({"z": z, "x": x, "eps": eps / SPAN, "v": v / SPAN}, times)


def signal_and_noise(named: Mapping[str, NoiseSchedule]) -> np.ndarray:
  """alpha, sigma and log-SNR of schedules over t; the ends, where log-SNR is infinite, are left out."""
  t = np.linspace(0.004, 0.996, 250)
  panels = {
    "alpha": {name: schedule.alpha(t) for name, schedule in named.items()},
    "sigma": {name: schedule.sigma(t) for name, schedule in named.items()},
    "log SNR": {name: schedule.log_snr(t) for name, schedule in named.items()},
  }
  return plots.curves(t, panels, x_label="t")


def solvers(
  named: Mapping[str, Sampler], mixture: toy.Mixture, schedule: NoiseSchedule, steps: int, count: int = 40
) -> np.ndarray:
  """The ways of points from noise to a mixture in the plane by each sampler, from the same noise, all labels."""
  denoise, label = toy.denoiser(mixture, schedule), np.full(count, NULL_LABEL)
  ways = {
    f"{name}, {steps} steps": follow(sampler, schedule, denoise, label, steps)
    for name, sampler in named.items()
  }
  return _over(mixture, ways)


def guided(
  scales: Sequence[float],
  label: int,
  mixture: toy.Mixture,
  schedule: NoiseSchedule,
  steps: int = 40,
  count: int = 40,
) -> np.ndarray:
  """The ways of points to one class of a mixture in the plane, at each scale of classifier-free guidance."""
  denoise = toy.denoiser(mixture, schedule)
  ways = {
    f"scale {scale:g}": follow(
      samplers.ddim(), schedule, guidance.classifier_free(denoise, scale), np.full(count, label), steps
    )
    for scale in scales
  }
  return _over(mixture, ways)


def follow(
  sampler: Sampler, schedule: NoiseSchedule, denoise: Denoiser, label: np.ndarray, steps: int, seed: int = 0
) -> np.ndarray:
  """Where points of the plane have been at each step, from the same noise for the same seed: f32[steps+1,N,2].

  Shapes: label: i[N].
  """
  times = samplers.time_grid(steps, "uniform", schedule)
  noise = jax.random.normal(jax.random.key(seed), (len(label), 1, 1, 2))
  run = jax.jit(functools.partial(samplers.path, sampler, schedule, denoise))
  z = schedules.start(schedule, noise, times[0])
  return np.asarray(run(jax.random.key(seed + 1), z, times, Cond(jnp.asarray(label)))).reshape(
    steps + 1, -1, 2
  )


def solver_errors(
  named: Mapping[str, Sampler],
  mixture: toy.Mixture,
  schedule: NoiseSchedule,
  counts: Sequence[int],
  reference_steps: int = 1000,
  count: int = 200,
) -> np.ndarray:
  """How far deterministic samplers end from the probability flow, over the number of steps; log axes.

  Root mean square distance of points of the plane from where a second-order solver with many steps takes them.
  """
  denoise, label = toy.denoiser(mixture, schedule), np.full(count, NULL_LABEL)
  exact = follow(samplers.dpmpp_2m(), schedule, denoise, label, reference_steps)[-1]

  def error(sampler: Sampler, steps: int) -> float:
    ends = follow(sampler, schedule, denoise, label, steps)[-1]
    return float(np.sqrt(np.mean(np.sum((ends - exact) ** 2, axis=-1))))

  lines = {name: [error(sampler, steps) for steps in counts] for name, sampler in named.items()}
  return plots.curves(counts, {"distance": lines}, x_label="steps", log="xy")


def averages(decays: Mapping[str, tuple[float, int]], updates: int = 400, seed: int = 0) -> np.ndarray:
  """A parameter that a noisy gradient descends towards 0 with, and its averages: name -> (decay, start step).

  The loss is w^2 / 2 from w = 4, the gradient w + noise, the rate 0.05; the averages are optim.params_ema's.
  """
  noise = jax.random.normal(jax.random.key(seed), (updates,))
  made = {name: optim.params_ema(*settings) for name, settings in decays.items()}

  def step(carry: Averaged, noise: Array) -> tuple[Averaged, dict[str, Array]]:
    w, states = carry
    update = -0.05 * (w + 4 * noise)
    states = {name: tx.update(update, states[name], w)[1] for name, tx in made.items()}
    seen = {name: state.ema_params for name, state in states.items()}
    return (w + update, states), {"the parameter itself": w + update} | seen

  start = jnp.float32(4.0)
  _, ways = jax.lax.scan(step, (start, {name: tx.init(start) for name, tx in made.items()}), noise)
  names = ["the parameter itself", *decays]
  lines = {name: np.asarray(ways[name]) for name in names}
  return plots.curves(np.arange(1, updates + 1), {"value": lines}, x_label="updates")


def hints_of(spec: str = "shapes:96", rows: Sequence[int] = (0, 1, 2), size: int = 96) -> np.ndarray:
  """Images of a data source, and each hint of them by its defaults: a row for each image.

  Raises UserError as data.load, and where a hint cannot be made of them.
  """
  view = transforms.View(size, 3, "auto", random_crop=False, random_flip=False)
  examples = data.load(spec).take(rows)
  index = np.asarray(rows, np.uint32)
  images = np.stack([transforms.fit(example["image"], view) for example in examples])
  columns = {"image": images}
  for name in hints.HINTS:
    hint = hints.parse(name)
    assert hint is not None
    made = hinted.of_batch(examples, images, index, 0, view, hint)
    columns[name] = np.broadcast_to(made, images.shape)
  tiles = np.stack(list(columns.values()), axis=1).reshape(-1, *images.shape[1:])
  return pictures.grid(tiles, list(columns) * len(rows), columns=len(columns))


def _noised(
  schedule: NoiseSchedule, image: np.ndarray, times: np.ndarray, seed: int
) -> tuple[Array, Array, Array, Array, Array]:
  """(x, eps, z, alpha, sigma) of one image and one noise at all times: [T,H,W,C] and [T,1,1,1]."""
  x = jnp.broadcast_to(jnp.asarray(image), (len(times), *image.shape))
  eps = jnp.broadcast_to(jax.random.normal(jax.random.key(seed), image.shape), x.shape)
  t = jnp.asarray(times, jnp.float32)
  return x, eps, schedules.add_noise(schedule, x, eps, t), *schedules.alpha_sigma(schedule, t)


def _rows(named: Mapping[str, Array], times: np.ndarray) -> np.ndarray:
  frames = np.asarray(pixels.to_uint8(jnp.stack(list(named.values()), axis=1)))  # [T,rows,H,W,C]
  return pictures.film_strip(frames, times, list(named))


def _over(mixture: toy.Mixture, ways: Mapping[str, np.ndarray]) -> np.ndarray:
  points, labels = toy.draw(mixture, 2000)
  return plots.paths(ways, points.reshape(-1, 2), labels)
