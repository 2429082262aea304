import numpy as np
import pytest

from jaxdiff.diffusion import grids, schedules

EDM = schedules.edm()


def steps_of(grid):
  """The table's steps that a grid visits: t = (i + 1) / 1000."""
  assert grid[-1] == 0
  steps = grid[:-1] * 1000 - 1
  np.testing.assert_allclose(steps, np.round(steps), atol=1e-9)
  return np.round(steps).astype(int).tolist()


@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
@pytest.mark.parametrize("kind", grids.GRIDS)
@pytest.mark.parametrize("num_steps", [1, 2, 7, 50, 250])
def test_every_grid_falls_strictly_to_zero_in_float64(kind, schedule, num_steps):
  grid = grids.time_grid(num_steps, kind, schedules.SCHEDULES[schedule]())
  assert grid.shape == (num_steps + 1,) and grid.dtype == np.float64
  assert 0 < grid[0] <= 1 and grid[-1] == 0
  assert (np.diff(grid) < 0).all()


def test_the_even_and_the_quadratic_grid():
  assert grids.time_grid(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
  assert grids.time_grid(4, "quadratic").tolist() == [1, 0.5625, 0.25, 0.0625, 0]


@pytest.mark.parametrize(
  ("grid", "num_steps", "wanted"),
  [
    (grids.leading(), 10, [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
    (grids.leading(offset=1), 10, [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]),
    (grids.leading(), 3, [666, 333, 0]),
    (grids.trailing(), 10, [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
    (grids.trailing(), 3, [999, 666, 332]),
    (grids.linspace(), 10, [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
    (grids.linspace(), 5, [999, 749, 500, 250, 0]),
    (grids.trailing(), 1000, list(range(999, -1, -1))),
  ],
)
def test_table_steps_are_diffusers_timestep_spacings(grid, num_steps, wanted):
  """The values that DDIMScheduler(timestep_spacing=..., steps_offset=...).set_timesteps(num_steps) lists."""
  assert steps_of(grids.time_grid(num_steps, grid)) == wanted


def test_the_karras_grid_has_the_papers_noise_levels():
  grid = grids.time_grid(18, "karras", EDM)
  got = schedules.noise_ratio(EDM, grid)
  i = np.arange(18)
  wanted = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
  np.testing.assert_allclose(got, np.append(wanted, 0), rtol=1e-9)
  np.testing.assert_allclose(got[:4], [80, 57.58598, 40.78557, 28.37458], rtol=1e-6)
  np.testing.assert_allclose(got[-3:], [0.00753, 0.002, 0], rtol=1e-3)
  np.testing.assert_allclose(np.diff(grid[:-1]), np.diff(grid)[0], rtol=1e-9)  # even in edm's own time


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_grids_in_noise_levels_are_even_in_them_on_every_schedule_and_stay_in_its_range(name):
  schedule = schedules.SCHEDULES[name]()
  cleanest = schedules.noise_ratio(schedule, np.float64(1e-3))
  root = (
    schedules.noise_ratio(schedule, grids.time_grid(20, grids.karras(rho=5.0, sigma_max=10.0), schedule)[:-1])
    ** 0.2
  )
  np.testing.assert_allclose(np.diff(root), np.diff(root)[0], rtol=1e-6)
  assert root[-1] == pytest.approx(max(0.002, cleanest) ** 0.2, rel=1e-6)
  assert root[0] == pytest.approx(10**0.2, rel=1e-6)
  levels = schedule.log_snr(grids.time_grid(20, grids.log_snr(-4.0, 30.0), schedule)[:-1])
  np.testing.assert_allclose(np.diff(levels), np.diff(levels)[0], rtol=1e-6)
  assert levels[0] == pytest.approx(-4) and levels[-1] == pytest.approx(
    min(30, -2 * np.log(cleanest)), rel=1e-6
  )


def test_grids_in_noise_levels_start_at_the_noisiest_time_where_the_schedule_ends_before():
  """Scaled-linear's noisiest level is 14.6, less than the grid's 80; a zero terminal SNR has no end: 80 is reached."""
  short, endless = schedules.scaled_linear(), schedules.zero_terminal_snr(schedules.linear())
  assert grids.time_grid(10, "karras", short)[0] == pytest.approx(1, abs=1e-9)
  start = grids.time_grid(10, "karras", endless)[0]
  assert start < 1 and schedules.noise_ratio(endless, start) == pytest.approx(80, rel=1e-6)


@pytest.mark.parametrize("kind", grids.GRIDS)
@pytest.mark.parametrize("num_steps", [0, -1])
def test_no_steps_are_an_error(kind, num_steps):
  with pytest.raises(ValueError):
    grids.time_grid(num_steps, kind, EDM)


@pytest.mark.parametrize(
  ("grid", "num_steps"),
  [
    (grids.leading(), 1001),
    (grids.leading(offset=1), 1000),
    (grids.trailing(), 1001),
    (grids.linspace(), 1001),
    (grids.leading(50), 51),
    (grids.trailing(50), 51),
  ],
)
def test_more_steps_than_the_table_has_are_an_error(grid, num_steps):
  with pytest.raises(ValueError, match=f"{num_steps} steps"):
    grids.time_grid(num_steps, grid)


def test_what_is_not_known_or_missing_is_an_error():
  with pytest.raises(KeyError):
    grids.time_grid(10, "karas")
  for kind in ("karras", "log_snr"):
    with pytest.raises(ValueError, match="needs the schedule"):
      grids.time_grid(10, kind)
