"""The command line: python -m jaxdiff.main --config configs/dit_cfg.py[:preset] [--config.key=value ...].

Modes: train (default), sample, evaluate, prepare, export, plan, doctor.  A mistake of the user's is answered by one line and exit
status 2; STATUSES lists the others.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax

from jaxdiff import configuration, distributed, platform, reporting, signals, watchdog
from jaxdiff.errors import UserError, did_you_mean, unknown

logger = logging.getLogger("jaxdiff")


def main(arguments: list[str] | None = None) -> int:
  """Runs one command; returns the exit status, one of STATUSES."""
  reporting.setup_logging()
  try:
    flags = _parse(arguments)
    if flags.mode not in MODES:
      raise unknown("mode", flags.mode, MODES)
    config, workdir = _resolve(flags)
    platform.configure(cache_dir=_cache_dir())
    _join(flags)
    return MODES[flags.mode](config, workdir, flags)
  except UserError as error:
    logger.error("jaxdiff: %s", error)
    return distributed.leave(error.status)
  except KeyboardInterrupt:
    logger.error("jaxdiff: stopped.")
    return distributed.leave(INTERRUPTED)
  except Exception as error:
    if reason := distributed.lost(error):
      logger.error(
        "jaxdiff: another process was lost (%s). The same command goes on from the last checkpoint.", reason
      )
      return distributed.leave(watchdog.STATUS)
    if distributed.is_several():
      logger.exception("jaxdiff: a mistake of the program's:")
      distributed.leave(1)
    raise


def _run_and_exit() -> NoReturn:
  """Runs the command of sys.argv and ends the process; after Ctrl-C at once, as the interpreter would wait for a save."""
  try:
    status = main()
  except KeyboardInterrupt:  # one more, while the last was served
    status = INTERRUPTED
  if status == INTERRUPTED:
    logging.shutdown()
    os._exit(status)
  sys.exit(status)


def _join(flags: argparse.Namespace) -> None:
  """Joins the other processes of this run, if flags or launcher tell of any.  All but the first are quiet from here on."""
  if flags.mode in OF_THE_MACHINE:
    return  # of each machine, whoever else looks at theirs
  place = distributed.place_of(flags.coordinator, flags.num_processes, flags.process_id)
  if place and flags.mode not in OF_SEVERAL:
    raise UserError(
      f"--mode {flags.mode} runs in one process, and {place.told_by} tells of several. Those that do not: "
      f"{', '.join(OF_SEVERAL)}."
    )
  distributed.initialize(place, flags.heartbeat_seconds, flags.connect_seconds)
  if distributed.is_several() and not distributed.is_first():
    reporting.setup_logging(logging.WARNING, f"process {jax.process_index()}: ")


def _train(config: Any, workdir: Path, flags: argparse.Namespace) -> int:
  from jaxdiff import starts, train

  starts.override(config, flags.overrides, is_settled=not flags.config)
  stopped = train.train(config, workdir, flags.allow_config_change)
  return flags.requeue_status if stopped == signal.SIGTERM else 0


def _stoppable(
  mode: Callable[[Any, Path, signals.StopRequest], None],
) -> Callable[[Any, Path, argparse.Namespace], int]:
  """A mode that SIGTERM ends where it is: what it writes appears whole or not at all, and it can be started again.

  Several processes end where they all ask its request.
  """

  def run(config: Any, workdir: Path, flags: argparse.Namespace) -> int:
    try:
      with signals.sigterm_stops() as stop:
        mode(config, workdir, stop)
    except signals.Stopped:
      logger.info("Stopped. The same command goes on.")
      return flags.requeue_status
    return 0

  return run


def _sample(config: Any, workdir: Path, stop: signals.StopRequest) -> None:
  from jaxdiff import sample

  sample.run(config, workdir, stop)


def _evaluate(config: Any, workdir: Path, stop: signals.StopRequest) -> None:
  from jaxdiff.evaluation import evaluate

  evaluate.run(config, workdir, stop)


def _prepare(config: Any, workdir: Path, stop: signals.StopRequest) -> None:
  del workdir, stop
  from jaxdiff.data import prepare

  data = config.data
  path = prepare.prepare(
    data.source, config.prepare.out, config.prepare.name, skip_unreadable=data.skip_unreadable
  )
  logger.info("Wrote %s. Train on it with --config.data.source=tfds:%s", path, path)


def _export(config: Any, workdir: Path, stop: signals.StopRequest) -> None:
  del stop
  from jaxdiff import runs

  runs.export(config, workdir)


def _plan(config: Any, workdir: Path, flags: argparse.Namespace) -> int:
  del workdir
  from jaxdiff import plan, starts

  starts.override(config, flags.overrides, is_settled=not flags.config)
  logger.info("%s", plan.text(plan.make(config)))
  return 0


def _doctor(config: Any, workdir: Path, flags: argparse.Namespace) -> int:
  del config, workdir, flags
  from jaxdiff import doctor

  return doctor.run()


MODES: dict[str, Callable[[Any, Path, argparse.Namespace], int]] = {
  "train": _train,
  "sample": _stoppable(_sample),
  "evaluate": _stoppable(_evaluate),
  "prepare": _stoppable(_prepare),
  "export": _stoppable(_export),
  "plan": _plan,
  "doctor": _doctor,
}

INTERRUPTED = 130
STATUSES = """
exit status:
  0    done; or stopped by SIGTERM or Ctrl-C with everything saved (--requeue_status)
  2    a mistake of the user's, told in one line: config, data, disk, a loss that is not finite
  74   a step hung (config.train.stall_factor, stall_seconds), or another process was lost, or has not come
       (--connect_seconds), or a bucket could not be reached: the same command goes on from the last checkpoint
  130  stopped at once, by Ctrl-C; of a run that trains, by a second one
  1    a mistake of the program's, with a traceback; of doctor: training cannot work here
