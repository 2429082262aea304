"""What a run starts from: nothing, or a trained run whose network, process and data it then shares.

A control branch names its base (config.base.workdir), a student its teacher (config.teacher.workdir).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdiff import configuration, optim, parallel, runs, tasks
from jaxdiff.errors import UserError
from jaxdiff.types import PyTree, Task

logger = logging.getLogger("jaxdiff")


class Start(NamedTuple):
  """What a task takes over from a trained run."""

  # of the config: .workdir is where the run lies, .command what makes it
  section: str
  # sections whose values are the run's, beside `model`, unless set on the command line
  inherited: tuple[str, ...]
  # keys of these sections that are not the run's
  own: tuple[str, ...]
  # sections and keys that have to stay as the run's
  fixed: tuple[str, ...]
  # (config, the run's config): fills in what follows; refuses what does not suit
  settle: Callable[[Any, Any], None]


def _refuse_students(config: Any, given: Any) -> None:
  """A student's x is where its few steps have to go, not the mean of the images that z_t may be of, which a branch learns."""
  if given.sample.only_steps:
    raise UserError(
      f"the run in {config.base.workdir!r} (config.base.workdir) is a student of {given.sample.only_steps} steps: what it "
      "predicts is no denoised image, as a control branch learns it. Train the branch on its teacher."
    )


def _settle_rounds(config: Any, given: Any) -> None:
  """The length of a distillation is that of its rounds, unless it is given, which the task then checks."""
  steps, first = given.sample.only_steps, config.distill.start_steps
  if steps and 2 * first != steps:
    raise UserError(
      f"the teacher in {config.teacher.workdir!r} (config.teacher.workdir) is a student of {steps} steps, so its own student "
      f"takes {steps // 2}, not {first} (config.distill.start_steps)."
    )
  if not config.train.steps:
    config.train.steps = sum(tasks.stages(config))
  if len(config.distill.guidance_range) != 2:
    raise UserError(
      f"config.distill.guidance_range is {config.distill.guidance_range}; give the lowest scale and the highest, as 1.0,4.0."
    )
  low, high = config.distill.guidance_range
  if low < high:
    with config.unlocked():
      config.model.guidance_range = (low, high)


FIXED = (
  "model",
  "data.image_size",
  "data.channels",
  "diffusion.schedule",
  "diffusion.shift",
  "diffusion.zero_terminal_snr",
  "diffusion.parameterization",
)
STARTS = {
  "controlnet": Start(
    section="base",
    inherited=("diffusion", "data"),
    own=("data.hint", "data.hint_maps", "data.heldout"),
    fixed=FIXED,
    settle=_refuse_students,
  ),
  "distill": Start(
    section="teacher",
    inherited=("diffusion", "data"),
    own=("diffusion.weighting", "diffusion.time_density", "model.guidance_range"),
    fixed=FIXED,
    settle=_settle_rounds,
  ),
}


def override(config: Any, arguments: list[str], is_settled: bool = False) -> None:
  """Applies the command line's overrides, in place, after what the run that config starts from, if any, has settled.

  A config that a run has kept is settled already: what was overridden then stays so.
  Raises UserError as configuration.override, where there is no such run, and for a value that contradicts it.
  """
  start = STARTS.get(config.task)
  if start is None:
    configuration.override(config, arguments)
    return
  configuration.override(config, [a for a in arguments if a.startswith(f"--config.{start.section}.")])
  given = _config_of(config, start)
  if not is_settled:
    _refuse_other_data(config, given, start)
    _inherit(config, given, start)
  configuration.override(config, arguments)
  start.settle(config, given)
  _check(config, given, start)


def _refuse_other_data(config: Any, given: Any, start: Start) -> None:
  """Raises UserError where a config is for other images than the run's; a config without a source takes any."""
  if config.data.source not in ("", given.data.source):
    raise UserError(
      f"the run in {config[start.section].workdir!r} (config.{start.section}.workdir) learnt from {given.data.source!r}, and this "
      f"config is for {config.data.source!r} (config.data.source). Use one without a source, as configs/controlnet_cfg.py:canny "
      f"or configs/distill_cfg.py, or another run: --config.{start.section}.workdir=DIR."
    )


def _inherit(config: Any, given: Any, start: Start) -> None:
  with config.unlocked():
    config.model = given.model.copy_and_resolve_references()
    for section in start.inherited:
      taken = {key: value for key, value in given[section].items() if f"{section}.{key}" not in start.own}
      config[section].update(taken)


def fresh_state(config: Any, task: Task, strategy: parallel.Strategy, label_names: Sequence[str]) -> Any:
  """The state of a run before its first step, on its devices.

  Warns where what it starts from learnt labels by other names than its data has, `label_names`.
  Raises UserError where that is missing.
  """
  make = functools.partial(tasks.initial_state, config, task)
  start, adopt = STARTS.get(config.task), task.adopt
  if start is None or adopt is None:
    return strategy.init(make)
  # Split as the state will be, so that no device ever holds all of it.
  shared = parallel.mesh(config.parallel, jax.device_count())
  averaged, learnt = _averaged(config, start, shared)
  if tuple(learnt) != tuple(label_names):
    logger.warning(
      "The run in %r (config.%s.workdir) learnt the classes %s, the data has %s: the same labels may stand for others.",
      config[start.section].workdir,
      start.section,
      ", ".join(learnt),
      ", ".join(label_names),
    )

  def make_from(params: PyTree) -> Any:
    return adopt(make(), params)

  return strategy.init(make_from, averaged)


def _averaged(config: Any, start: Start, strategy: parallel.Strategy) -> tuple[PyTree, Sequence[str]]:
  """(averaged parameters, names of the classes) of the run that config starts from; of its state nothing else is kept."""
  run = runs.restore(_config_of(config, start), _workdir(config, start), strategy)
  return optim.ema_params(run.state), run.label_names


def _workdir(config: Any, start: Start) -> Path:
  return Path(config[start.section].workdir).expanduser()


def _config_of(config: Any, start: Start) -> Any:
  workdir, name = _workdir(config, start), start.section
  if not (workdir / "config.json").is_file():
    raise UserError(
      f"there is no run in {str(workdir)!r} (config.{name}.workdir) to start from. Make one with "
      f"`{config[name].command}`, or name another: --config.{name}.workdir=DIR."
    )
  given = configuration.of_run(workdir)
  if given.task != "denoise":
    raise UserError(
      f"the run in {str(workdir)!r} (config.{name}.workdir) is of the task {given.task!r}; a run of the task {config.task!r} starts "
      f"from a denoiser. `{config[name].command}` makes one, and each round of a distillation in a folder of its own."
    )
  return given


def _check(config: Any, given: Any, start: Start) -> None:
  changed = configuration.differences(given.to_dict(), config.to_dict())
  for line in changed:
    key = line.partition(":")[0]
    if key not in start.own and configuration.is_of(key, start.fixed):
      raise UserError(
        f"config.{line}: this is settled by the run in {config[start.section].workdir!r} "
        f"(config.{start.section}.workdir). Leave it out, or start from another."
      )
