"""Time grids: the N + 1 times, falling from the noisiest to 0, that a sampler of N steps visits.

Built in NumPy float64. A grid is a function (num_steps, schedule) -> f64[num_steps + 1]; a table of T training steps has
its step i at t = (i + 1) / T, and the last time is always 0, clean data.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxdiff.diffusion import schedules
from jaxdiff.types import NoiseSchedule

Grid = Callable[[int, NoiseSchedule | None], np.ndarray]

# The cleanest time that a grid in noise levels visits before 0: the first step of a 1000-step table.
FIRST = 1e-3


def uniform() -> Grid:
  """Times evenly spaced from 1 down to 0."""
  return lambda num_steps, schedule: np.linspace(1.0, 0.0, num_steps + 1)


def quadratic() -> Grid:
  """t_i = ((N - i) / N)^2: more steps where there is little noise.  Source: Song et al. 2021a, appendix D.2."""
  return lambda num_steps, schedule: np.linspace(1.0, 0.0, num_steps + 1) ** 2


def leading(train_steps: int = 1000, offset: int = 0) -> Grid:
  """Every (T // N)-th step of the table from step `offset` on: never reaches the noisiest ones.

  Source: diffusers' timestep_spacing="leading" (offset: its steps_offset); Lin et al. 2023, table 2.
  """

  def grid(num_steps: int, schedule: NoiseSchedule | None) -> np.ndarray:
    return _of_steps(np.arange(num_steps)[::-1] * (train_steps // num_steps) + offset, train_steps)

  return grid


def trailing(train_steps: int = 1000) -> Grid:
  """Steps T - 1, T - 1 - T/N, ..., rounded: starts from the noisiest one.

  Source: diffusers' timestep_spacing="trailing"; Lin et al. 2023, section 3.3.
  """

  def grid(num_steps: int, schedule: NoiseSchedule | None) -> np.ndarray:
    steps = np.round(train_steps * (1 - np.arange(num_steps) / num_steps)) - 1
    return _of_steps(steps, train_steps)

  return grid


def linspace(train_steps: int = 1000) -> Grid:
  """N steps evenly spaced from T - 1 down to 0, both included, rounded.

  Source: diffusers' timestep_spacing="linspace"; Lin et al. 2023, table 2.
  """
  return lambda num_steps, schedule: _of_steps(
    np.linspace(train_steps - 1, 0, num_steps).round(), train_steps
  )


def karras(rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Grid:
  """sigma_i^(1/rho) evenly spaced from sigma_max to sigma_min, then 0; sigma is the noise level sigma_t / alpha_t.

  Both ends are brought into the schedule's range, that of t = 0.001 to 1.  Source: Karras et al. 2022, eq. 5.
  """

  if not (rho > 0 and 0 <= sigma_min < sigma_max):
    raise ValueError("rho must be above 0, and sigma_min from 0 to below sigma_max")

  def grid(num_steps: int, schedule: NoiseSchedule | None) -> np.ndarray:
    low, high = _log_snr_range(schedule, "karras")
    first, last = np.clip([sigma_max, sigma_min], np.exp(-high / 2), np.exp(-low / 2)) ** (1 / rho)
    return _of_log_snr(-2 * rho * np.log(np.linspace(first, last, num_steps)), schedule)

  return grid


def log_snr(low: float = -10.0, high: float = 10.0) -> Grid:
  """log-SNR evenly spaced from `low` to `high`, then 0, both brought into the schedule's range (t = 0.001 to 1).

  Source: Lu et al. 2022a (DPM-Solver, arXiv 2206.00927); their lambda is half of it.
  """

  if not low < high:
    raise ValueError(f"low {low} is not below high {high}")

  def grid(num_steps: int, schedule: NoiseSchedule | None) -> np.ndarray:
    first, last = np.clip([low, high], *_log_snr_range(schedule, "log_snr"))
    return _of_log_snr(np.linspace(first, last, num_steps), schedule)

  return grid


GRIDS: dict[str, Callable[..., Grid]] = {
  "uniform": uniform,
  "quadratic": quadratic,
  "leading": leading,
  "trailing": trailing,
  "linspace": linspace,
  "karras": karras,
  "log_snr": log_snr,
}


def time_grid(
  num_steps: int, kind: str | Grid = "uniform", schedule: NoiseSchedule | None = None
) -> np.ndarray:
  """The times a sampler visits: f64[num_steps + 1], falling from at most 1 to 0.

  kind: a key of GRIDS, or a grid with arguments of its own such as karras(rho=5.0).  Grids in noise levels (karras,
  log_snr) need the schedule.  Raises KeyError for an unknown kind, ValueError for steps that do not fit the grid.
  """
  grid = GRIDS[kind]() if isinstance(kind, str) else kind
  times = grid(num_steps, schedule) if num_steps > 0 else np.zeros(2)
  if not (np.diff(times) < 0).all() or times[0] > 1:
    raise ValueError(f"{num_steps} steps do not make a falling grid within [0, 1]")
  return times


def _of_steps(steps: np.ndarray, train_steps: int) -> np.ndarray:
  if train_steps < 1:
    raise ValueError(f"train_steps is {train_steps}; a table has 1 or more")
  return np.append((steps + 1) / train_steps, 0.0)


def _of_log_snr(values: np.ndarray, schedule: NoiseSchedule | None) -> np.ndarray:
  assert schedule is not None
  return np.append(schedules.time_of_log_snr(schedule, values), 0.0)


def _log_snr_range(schedule: NoiseSchedule | None, name: str) -> np.ndarray:
  """(lowest, highest) log-SNR of the times that a grid may visit, t = 1 and t = FIRST."""
  if schedule is None:
    raise ValueError(f"the grid {name!r} is one of noise levels and needs the schedule")
  with np.errstate(divide="ignore"):
    return schedule.log_snr(np.array([1.0, FIRST]))
