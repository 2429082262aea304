"""What is kept of a suite's run: a JSON file for each device, and a table in docs/PERFORMANCE.md."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.suite import flops
from benchmarks.suite.cases import Case
from benchmarks.suite.measure import OURS, ROOT, Measured, quartiles, ratios

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "PERFORMANCE.md"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "diffusers")
HEAD = (
  "case",
  "images/s",
  "ms (quartiles)",
  "GFLOP: formula, compiler",
  "MFU",
  "memory, MiB: ours, torch",
  "compile, s",
  "torch",
  "torch.compile",
  "diffusers",
  "other",
)


def summary(case: Case, measured: Measured) -> dict[str, Any]:
  """The figures of a case, plain JSON values; times in seconds, each [median, lower, upper quartile]."""
  facts, rows = measured.facts[OURS], measured.rows[OURS]
  seconds = {name: [row["seconds"] for row in taken] for name, taken in measured.rows.items()}
  middle = statistics.median(seconds[OURS])
  formula = flops.of_step(case)
  compiler, lowered = facts.get("flops_compiled"), facts.get("flops_lowered")
  whole = formula * (case.steps if case.kind == "sample" else 1)
  found: dict[str, Any] = {
    "date": datetime.date.today().isoformat(),
    "rounds": len(rows),
    "batch_size": case.batch_size,
    "dtype": case.dtype,
    "images_per_s": case.batch_size / middle,
    "seconds": {name: quartiles(values) for name, values in seconds.items()},
    "ratios": {name: quartiles(ratios(seconds, name)) for name in seconds if name != OURS},
    "absent": measured.absent,
    "facts": measured.facts,
    # the peak so far, before the products of matrices between the measurements
    "memory": {name: taken[0]["memory"] for name, taken in measured.rows.items()},
  }
  if formula:
    found |= {"flops_formula": formula, "flops_compiled": compiler, "flops_lowered": lowered}
    found["flops_differ"] = flops.difference(formula, compiler, lowered, case.why)
  if "matmul" in rows[0]:
    rate = statistics.median(row["matmul"] for row in rows)
    found |= {"matmul_flops_per_s": rate, "flops_per_s": whole / middle, "mfu": whole / middle / rate}
  extra = set(rows[0]) - {"seconds", "memory", "matmul"}
  return found | {name: quartiles([row[name] for row in rows]) for name in sorted(extra)}


def device() -> dict[str, str]:
  """What computes, `device`: the first accelerator's name, or the processor's and its number of cores; and its `platform`."""
  import jax

  found = jax.devices()[0]
  name = found.device_kind if found.platform != "cpu" else f"{processor()}, {os.cpu_count()} cores"
  return {"device": name, "platform": found.platform}


def processor() -> str:
  try:
    told = Path("/proc/cpuinfo").read_text()
  except OSError:
    told = ""
  named = re.search(r"model name\s*: (.+)", told)
  if not named:
    return platform.processor() or platform.machine()
  # Virtual machines call processors by one name of which one computes twice as fast as the other.
  numbers = {
    word: re.search(rf"^{key}\s*: (\d+)", told, re.MULTILINE)
    for word, key in (("family", "cpu family"), ("model", "model"))
  }
  return " ".join([named[1].strip(), *(f"{word} {found[1]}" for word, found in numbers.items() if found)])


def versions() -> dict[str, str]:
  found = {"python": platform.python_version()}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  flags = os.environ.get("XLA_FLAGS", "")
  return found | ({"XLA_FLAGS": flags} if flags else {})


def heading() -> str:
  """What a measurement is of: the device, the date, versions, how busy the machine is."""
  said = ", ".join(f"{name} {version}" for name, version in versions().items())
  today, load = datetime.date.today().isoformat(), os.getloadavg()[0]
  return f"{device()['device']}; {today}; {said}; load before: {load:.2f} on {os.cpu_count()} cores"


def keep(
  suite: str,
  on: str,
  found: Mapping[str, Any],
  command: str,
  order: Mapping[str, Case],
  page: Path = PAGE,
  folder: Path = RESULTS,
) -> None:
  """Puts cases into the device's file, and into the suite's table of the page unless that is another device's."""
  path = write(suite, on, found, command, folder)
  if shown_in_page(suite, page) in (None, on):
    put_into_page(suite, table(json.loads(path.read_text()), order), page)


def write(suite: str, on: str, cases: Mapping[str, Any], command: str, folder: Path = RESULTS) -> Path:
  """Puts cases into the device's file, beside those it already has, each with the command and the versions it is of."""
  path = path_of(on, folder)
  kept = json.loads(path.read_text()) if path.is_file() else {}
  if kept.get("suite", suite) != suite:
    raise SystemExit(
      f"{path} holds the results of the suite {kept['suite']} on this device. Move it away first."
    )
  whole = {"device": on, "suite": suite}
  new = {name: found | {"command": command, "versions": versions()} for name, found in cases.items()}
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(whole | {"cases": kept.get("cases", {}) | new}, indent=1) + "\n")
  return path


def path_of(on: str, folder: Path = RESULTS) -> Path:
  """The file of a device's results."""
  return folder / f"{re.sub('[^a-z0-9]+', '_', on.lower()).strip('_')}.json"


