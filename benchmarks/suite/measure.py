"""Measuring in turn: each contestant in a process of its own, one measurement at a time with a pause between.

So a slow minute of the machine hits all alike. Ratios are a rival's time over ours in the same round: above 1 ours is faster.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.suite.cases import SUITES
from benchmarks.suite.runner import Runner

ROOT = Path(__file__).resolve().parent.parent.parent
OURS = "jaxdiff"
# Ours without what jaxdiff.platform sets before JAX starts: rivals of any case, where they are asked for.
SELVES = {
  "small_pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"},
  "ynnpack": {"XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type=+individual_convolution"},
}
PAUSE = 0.3  # seconds, for the threads of the one that ran to go to sleep
SHORT = 2.0  # seconds of a run, before which there are more that do not count
WARM = 0.5  # seconds that those take, at least
LONG = 10.0  # seconds of a run, of which one more warms up enough
IN_A_ROW = 5  # measurements of a process that is started anew for each round

Row = dict[str, float]  # seconds, and what else a run tells


class Plan(NamedTuple):
  """How the contestants take turns."""

  suite: str
  rounds: int
  # whether all stay: on an accelerator they would not fit into its memory side by side, and each round starts them anew
  stay: bool
  changes: tuple[str, ...] = ()  # of our config, as model.remat=full
  rivals: tuple[str, ...] = ()  # of those that a case has and SELVES, these; none: all that it has
  batch: int = 0  # images a batch, for all contestants; 0: the case's


class Measured(NamedTuple):
  """What came of a case."""

  facts: dict[str, dict[str, Any]]  # contestant -> what its Runner said of itself
  rows: dict[str, list[Row]]  # contestant -> its measurements, as many and in the same order for all
  absent: dict[str, str]  # contestant -> why it does not run here


class Gone(Exception):
  """A contestant's process has ended, and this is why."""


class Worker:
  """A contestant's process: it says its facts once warm, then answers each line of input by a measurement."""

  def __init__(self, plan: Plan, case: str, name: str, env: Mapping[str, str]):
    # A file: a pipe that nobody reads would fill up.
    self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - close() closes it
    self._process = subprocess.Popen(
      command(plan, case, name),
      cwd=ROOT,
      env={**env, **SELVES.get(name, {})},
      text=True,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._stderr,
    )
    self.facts: dict[str, Any] = {}

  def start(self) -> None:
    """Waits until it is warm.  Raises Gone."""
    self.facts = self._read()

  def ask(self) -> Row:
    """One measurement.  Raises Gone."""
    assert self._process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write("run\n")
      self._process.stdin.flush()
    return self._read()

  def close(self) -> None:
    self._process.communicate()
    self._stderr.close()

  def _read(self) -> Any:
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if line:
      return json.loads(line)
    self._process.wait()
    self._stderr.seek(0)
    said = [text.strip() for text in self._stderr if text.strip()]
    raise Gone(said[-1][:160] if said else f"it ended with status {self._process.returncode}")


def work(runner: Runner, runs: int) -> Iterator[dict[str, Any]]:
  """What a worker says: its facts once warm, then a measurement each time."""
  seconds, _ = timed(runner, 1)
  more = runner.warmup - 1
  for _ in range(min(1, more) if seconds > LONG else more):
    seconds, _ = timed(runner, 1)
  yield runner.facts
  while True:
    if seconds < SHORT:  # others have filled the caches meanwhile, and memory that was free may have gone
      timed(runner, 1 + int(WARM / seconds))
    seconds, told = timed(runner, runs)
    row = {"seconds": seconds} | told
    row["memory"] = runner.memory()
    if runner.matmul is not None:
      row["matmul"] = runner.matmul()
    yield row


def timed(runner: Runner, runs: int) -> tuple[float, dict[str, float]]:
  """(seconds of a run, the mean of so many in a row; what the last one told)."""
  start = time.perf_counter()
  for _ in range(runs):
    told = runner.run()
  return (time.perf_counter() - start) / runs, told


