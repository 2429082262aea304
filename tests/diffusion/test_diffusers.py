"""The schedules, grids and samplers of the library diffusers and ours give the same numbers.

diffusers works in float32: its tables, its grids and, in the two Euler schedulers, every step. What is to be
compared is the mathematics, so the fixture `float64` gives its modules float64 under the name float32; then
whole paths agree to the last digits. One test compares both in float32, as they are used. The library's step
i is our t = (i + 1) / 1000; both end at alpha = 1, sigma = 0: our t = 0, no step there (below: -1).
"""

import contextlib
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.diffusion import grids, noise, parameterization, samplers, schedules
from jaxdiff.types import Cond, Sampler

torch = pytest.importorskip("torch")
library = pytest.importorskip("diffusers.schedulers")
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # torch tensors given to NumPy

STEPS = 20  # divides 1000: see the test of DDIM at the end
SHAPE = (2, 3, 4, 4)
KEY = jax.random.key(0)
# Compiling is most of what these tests do.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
MODULES = {
  "ddim": library.scheduling_ddim,
  "ddpm": library.scheduling_ddpm,
  "dpmpp": library.scheduling_dpmsolver_multistep,
  "euler": library.scheduling_euler_discrete,
  "euler_ancestral": library.scheduling_euler_ancestral_discrete,
  "heun": library.scheduling_heun_discrete,
  "unipc": library.scheduling_unipc_multistep,
}
TABLES = {
  "linear": (schedules.linear, {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}),
  "scaled_linear": (
    schedules.scaled_linear,
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
  ),
  "cosine_discrete": (schedules.cosine_discrete, {"beta_schedule": "squaredcos_cap_v2"}),
}


NOTHING: dict[str, Any] = {}


class Pair(NamedTuple):
  """A sampler of ours, and the scheduler that should do the same."""

  ours: Sampler
  module: str  # a key of MODULES
  name: str
  config: dict[str, Any] = NOTHING
  step: dict[str, Any] = NOTHING  # further arguments of its step


DPMPP = "DPMSolverMultistepScheduler"
UNCLIPPED = {"clip_sample": False}
PAIRS = {
  "ddpm": Pair(samplers.ddpm(), "ddpm", "DDPMScheduler", UNCLIPPED),
  "ddim": Pair(samplers.ddim(), "ddim", "DDIMScheduler", UNCLIPPED),
  "ddim_eta_0.6": Pair(samplers.ddim(0.6), "ddim", "DDIMScheduler", UNCLIPPED, {"eta": 0.6}),
  "ddim_eta_1": Pair(samplers.ddim(1.0), "ddim", "DDIMScheduler", UNCLIPPED, {"eta": 1.0}),
  "euler": Pair(samplers.euler(), "euler", "EulerDiscreteScheduler"),
  "euler_ancestral": Pair(samplers.euler_ancestral(), "euler_ancestral", "EulerAncestralDiscreteScheduler"),
  "heun": Pair(samplers.heun(), "heun", "HeunDiscreteScheduler"),
  "dpmpp_1": Pair(samplers.dpmpp_1(), "dpmpp", DPMPP, {"solver_order": 1}),
  "dpmpp_2m": Pair(samplers.dpmpp_2m(), "dpmpp", DPMPP),
  # Not dpmpp_3m: theirs has half of the parabola's curvature and is of second order (see test_samplers).
  "dpmpp_sde_2m": Pair(samplers.dpmpp_sde_2m(), "dpmpp", DPMPP, {"algorithm_type": "sde-dpmsolver++"}),
  "unipc": Pair(samplers.unipc(), "unipc", "UniPCMultistepScheduler"),
}
PREDICTIONS = {"eps": "epsilon", "x": "sample", "v": "v_prediction"}
# Their ancestral Euler raises NotImplementedError for "sample".
CASES = [(name, kind) for name in PAIRS for kind in PREDICTIONS if (name, kind) != ("euler_ancestral", "x")]


class Wide:
  """A module (torch, NumPy) whose float32 is float64."""

  def __init__(self, module):
    self._module = module

  def __getattr__(self, name):
    return getattr(self._module, "float64" if name == "float32" else name)


@contextlib.contextmanager
def widened():
  with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True):
    for module in MODULES.values():
      patch.setattr(module, "torch", Wide(torch))
      patch.setattr(module, "np", Wide(np))
    yield


@pytest.fixture
def float64():
  with widened():
    yield


def time_of(i):
  """Our time of the library's step i; that of -1, after the last step, is 0."""
  return (np.asarray(i, np.float64) + 1) / 1000


def network(z, i):
  """Something smooth that depends on where and when it is: the output of both sides' network at step i."""
  xp = jnp if isinstance(z, jax.Array) else np
  return xp.tanh(1.3 * z + xp.sin(xp.asarray(i, z.dtype) / 100))


def share(z):
  """What it says about the variance (Prediction.log_var), in [0, 1]; theirs is told 2 share - 1."""
  return 0.5 + 0.4 * (jnp if isinstance(z, jax.Array) else np).sin(3 * z)