def table(result: Mapping[str, Any], order: Mapping[str, Case]) -> str:
  """A device's results in Markdown: what was measured with what, a row for each case, what the rows need said."""
  cases = {name: result["cases"][name] for name in order if name in result["cases"]}
  dates = sorted({found["date"] for found in cases.values()})
  said = distinct(
    ", ".join(f"{name} {version}" for name, version in c["versions"].items()) for c in cases.values()
  )
  when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
  command = f"`python -m benchmarks.run --suite {result['suite']}`, {_rounds(cases)}"
  lines = [f"{result['device']}; {when}; {'; '.join(said)}; {command}.", "", *head()]
  notes = []
  for name, found in cases.items():
    lines.append(row(name, found))
    notes += remarks(name, found, order[name], cases)
  return "\n".join([*lines, *([""] if notes else []), *(f"- {note}" for note in notes)])


def _rounds(cases: Mapping[str, Any]) -> str:
  """How often each case was measured: "7 rounds", or of those that had more or fewer "7 rounds (unet_train: 9)"."""
  usual = statistics.mode(found["rounds"] for found in cases.values())
  others = ", ".join(
    f"{name}: {found['rounds']}" for name, found in cases.items() if found["rounds"] != usual
  )
  return f"{usual} rounds" + (f" ({others})" if others else "")


def distinct(texts: Iterable[str]) -> list[str]:
  return list(dict.fromkeys(texts))


def head() -> list[str]:
  return ["| " + " | ".join(HEAD) + " |", "| --- |" + " ---: |" * (len(HEAD) - 1)]


def row(name: str, found: Mapping[str, Any]) -> str:
  """A line of the table."""
  named = dict(found["ratios"])
  is_of_images = "loop_waits" not in found  # a checkpoint has none
  cells = [f"{name}, batch {found['batch_size']}", digits(found["images_per_s"]) if is_of_images else ""]
  cells.append(spread([1000 * value for value in found["seconds"][OURS]]))
  cells += [_flops(found), f"{100 * found['mfu']:.0f}%" if "mfu" in found else ""]
  facts = found["facts"][OURS]
  cells += [
    ", ".join(f"{found['memory'][who] / 2**20:,.0f}" for who in (OURS, "torch") if who in found["memory"]),
    digits(facts["compile_s"]) if "compile_s" in facts else "",
  ]
  for rival in ("torch", "torch.compile", "diffusers"):
    absent = "not here" if rival in found["absent"] else ""
    cells.append(spread(named.pop(rival)) if rival in named else absent)
  cells.append("; ".join(f"{rival} {spread(values)}" for rival, values in named.items()))
  return "| " + " | ".join(cells) + " |"


def _flops(found: Mapping[str, Any]) -> str:
  if "flops_formula" not in found:
    return ""
  counts = (found["flops_formula"], found["flops_compiled"])
  return ", ".join(digits(count / 1e9) if count else "?" for count in counts)


def remarks(name: str, found: Mapping[str, Any], case: Case, cases: Mapping[str, Any]) -> list[str]:
  """What a row cannot say: why counts differ, why a rival is missing, what a figure is held against."""
  said = []
  if found.get("flops_differ"):
    said.append(f"{name}: {found['flops_differ']}.")
  said += [f"{name}: {rival} does not run here: {reason}" for rival, reason in found["absent"].items()]
  if case.eats in cases:
    times = found["images_per_s"] / cases[case.eats]["images_per_s"]
    said.append(f"{name}: {digits(times)} times as many images as {case.eats} takes.")
  if "overhead" in found:
    middle, low, high = (100 * value for value in found["overhead"])
    said.append(f"{name}: beside the bare step the loop costs {middle:.1f}% ({low:.1f} to {high:.1f}).")
  if "loop_waits" in found:
    waits, held = 1000 * found["loop_waits"][0], found["facts"][OURS]["bytes"] / 2**20
    said.append(f"{name}: {held:,.0f} MiB; the loop waits for {waits:.0f} ms of it.")
  return said


def put_into_page(suite: str, text: str, page: Path = PAGE) -> None:
  """Replaces what stands between the suite's markers."""
  before, _, after = _parts(suite, page)
  page.write_text(f"{before}\n{text}\n{after}")


def shown_in_page(suite: str, page: Path = PAGE) -> str | None:
  """The device whose table stands between the suite's markers, if one does."""
  first = re.match(r"\s*(.+?); \d{4}-", _parts(suite, page)[1])
  return first[1] if first else None


def _parts(suite: str, page: Path) -> tuple[str, str, str]:
  """(the page up to the suite's first marker, what is between both, the rest)."""
  begin, end = f"<!-- {suite}: begin -->", f"<!-- {suite}: end -->"
  before, _, rest = page.read_text().partition(begin)
  between, found, after = rest.partition(end)
  if not found:
    raise ValueError(f"{page} has no {begin} ... {end}")
  return before + begin, between, end + after


def spread(values: list[float]) -> str:
  """Median and quartiles."""
  middle, low, high = (digits(value) for value in values)
  return f"{middle} ({low} to {high})"


def digits(value: float) -> str:
  """Three significant digits."""
  if abs(value) >= 10:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"
  return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"
