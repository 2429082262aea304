"""What a DiT's train step spends its time on, on a CPU: by pass, and products of matrices or other operations; how busy the cores are.

python -m benchmarks.spent --only dit_s4_train [--steps 8]

Takes steps of a case of `benchmarks.run --suite cpu` under JAX's profiler.  An operation of the compiled program belongs to the forward or
the backward pass or to the update (clipping, Adam, the average) by the name that JAX has given it, and is a product or not by what it holds.
The time of an operation is that between its begin and its end, on however many threads; some run beside each other, so what is told is
their shares of all, and milliseconds of a step in this proportion.  Not for UNets: Eigen's convolutions go on beside the operations that
follow, which the profiler then counts as theirs.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.run import positive
from benchmarks.suite import report
from benchmarks.suite.cases import CPU

PASSES = ("forward", "backward", "update")
KINDS = ("products", "other")
STEPS = ("train", "control", "distill")  # kinds of cases that have one
AROUND = ("call", "while", "conditional")  # whose time is that of what they hold
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (?:\(.*?\)|\S+) ([\w-]+)\(")
COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) .*\{$")
Group = tuple[str, str]  # of PASSES, of KINDS


def groups(program: str) -> dict[str, Group]:
  """The group of each operation of a compiled program, given as HLO text, by the operation's name."""
  held: dict[str, set[str]] = collections.defaultdict(
    set
  )  # computation -> what tells the kinds of its operations
  found_at: dict[str, tuple[str, str]] = {}  # operation -> (its opcode, its line)
  within = ""
  for line in program.splitlines():
    if found := INSTRUCTION.match(line):
      name, opcode = found.groups()
      held[within].add(_called(line) if opcode == "fusion" else opcode)
      if opcode not in AROUND:
        found_at[name] = opcode, line
    elif found := COMPUTATION.match(line):
      within = found[1]
  return {name: (_pass(line), _kind(opcode, line, held)) for name, (opcode, line) in found_at.items()}


def _called(line: str) -> str:
  found = re.search(r"calls=%?([\w.-]+)", line)
  return found[1] if found else ""


def _pass(line: str) -> str:
  found = re.search(r'op_name="([^"]*)"', line)
  name = found[1] if found else ""
  return "backward" if "transpose(jvp" in name else "forward" if "jvp(" in name else "update"


def _kind(opcode: str, line: str, held: Mapping[str, set[str]]) -> str:
  """By what an operation, or the computation that a fusion calls, holds."""
  called = _called(line)
  opcodes = set(_all_held(called, held)) if called else {opcode}
  return "products" if "dot" in opcodes else "other"


def _all_held(computation: str, held: Mapping[str, set[str]]) -> Iterator[str]:
  for what in held.get(computation, ()):
    yield what
    yield from _all_held(what, held)


def recorded(folder: Path) -> dict[str, float]:
  """Microseconds of each operation in the trace that lies there."""
  (path,) = folder.rglob("*.trace.json.gz")
  spent: dict[str, float] = collections.defaultdict(float)
  for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]:
    if event.get("ph") == "X" and (name := event.get("args", {}).get("hlo_op")):
      spent[name] += event["dur"]
  return spent


def shares(spent: Mapping[str, float], of: Mapping[str, Group]) -> dict[Group, float]:
  """Of all operations' time, what each group takes; they add up to 1."""
  found: dict[Group, float] = collections.defaultdict(float)
  for name, duration in spent.items():
    if name in of:
      found[of[name]] += duration
  whole = sum(found.values())
  return {group: duration / whole for group, duration in found.items()}


def table(found: Mapping[Group, float], milliseconds: float) -> str:
  """Rows of PASSES, columns of KINDS."""
  cell = lambda share: f"{100 * share:.0f}%, {share * milliseconds:.0f} ms"
  lines = [f"| | {' | '.join(KINDS)} | all |", f"| --- |{' ---: |' * (len(KINDS) + 1)}"]
  for rows, title in (*(((p,), p) for p in PASSES), (PASSES, "all")):
    cells = [sum(found.get((p, kind), 0.0) for p in rows) for kind in KINDS]
    lines.append(f"| {title} | {' | '.join(map(cell, (*cells, sum(cells))))} |")
  return "\n".join(lines)


def main() -> None:
  flags = parse()
  from jaxdiff import platform

  platform.configure()
  import jax

  from benchmarks.suite import ours

  of = report.heading()
  step, state, batch, _ = ours.compiled_step(CPU[flags.only])

  def take(number: int) -> tuple[float, float]:
    """(seconds, those of all threads) of so many steps."""
    nonlocal state
    begin, busy = time.perf_counter(), time.process_time()
    for _ in range(number):
      state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    return time.perf_counter() - begin, time.process_time() - busy

  take(flags.steps)
  seconds, threads = take(flags.steps)
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      take(flags.steps)
    found = shares(recorded(Path(folder)), groups(step.as_text()))
  milliseconds = 1000 * seconds / flags.steps
  print(f"{flags.only}; {of}")
  print(table(found, milliseconds))
  cores = os.cpu_count() or 1
  print(f"{milliseconds:.0f} ms a step; {100 * threads / seconds / cores:.0f}% of {cores} cores' time.")


def parse() -> Any:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  steps = [name for name, case in CPU.items() if case.kind in STEPS and case.model["name"] == "dit"]
  parser.add_argument("--only", choices=steps, required=True, help="the case")
  parser.add_argument("--steps", type=positive, default=8)
  return parser.parse_args()


if __name__ == "__main__":
  from jaxdiff import platform

  platform.with_huge_pages()
  main()
