"""A trace of a few train steps, on host and device, for TensorBoard's profiler or ui.perfetto.dev."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxdiff.errors import UserError

logger = logging.getLogger("jaxdiff")

Step = Callable[..., Any]  # (state, batch) -> (state, metrics)


@contextlib.contextmanager
def traced(step: Step, profile: Any, workdir: Path, start: int) -> Iterator[Step]:
  """The step, of which those that config.profile asks for are recorded; of a run that has taken `start` steps.

  The trace holds whole steps with all the loop does between them: the device is waited for before the first and after the last.
  Without config.profile.steps this is the step itself.  A run that stops in between leaves what it has recorded.
  Raises UserError for steps that cannot be.
  """
  if profile.steps < 0 or profile.after < 0:
    raise UserError(
      f"config.profile.steps is {profile.steps} and config.profile.after {profile.after}; neither can be below 0."
    )
  if not profile.steps:
    yield step
    return
  folder = Path(profile.folder).expanduser() if profile.folder else workdir / "profile"
  number, first = start, start + profile.after + 1
  last = first + profile.steps - 1
  with contextlib.ExitStack() as recording:

    def step_and_trace(state: Any, batch: Any) -> Any:
      nonlocal number
      number += 1
      if number == first:
        jax.block_until_ready(state)
        recording.enter_context(jax.profiler.trace(folder))
      with jax.profiler.StepTraceAnnotation("train", step_num=number):
        out = step(state, batch)
      if number == last:
        jax.block_until_ready(out)
        recording.close()
        logger.info(
          "Traced steps %d to %d: tensorboard --logdir %s, or open its *.trace.json.gz at ui.perfetto.dev.",
          first, last, folder,
        )  # fmt: skip
      return out

    yield step_and_trace
  if number < first:
    logger.warning(
      "No step was traced: the run ended after %d of the %d steps that config.profile.after lets pass first.",
      number - start, profile.after,
    )  # fmt: skip