@functools.cache
def solver(sampler, schedule):
  """(kind: index into PREDICTIONS, z, times) -> path; compiled once for all kinds and grids."""
  decoders = [parameterization.PARAMETERIZATIONS[kind]().decode for kind in PREDICTIONS]

  def run(kind, z, times):
    def denoise(z, t, cond):
      del cond
      out = network(z, schedules.match(schedule.model_time(t)))
      prediction = jax.lax.switch(kind, decoders, out, z, *schedules.alpha_sigma(schedule, t))
      return prediction._replace(log_var=share(z))

    return samplers.path(sampler, schedule, denoise, KEY, z, times, Cond(jnp.zeros(SHAPE[:1], jnp.int32)))

  return jax.jit(run, compiler_options=QUICK)


@functools.partial(jax.jit, compiler_options=QUICK)
def draw(i, z):
  return noise.noise_like(noise.fold_in(KEY, i), z)


def our_path(sampler, schedule, kind, z, times):
  return np.asarray(solver(sampler, schedule)(list(PREDICTIONS).index(kind), z, times))


def their_scheduler(pair, kind, steps=STEPS, **config):
  config = TABLES["linear"][1] | pair.config | {"prediction_type": PREDICTIONS[kind]} | config
  scheduler = getattr(MODULES[pair.module], pair.name)(**config)
  scheduler.set_timesteps(steps)
  return scheduler


def their_path(pair, scheduler, schedule, z, dtype=np.float64):
  """(times, path), with the noise that our samplers draw for z.

  The schedulers of Euler and Heun hold z / alpha. (Their pipelines start it from noise times sigma / alpha,
  which is a z of sigma times noise; ours is noise.)
  """
  module, steps = MODULES[pair.module], scheduler.timesteps.tolist()
  alpha = schedule.alpha if pair.module in ("euler", "euler_ancestral", "heun") else np.ones_like
  sample, visited = torch.from_numpy((np.asarray(z) / alpha(time_of(steps[0]))).astype(dtype)), {}
  for i, (step, after) in enumerate(zip(scheduler.timesteps, [*steps[1:], -1], strict=True)):
    seen = scheduler.scale_model_input(sample, step).numpy()
    out = network(seen, float(step))
    if scheduler.config.get("variance_type") == "learned_range":
      out = np.concatenate([out, 2 * share(seen) - 1], axis=1)
    drawn = torch.from_numpy(np.asarray(draw(i, z)).astype(dtype))
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(module, "randn_tensor", lambda *_, drawn=drawn, **__: drawn, raising=False)
      sample = scheduler.step(torch.from_numpy(out), step, sample, **pair.step).prev_sample
    visited[after] = sample.numpy() * alpha(time_of(after))  # Heun comes twice: prediction, then correction
  return time_of([*dict.fromkeys(steps), -1]), np.stack([z, *visited.values()])


def error(got, wanted):
  """The largest difference over the largest value, at the worst of the times."""
  assert got.shape == wanted.shape == (len(got), *SHAPE)
  return max(np.abs(g - w).max() / np.abs(w).max() for g, w in zip(got, wanted, strict=True))


def start():
  return jax.random.normal(jax.random.key(1), SHAPE)


LINEAR, ZERO_SNR = schedules.linear(), schedules.zero_terminal_snr(schedules.cosine_discrete())


def their_alpha_bar(**config):
  return library.scheduling_ddim.DDIMScheduler(**config).alphas_cumprod.numpy()


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_the_librarys(name):
  schedule, config = TABLES[name]
  alpha_bar = schedule().alpha(time_of(np.arange(1000))) ** 2
  with widened():
    np.testing.assert_allclose(alpha_bar, their_alpha_bar(**config), rtol=1e-11)
  own = their_alpha_bar(**config)
  assert own.dtype == np.float32
  np.testing.assert_allclose(alpha_bar, own, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TABLES)
def test_zero_terminal_snr_keeps_the_start_of_time_where_the_library_keeps_the_first_step(name, float64):
  """Both move and stretch alpha to end in 0; ours leaves it as it was at t = 0, theirs at t = 1 / 1000.

  Ours is smaller, by 3e-7 of it for `linear`, 3e-5 for `scaled_linear` and 1e-9 for the cosine.
  """
  schedule, config = TABLES[name]
  theirs = their_alpha_bar(**config, rescale_betas_zero_snr=True) ** 0.5
  first, last = schedule().alpha(time_of(np.array([0, 999])))
  ours = schedules.zero_terminal_snr(schedule()).alpha(time_of(np.arange(1000)))
  assert ours[-1] == theirs[-1] == 0
  np.testing.assert_allclose(ours, theirs * (1 - last / first) / (1 - last), rtol=1e-11)
  np.testing.assert_allclose(ours, theirs, rtol=4e-5)


