"""Loss spikes: noticed in the means that are logged, undone by going back to a checkpoint and on past the batches that led there.

A model of many parameters may lose within some steps what it has learned, with gradients that are finite and clipped.  To go
back and skip those batches helps, as it takes both, those parameters and those batches.
Source: Chowdhery et al. 2022 (PaLM, arXiv 2204.02311), section 5.1.

What was undone is kept in <workdir>/rollbacks.json, and in each checkpoint after it: a run that goes on reads the same batches
as one that was never killed.
"""

from __future__ import annotations

import bisect
import json
import logging
import statistics
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdiff import checkpoints, locks
from jaxdiff.errors import UserError
from jaxdiff.files import write_atomically
from jaxdiff.stores import Folder

logger = logging.getLogger("jaxdiff")

FILE = "rollbacks.json"
KEPT, NEEDED = 10, 5  # windows of the log that are remembered, and those that a judgement needs


def check_factor(factor: float) -> None:
  """Raises UserError for a factor that would call every other loss a spike."""
  if factor and not factor > 1:
    raise UserError(f"config.train.spike_factor must be above 1, or 0 for no rollbacks, not {factor:g}.")


class Window(NamedTuple):
  """What was logged at once: the last step, and the mean loss."""

  step: int
  loss: float


class Spike(Exception):
  """The loss of a window is a multiple of those before it.  Good until `before`, a step some windows earlier."""

  def __init__(self, step: int, loss: float, usual: float, before: int):
    super().__init__(
      f"The loss rose to {loss:.4g} at step {step}, {loss / usual:.1f} times its median of {usual:.4g}"
    )
    self.step, self.before = step, before


class Detector:
  """Judges the logged means of a run, one after the other; a factor of 0 finds nothing, nor does a median that is not positive.

  What it knows is a function of those of the last `KEPT` windows, which a checkpoint keeps.  A new stage of a task (a round of
  distillation) has a loss of its own: there it begins anew.
  """

  def __init__(self, factor: float, stages: Collection[int] = (), windows: Sequence[Sequence[float]] = ()):
    self._factor, self._stages = factor, sorted(stages)
    self.windows = [Window(int(step), loss) for step, loss in windows]

  def add(self, step: int, loss: float) -> Spike | None:
    """The spike, if the mean loss of the steps up to this one is more than `factor` times the median before."""
    if self.windows and self._stage(self.windows[-1].step) != self._stage(step):
      self.windows = []
    if self._factor and len(self.windows) >= NEEDED:
      usual = statistics.median(window.loss for window in self.windows)
      if 0 < self._factor * usual < loss:
        return Spike(step, loss, usual, self.windows[-2].step)
    self.windows = [*self.windows, Window(step, loss)][-KEPT:]
    return None

  def _stage(self, step: int) -> int:
    return bisect.bisect_left(self._stages, step)


class Rollbacks(NamedTuple):
  """What was undone in a run: how often, and by how many batches the data are ahead of the steps, from a step on."""

  times: int = 0
  ahead: tuple[tuple[int, int], ...] = ()  # (step, batches), rising

  def at(self, step: int) -> int:
    """How many batches the data are ahead after so many steps."""
    return next((batches for since, batches in reversed(self.ahead) if since <= step), 0)

  def and_back(self, spike: Spike, step: int) -> Rollbacks:
    """With one more: from `step` on it goes with the batch after those that led into the spike."""
    kept = tuple(pair for pair in self.ahead if pair[0] < step)
    return Rollbacks(self.times + 1, (*kept, (step, spike.step + self.at(spike.step) - step)))


def resume(workdir: Path, start: int, kept: Rollbacks) -> Rollbacks:
  """Those of a run that goes on after so many steps; what was undone of later ones is forgotten, as they are taken again.

  `kept` are those that the checkpoint of `start` knows of: all but the last one, if that led back to it, and all there are where
  checkpoints were copied without the note.
  """
  found = read(workdir)
  newer = max(found, kept, key=lambda rollbacks: rollbacks.times)
  known = newer._replace(ahead=tuple(pair for pair in newer.ahead if pair[0] <= start))
  if known != found:
    _write(workdir, known)
  return known


def read(workdir: Path) -> Rollbacks:
  """Those of a run so far."""
  path = workdir / FILE
  if not path.exists():
    return Rollbacks()
  try:
    return of_json(json.loads(path.read_text()))
  except (ValueError, TypeError) as error:
    raise UserError(
      f"{str(path)!r} cannot be read: {error}. It says which batches this run has skipped."
    ) from None


def of_json(found: Sequence[Any]) -> Rollbacks:
  """From [times, [[step, batches], ...]], what JSON makes of them."""
  times, ahead = found
  return Rollbacks(int(times), tuple((int(step), int(batches)) for step, batches in ahead))


def _write(workdir: Path, rollbacks: Rollbacks) -> None:
  text = json.dumps(rollbacks).encode()
  write_atomically(workdir / FILE, lambda file: file.write(text))


def roll_back(spike: Spike, workdir: Path, store: Folder, allowed: int) -> None:
  """Leaves the checkpoints in `store` that the spike has not touched, or else the oldest, and notes which batches are skipped from there.

  Killed before the note is written, the run goes on with the same batches, meets the same spike and comes here again.
  Raises UserError where it has been rolled back `allowed` times, and where another run has taken the workdir meanwhile; then the
  checkpoints stay.
  """
  with locks.hold(workdir.absolute(), store):
    before, step = read(workdir), checkpoints.newest_until(store, spike.before)
    if before.times >= allowed:
      raise _given_up(spike, store, step, before.times, allowed)
    checkpoints.drop_after(store, step)
    now = before.and_back(spike, step)
    _write(workdir, now)
  place = f"the checkpoint of step {step}" if step else "the start, as there is no checkpoint before it"
  logger.warning(
    "%s. Back to %s, and on past the %d batches since then.", spike, place, now.at(step) - before.at(step)
  )


def _given_up(spike: Spike, store: Folder, step: int, times: int, allowed: int) -> UserError:
  """The UserError for a run that has been rolled back often enough; `step` is where it would go back to."""
  good = (
    f"The last good checkpoint is step {step}, in {store / checkpoints.FOLDER}"
    if step
    else "No checkpoint is from before it"
  )
  return UserError(
    f"{spike}, after {times} rollbacks (config.train.max_rollbacks={allowed}). {good}. "
    "Try a lower config.optim.learning_rate or config.optim.clip_norm=1."
  )
