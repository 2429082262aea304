"""Everything that is timed, with its rivals, in one run: see docs/PERFORMANCE.md for how to read it.

python -m benchmarks.run --suite cpu [--only NAME ...] [--rounds N] [--quick]      (pip install -r requirements-torch.txt)
python -m benchmarks.run --suite gpu
python -m benchmarks.run --suite gpu --only dit_xl2_train --set model.attention=cudnn       (ours with another config)
python -m benchmarks.run --suite cpu --list

Writes benchmarks/results/<device>.json and, unless that is of another device, the suite's table in docs/PERFORMANCE.md; with --quick,
--set, --batch or --rival, and on a CPU for the suite of GPUs, it only prints.
What is missing here (a wheel, a rival, a device's memory) is told in a line and left out.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from benchmarks.suite import measure, report, wheels
from benchmarks.suite.cases import SUITES, Case


def main() -> int:
  flags = parse()
  cases: dict[str, Case] = dict(SUITES[flags.suite])
  if flags.batch:
    cases = {name: case._replace(batch_size=flags.batch) for name, case in cases.items()}
  unknown = [name for name in flags.only or () if name not in cases]
  if unknown:
    raise SystemExit(f"no case {unknown[0]!r} in the suite {flags.suite}. Known: {', '.join(cases)}.")
  if flags.worker:
    return work(flags.suite, cases[flags.only[0]]._replace(changes=tuple(flags.set)), flags.worker)
  if flags.list:
    print("\n".join(cases))
    return 0
  known = {rival for name in flags.only or cases for rival in (*cases[name].rivals, *measure.SELVES)}
  if strangers := [rival for rival in flags.rival if rival not in known]:
    raise SystemExit(f"no rival {strangers[0]!r} of these cases. Known: {', '.join(sorted(known))}.")
  chosen = runnable({name: cases[name] for name in flags.only or cases})
  stay = flags.suite == "cpu"
  rounds = 2 if flags.quick else max(2 if stay else 1, flags.rounds or (7 if stay else 3))
  plan = measure.Plan(flags.suite, rounds, stay, tuple(flags.set), tuple(flags.rival), flags.batch)
  print(f"load of the machine before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores", flush=True)
  print("\n".join(report.head()), flush=True)
  rounds_said = f" --rounds {flags.rounds}" if flags.rounds else ""
  prints_only = flags.quick or flags.set or flags.rival or flags.batch
  failed, kept_of, found = False, "", dict[str, Any]()
  for name, case in chosen.items():
    measured = measure.take_turns(plan, name)
    if measure.OURS not in measured.facts:
      print(f"{name}: jaxdiff does not run here: {measured.absent[measure.OURS]}", flush=True)
      failed = True
      continue
    found[name] = report.summary(case, measured)
    print(
      "\n".join([report.row(name, found[name]), *report.remarks(name, found[name], case, found)]), flush=True
    )
    facts = measured.facts[measure.OURS]
    if not prints_only and (facts["platform"] == "cpu") == (flags.suite == "cpu"):
      kept_of = facts["device"]
      only = f" --only {name}" if flags.only else ""
      command = f"python -m benchmarks.run --suite {flags.suite}{only}{rounds_said}"
      report.keep(flags.suite, kept_of, {name: found[name]}, command, cases)
  if kept_of and report.shown_in_page(flags.suite) != kept_of:
    print(
      f"{report.PAGE.name} has the table of another device: this one's results are in {report.path_of(kept_of)} alone."
    )
  return int(failed)


def runnable(cases: dict[str, Case]) -> dict[str, Case]:
  """Those whose wheels are here; of the others it is told what they lack."""
  if lacking := wheels.missing(wheels.ALWAYS):
    raise SystemExit(f"not here, and nothing runs without: {', '.join(lacking)}.")
  if lacking := wheels.missing():
    print(f"wheels that are not here: {', '.join(lacking)}")
  kept = {}
  for name, case in cases.items():
    if lacking := wheels.missing(case.needs):
      print(f"{name}: left out, it needs {', '.join(lacking)}")
    else:
      kept[name] = case
  return kept


def work(suite: str, case: Case, contestant: str) -> int:
  """A worker: what it says goes where its standard output went, and nothing else does."""
  if is_ours(contestant):
    from jaxdiff import platform

    platform.with_huge_pages()
  out = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  if suite == "gpu" and not finds_accelerator(contestant):
    raise SystemExit(f"{contestant} finds no GPU here")
  measure.serve(contest(case, contestant), case.runs, out)
  return 0


def is_ours(contestant: str) -> bool:
  """Whether it is jaxdiff, as it is or with other settings of its process."""
  return contestant in (measure.OURS, *measure.SELVES)


def finds_accelerator(contestant: str) -> bool:
  """Whether a contestant's framework would compute on a GPU here: full sizes of the suite gpu are not for a CPU."""
  if is_ours(contestant):
    from jaxdiff import platform

    platform.configure()
    import jax

    return jax.default_backend() != "cpu"
  import torch

  return torch.cuda.is_available()


def contest(case: Case, contestant: str) -> Any:
  """The Runner of a contestant, in this process."""
  wheels.stand_in()
  if not is_ours(contestant):
    from benchmarks.suite import rivals

    return rivals.make(case, contestant)
  from jaxdiff import platform

  platform.configure()
  from benchmarks.suite import ours

  runner = ours.make(case)
  return runner._replace(facts=runner.facts | report.device())


def positive(text: str) -> int:
  """A number of 1 or more, for argparse."""
  if not text.isdigit() or not int(text):
    raise argparse.ArgumentTypeError(f"{text} is no number of 1 or more")
  return int(text)


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--suite", choices=SUITES, required=True)
  parser.add_argument("--only", action="append", metavar="NAME", help="only this case (may be repeated)")
  parser.add_argument("--rounds", type=positive, help="by default 7, on a GPU 3 of 5 measurements each")
  parser.add_argument("--quick", action="store_true", help="2 rounds, and it only prints")
  parser.add_argument(
    "--set", action="append", default=[], metavar="KEY=VALUE", help="of our config, as model.remat=full"
  )
  parser.add_argument(
    "--rival",
    action="append",
    default=[],
    metavar="NAME",
    help=f"only against this one (may be repeated): one of the case's, or ours as {' or '.join(measure.SELVES)}",
  )
  parser.add_argument(
    "--batch", type=positive, default=0, metavar="N", help="images a batch, for all contestants"
  )
  parser.add_argument("--list", action="store_true", help="the names of the suite's cases")
  parser.add_argument("--worker", help=argparse.SUPPRESS)
  return parser.parse_args()


if __name__ == "__main__":
  sys.exit(main())