@pytest.mark.parametrize("steps", [2, 7, 20, 28, 50, 999])
@pytest.mark.parametrize(
  ("grid", "config"),
  [
    (grids.leading(), {"timestep_spacing": "leading"}),
    (grids.leading(offset=1), {"timestep_spacing": "leading", "steps_offset": 1}),
    (grids.trailing(), {"timestep_spacing": "trailing"}),
    (grids.linspace(), {"timestep_spacing": "linspace"}),
  ],
)
def test_a_grid_of_steps_is_the_librarys(grid, config, steps):
  """That of DDIM and DDPM. (But for "trailing", their DPM-Solver and UniPC drop the last of N + 1 steps.)

  One step of "linspace" is step 0 there, the cleanest; ours is the noisiest.
  """
  scheduler = library.scheduling_ddim.DDIMScheduler(**config)
  scheduler.set_timesteps(steps)
  times = samplers.time_grid(steps, grid)
  np.testing.assert_array_equal(times, time_of([*scheduler.timesteps.tolist(), -1]), strict=True)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(
  ("grid", "option"),
  [(grids.karras(7.0, 0.0, 1e9), "use_karras_sigmas"), (grids.log_snr(-99, 99), "use_exponential_sigmas")],
)
def test_a_grid_of_noise_levels_is_the_librarys(grid, option, name, float64):
  """From the table's noisiest step to its cleanest; between steps both interpolate log(sigma / alpha)."""
  schedule, config = TABLES[name]
  scheduler = library.scheduling_euler_discrete.EulerDiscreteScheduler(**config, **{option: True})
  scheduler.set_timesteps(STEPS)
  times = samplers.time_grid(STEPS, grid, schedule())
  np.testing.assert_allclose(schedules.noise_ratio(schedule(), times), scheduler.sigmas, rtol=1e-9)
  np.testing.assert_allclose(times[:-1], time_of(scheduler.timesteps), rtol=1e-9)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_path_is_the_librarys(name, kind, spacing, float64):
  """To the last digits; but their DDPM's last step, unless it is step 0, adds noise of variance 1e-20."""
  pair, z = PAIRS[name], start()
  scheduler = their_scheduler(pair, kind, timestep_spacing=spacing)
  times, wanted = their_path(pair, scheduler, LINEAR, z)
  bound = 1e-9 if (name, spacing) == ("ddpm", "trailing") else 1e-12
  assert error(our_path(pair.ours, LINEAR, kind, z, times), wanted) < bound


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_path_in_float32_is_the_librarys_in_float64_within_1e_5(name, kind):
  """As near as the library's own float32, up to 2.6e-6 off where it predicts x, is to it."""
  pair, z = PAIRS[name], start()
  with widened():
    scheduler = their_scheduler(pair, kind, timestep_spacing="trailing")
    times, wanted = their_path(pair, scheduler, LINEAR, z)
  scheduler = their_scheduler(pair, kind, timestep_spacing="trailing")
  theirs = their_path(pair, scheduler, LINEAR, z, np.float32)[1]
  ours = our_path(pair.ours, LINEAR, kind, z, times)
  assert ours.dtype == np.float32
  assert error(ours, wanted) < 1e-5 and error(theirs, wanted) < 1e-5


@pytest.mark.parametrize(("ours", "theirs"), [("fixed_large", "fixed_large"), ("learned", "learned_range")])
def test_a_variance_of_ddpm_is_the_librarys(ours, theirs, float64):
  """On a grid that ends in step 0: from any other, their step to clean data adds noise of this variance."""
  pair, z = PAIRS["ddpm"], start()
  scheduler = their_scheduler(pair, "v", timestep_spacing="leading", variance_type=theirs)
  times, wanted = their_path(pair, scheduler, LINEAR, z)
  assert error(our_path(samplers.ddpm(ours), LINEAR, "v", z, times), wanted) < 1e-12


@pytest.mark.parametrize("kind", ["x", "v"])  # eps says nothing of x there
@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_a_path_from_no_signal_at_all_is_the_librarys(name, kind, float64):
  """To what the tables differ by. (Schedulers that hold sigma / alpha put alpha_bar = 2^-24 there.)"""
  pair, z = PAIRS[name], start()
  table = TABLES["cosine_discrete"][1] | {"rescale_betas_zero_snr": True}
  scheduler = their_scheduler(pair, kind, timestep_spacing="trailing", **table)
  times, wanted = their_path(pair, scheduler, ZERO_SNR, z)
  assert times[0] == 1 and ZERO_SNR.alpha(times[0]) == 0
  assert error(our_path(pair.ours, ZERO_SNR, kind, z, times), wanted) < 1e-6


def test_ddim_of_the_library_leaves_a_grid_that_is_not_evenly_spaced(float64):
  """It steps from i to i - 1000 // N whatever the next step is, ours to the next time. Both step alike."""
  pair, z = PAIRS["ddim"], start()
  scheduler = their_scheduler(pair, "v", steps=28, timestep_spacing="linspace")
  step, following = scheduler.timesteps[3:5].tolist()
  goes_to = step - 1000 // 28
  assert goes_to != following
  out = torch.from_numpy(network(np.array(z), step))
  wanted = scheduler.step(out, step, torch.from_numpy(np.array(z))).prev_sample
  got = our_path(pair.ours, LINEAR, "v", z, time_of([step, goes_to]))[1]
  np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12)