"""


OF_SEVERAL = ("train", "sample", "evaluate")  # modes that several processes share
OF_A_RUN = ("sample", "evaluate", "export")  # modes that work on what a run has left
OF_THE_MACHINE = ("doctor",)  # modes that need no config
TO_TRAIN = ("train", "plan")  # modes whose config takes over what the run that it starts from has settled


def _parse(arguments: list[str] | None) -> argparse.Namespace:
  """The command line; `overrides` are the arguments that change the config."""
  parser = _Parser(
    prog="python -m jaxdiff.main",
    description="Train diffusion models and draw images with them.",
    epilog="Any value of the config can be set: --config.train.steps=500. See configs/base.py for all of them.\n"
    + STATUSES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "--config", metavar="FILE[:PRESET]", help="config file and preset, e.g. configs/dit_cfg.py:cifar10"
  )
  parser.add_argument("--workdir", metavar="DIR", help="where results lie; default checkpoints/<config name>")
  parser.add_argument(
    "--mode", default="train", help="train (default) | sample | evaluate | prepare | export | plan | doctor"
  )
  parser.add_argument(
    "--allow_config_change", action="store_true", help="go on with a run although its config has changed"
  )
  parser.add_argument(
    "--requeue_status",
    metavar="N",
    type=int,
    default=0,
    help="exit with N where SIGTERM has stopped it before its end, for a supervisor to start it again; default 0",
  )
  several = parser.add_argument_group(
    "several processes",
    "found by themselves under Slurm, Open MPI, Kubernetes and on TPUs; see docs/RELIABILITY.md",
  )
  several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens, for all to meet")
  several.add_argument("--num_processes", metavar="N", type=int, help="how many there are")
  several.add_argument("--process_id", metavar="I", type=int, help="which of them this is, from 0")
  several.add_argument(
    "--heartbeat_seconds",
    metavar="S",
    type=int,
    default=distributed.HEARTBEAT_SECONDS,
    help="a process that was silent for so long is lost, and the others end; default %(default)s",
  )
  several.add_argument(
    "--connect_seconds",
    metavar="S",
    type=int,
    default=distributed.CONNECT_SECONDS,
    help="how long to wait for the others at the start; default %(default)s",
  )
  flags, overrides = parser.parse_known_args(arguments)
  for argument in overrides:
    if not argument.startswith("--config."):
      known = [f"--{flag}" for flag in vars(flags)]
      raise configuration.unreadable(argument, did_you_mean(argument.partition("=")[0], known, cutoff=0.6))
  flags.overrides = overrides
  return flags


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    raise UserError(f"{message}. See --help.")


def _resolve(flags: argparse.Namespace) -> tuple[Any, Path]:
  """The config, with the overrides applied unless it is to train, and the workdir.

  Training reads the config file; what is done with a trained model reads the config that the workdir keeps.
  """
  if flags.mode in OF_THE_MACHINE:
    if unused := [*filter(None, (flags.config, flags.workdir, flags.coordinator)), *flags.overrides]:
      raise UserError(
        f"--mode {flags.mode} looks at the machine and takes no other arguments, not {unused[0]!r}."
      )
    return None, Path()
  if "://" in (flags.workdir or ""):
    raise UserError(
      f"--workdir {flags.workdir} is an address, where a folder has to be, for logs and pictures. Checkpoints may lie in a bucket: "
      "--config.train.checkpoint_dir=gs://bucket/folder."
    )
  if flags.config:
    config = configuration.load(flags.config)
    workdir = Path(flags.workdir or Path("checkpoints") / _name(config, flags.overrides)).expanduser()
  elif flags.workdir:
    config, workdir = None, Path(flags.workdir).expanduser()
  else:
    raise UserError("give a config, as in --config configs/dit_cfg.py, or the --workdir of an earlier run.")
  if config is None or (flags.mode in OF_A_RUN and (workdir / "config.json").is_file()):
    config = configuration.of_run(workdir)
  if flags.mode not in TO_TRAIN:
    configuration.override(config, flags.overrides)
  return config, workdir


def _name(config: Any, overrides: list[str]) -> str:
  """config.name as it will be: what is to be trained is overridden only when the workdir is known."""
  given = [text.partition("=")[2] for text in overrides if text.startswith("--config.name=")]
  return given[-1] if given else config.name


def _cache_dir() -> Path:
  """Where compiled programs are kept between runs."""
  return Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or platform.cache_dir() / "xla")


if __name__ == "__main__":
  platform.with_huge_pages()
  _run_and_exit()
