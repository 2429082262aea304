"""How much a classifier of noised images sees: its accuracy by noise level, while it is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import data, distributed, optim, parallel, plots
from jaxdiff.data import splits
from jaxdiff.diffusion import schedules
from jaxdiff.reporting import Shown
from jaxdiff.tasks import classifier, process
from jaxdiff.types import NULL_LABEL, NoiseSchedule, Task

LEVELS = np.linspace(0, 1, 11)
EXAMPLES = 1024  # that are classified at each level


def make_preview(
  config: Any, task: Task, strategy: parallel.Strategy, source: data.Source, workdir: Path
) -> Callable[..., Shown]:
  """The function preview(state, step, is_last) -> Shown that a training loop calls.

  It shows the averaged parameters the same noised examples each time, from config.data.heldout (or, without one, from
  the training data), and saves accuracy.png.
  """
  del task
  name = "heldout" if config.data.heldout else "train"
  if config.data.heldout:
    heldout = data.load(config.data.source, config.data.heldout, skip_unreadable=config.data.skip_unreadable)
    data.check_same_classes(source, heldout, f"{config.data.heldout!r} (config.data.heldout)")
    source = heldout
  rows = strategy.place_rows(_examples(source, config.data))
  measure = make_measure(config)

  def preview(state: Any, step: int, is_last: bool = False) -> Shown:
    del step, is_last
    found = {
      key: distributed.to_host(shares) for key, shares in measure(optim.ema_params(state), rows).items()
    }
    shown = {}
    if distributed.is_first():
      where = workdir / "accuracy.png"
      shown["accuracy"] = plots.accuracy_by_noise(LEVELS, found, config.model.num_classes, where)
    numbers = {f"{name}/{key}": float(shares.mean()) for key, shares in found.items()}
    numbers |= {
      f"{name}/{key}/noise_{level:.1f}": float(share)
      for key, shares in found.items()
      for level, share in zip(LEVELS, shares, strict=True)
    }
    return Shown(shown, numbers)

  return preview


def make_measure(config: Any) -> Callable[..., dict[str, jax.Array]]:
  """The compiled function (params, batch) -> {"top1": f32[levels], ...}, accuracies at each of LEVELS."""
  schedule = process.build_schedule(config.diffusion)
  log_probs = classifier.make_log_probs(config)
  times = jnp.asarray(times_of(schedule, LEVELS), jnp.float32)

  @jax.jit
  def measure(params: Any, batch: Any) -> dict[str, jax.Array]:
    def at(t: jax.Array) -> dict[str, jax.Array]:
      key = jax.random.key(config.sample.seed)
      noised = process.noised(
        schedule, lambda schedule, key, index: jnp.full(index.shape, t), batch, key, key
      )
      said = log_probs(params, noised.z, noised.t)
      tops = classifier.tops(config.model.num_classes)
      return {f"top{k}": jnp.mean(classifier.is_among(said, batch["label"], k)) for k in tops}

    return jax.lax.map(at, times)

  return measure


def times_of(schedule: NoiseSchedule, levels: np.ndarray) -> np.ndarray:
  """The times at which 2/pi arctan(sigma_t / alpha_t) is level, f64; beyond the schedule's range its nearer end.

  That angle is t itself in the cosine schedule, and says the same of any other: 0 is clean, 1 is noise alone.
  """
  with np.errstate(divide="ignore"):
    log_snr = -2 * np.log(np.tan(np.pi / 2 * np.asarray(levels, np.float64)))
  times = schedules.time_of_log_snr(schedule, log_snr)
  return np.where(levels <= 0, 0.0, np.where(levels >= 1, 1.0, times))


def _examples(source: data.Source, settings: Any) -> dict[str, np.ndarray]:
  """At most EXAMPLES labelled examples, of all classes, as many as can be split over the devices."""
  some = splits.share(source, "heldout", ("0", str(EXAMPLES)))
  batch = next(data.epoch(some, settings, len(some)))
  labelled = np.flatnonzero(batch["label"] != NULL_LABEL)
  kept = labelled[: len(labelled) // jax.device_count() * jax.device_count()]
  return {key: rows[kept] for key, rows in batch.items()}