def serve(runner: Runner, runs: int, out: Any) -> None:
  """A worker's main loop: facts, then an answer to each line of input."""
  said = work(runner, runs)
  print(json.dumps(next(said)), file=out, flush=True)
  for _ in sys.stdin:
    print(json.dumps(next(said)), file=out, flush=True)


def command(plan: Plan, case: str, name: str) -> list[str]:
  """What runs a contestant."""
  worker = ["--suite", plan.suite, "--only", case, "--worker", name]
  asked = [f"--set={change}" for change in plan.changes] + [f"--batch={plan.batch}"] * bool(plan.batch)
  return [sys.executable, "-m", "benchmarks.run", *worker, *asked]


def take_turns(plan: Plan, name: str) -> Measured:
  """Measures a case, round by round."""
  rivals = SUITES[plan.suite][name].rivals
  contestants = (OURS, *(rivals if not plan.rivals else (r for r in (*rivals, *SELVES) if r in plan.rivals)))
  measured = Measured({}, {}, {})
  with tempfile.TemporaryDirectory(prefix="jaxdiff-suite-") as cache:
    env = environment(plan, cache)
    if plan.stay:
      _all_stay(plan, name, contestants, env, measured)
    else:
      _start_anew(plan, name, contestants, env, measured)
  return measured


def environment(plan: Plan, cache: str) -> dict[str, str]:
  """The variables of the workers: JAX takes memory as it needs it, and on a CPU looks for nothing else."""
  env = dict(os.environ, XLA_PYTHON_CLIENT_PREALLOCATE="false")
  # Compile seconds are those of a first time, or of this run's first start.
  env.pop("JAX_COMPILATION_CACHE_DIR", None)
  env["TORCHINDUCTOR_CACHE_DIR"] = f"{cache}/inductor"
  if plan.suite == "cpu":
    return env | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
  if not plan.stay:
    env["JAX_COMPILATION_CACHE_DIR"] = cache
  return env


def _all_stay(
  plan: Plan, name: str, contestants: Sequence[str], env: Mapping[str, str], measured: Measured
) -> None:
  workers: dict[str, Worker] = {}
  for contestant in contestants:
    workers[contestant] = Worker(plan, name, contestant, env)
    with _or_absent(measured, workers, contestant):
      workers[contestant].start()
      measured.facts[contestant] = workers[contestant].facts
      measured.rows[contestant] = []
  for _ in range(plan.rounds):
    for contestant in list(workers):
      time.sleep(PAUSE)
      with _or_absent(measured, workers, contestant):
        measured.rows[contestant].append(workers[contestant].ask())
  for worker in workers.values():
    worker.close()


def _start_anew(
  plan: Plan, name: str, contestants: Sequence[str], env: Mapping[str, str], measured: Measured
) -> None:
  for _ in range(plan.rounds):
    for contestant in contestants:
      if contestant in measured.absent:
        continue
      workers = {contestant: Worker(plan, name, contestant, env)}
      with _or_absent(measured, workers, contestant):
        workers[contestant].start()
        measured.facts.setdefault(contestant, workers[contestant].facts)  # of the start that compiled
        rows = [workers[contestant].ask() for _ in range(IN_A_ROW)]
        measured.rows.setdefault(contestant, []).extend(rows)
      for worker in workers.values():
        worker.close()


@contextlib.contextmanager
def _or_absent(measured: Measured, workers: dict[str, Worker], contestant: str) -> Iterator[None]:
  """One that ends before its time is told of and left out, with all it has measured."""
  try:
    yield
  except Gone as gone:
    measured.absent[contestant] = str(gone)
    workers.pop(contestant).close()
    for kept in (measured.facts, measured.rows):
      kept.pop(contestant, None)


def ratios(seconds: Mapping[str, Sequence[float]], rival: str) -> list[float]:
  """A rival's time over ours, round by round."""
  return [theirs / ours for theirs, ours in zip(seconds[rival], seconds[OURS], strict=True)]


def quartiles(values: Sequence[float]) -> list[float]:
  """[median, lower quartile, upper quartile]."""
  if len(values) < 2:
    return [values[0]] * 3
  low, middle, high = statistics.quantiles(values, n=4)
  return [middle, low, high]
