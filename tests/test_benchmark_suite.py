"""Every case of benchmarks.run at a tiny size; its counting of FLOPs; its turns; its files.

No times are asserted.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys

import pytest

from benchmarks import growth, run
from benchmarks.suite import cases, flops, measure, report, wheels
from jaxdiff import platform
from jaxdiff.flops import counted
from jaxdiff.models import dit

ALL = {f"{suite}/{name}": case for suite, of_suite in cases.SUITES.items() for name, case in of_suite.items()}


def distinct():
  """The first case of each kind that is another computation at its tiny size: between them they are every case."""
  first = {}
  for name, case in ALL.items():
    first.setdefault(repr(cases.tiny(case)._replace(why="", eats="", runs=1)), name)
  return list(first.values())


# what is told of the kinds of work that are around networks
AROUND = {
  "data": r"[0-9.,]+ times as many images as unet_train takes",
  "loop": r"beside the bare step the loop costs -?[0-9.]+%",
  "checkpoint": r"MiB; the loop waits for \d+ ms",
}
EVERY_NETWORK = [name for name in distinct() if ALL[name].kind not in AROUND]
ALL_AROUND = [name for name in distinct() if ALL[name].kind in AROUND]


SIZES = {
  "nano": cases.NANO, "tiny": cases.TINY, "S": cases.SMALL, "B": cases.BASE, "L": cases.LARGE, "XL": cases.XLARGE,
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_a_size_is_the_one_that_the_library_calls_so(name):
  """They stand in the suite again, whose first process does not import JAX."""
  assert SIZES[name] == dit.SIZES[name]


def tiny(name):
  return cases.tiny(ALL[name])


def measured(case, contestant, rows):
  """(facts, measurements) of a contestant, without a process of its own."""
  if lacking := wheels.missing(case.needs):
    pytest.skip(f"needs {lacking}")
  said = measure.work(run.contest(case, contestant), runs=1)
  facts, *taken = [next(said) for _ in range(1 + rows)]
  return json.loads(json.dumps(facts)), json.loads(json.dumps(taken))


def check(case, rivals, rows=2):
  """Runs a case and its rivals, and what is made of them."""
  here = [] if wheels.missing(["torch"]) else rivals
  contestants = (measure.OURS, *(rival for rival in case.rivals if rival in here))
  both = {name: measured(case, name, rows) for name in contestants}
  found = measure.Measured(
    {name: facts for name, (facts, _) in both.items()},
    {name: taken for name, (_, taken) in both.items()},
    {},
  )
  figures = report.summary(case, found)
  assert figures["images_per_s"] > 0 and set(figures["ratios"]) == set(contestants) - {measure.OURS}
  assert all(peak > 1e6 for peak in figures["memory"].values())
  line = report.row("a_case", figures)
  assert line.count("|") == len(report.HEAD) + 1 and line.startswith("| a_case, batch 4 |")
  return figures


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY_NETWORK)
def test_networks(name):
  figures = check(tiny(name), rivals=("torch",))
  assert 0 < figures["mfu"] and figures["flops_formula"] > 0
  numbers = {facts["parameters"] for facts in figures["facts"].values()}
  assert len(numbers) == 1 and len(figures["facts"]) == 1 + (
    "torch" in figures["ratios"]
  )  # a rival has as many


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_AROUND)
def test_what_is_around_the_networks(name):
  case = tiny(name)
  figures = check(case, rivals=("torch.save",), rows=1)
  eaters = {case.eats: {"images_per_s": 1.0}} if case.eats else {}
  (said,) = report.remarks("a_case", figures, case, eaters)
  assert re.search(AROUND[case.kind], said)


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", ["cpu/dit_s4_train", "cpu/unet_train", "gpu/adm64_train", "gpu/dit_xl2_sample"]
)
def test_diffusers_networks(name):
  pytest.importorskip("diffusers")
  facts, _ = measured(tiny(name)._replace(batch_size=2), "diffusers", rows=1)
  assert facts["parameters"] > 1000


def test_the_formula_is_the_papers():
  """Peebles & Xie 2022, table 4, where a multiplication and its addition are one operation."""
  for name, published in {"S": 6.06, "B": 23.01, "L": 80.71, "XL": 118.64}.items():
    model = cases.dit(dit.SIZES[name], 2) | {"learn_sigma": True}
    forward = flops.total(flops.dit(model, 32), flops.FORWARD)
    assert forward / 2e9 == pytest.approx(published, rel=0.002)


@pytest.mark.parametrize(
  "name",
  [
    "cpu/dit_s4_train", "cpu/unet_train", "gpu/adm64_train", "cpu/control_train", "cpu/distill_train", "cpu/dit_s4_sample_1",
  ],
)  # fmt: skip
def test_formula_and_compiler_agree(name):
  """On the program as it is given to the compiler, which takes no compiling; a convolution's taps outside do not count."""
  from benchmarks.suite import ours

  case = ALL[name]
  smaller = {"depth": 4} if case.model["name"] == "dit" else {"num_blocks": 1}
  case = case._replace(model=case.model | smaller, batch_size=min(case.batch_size, 16), dtype="float32")
  assert flops.of_step(case) == pytest.approx(counted(ours.lowered(case)), rel=flops.TOLERANCE)


def test_a_difference_is_explained():
  assert flops.difference(100, 103, None, "") == ""
  assert flops.difference(0, None, None, "") == ""
  assert "libraries" in flops.difference(100, 10, 101, "")
  assert flops.difference(100, 110, 110, "narrow") == "narrow"
  assert "1.20 times" in flops.difference(100, 120, 120, "")


CONTESTANT = """
import sys
from benchmarks.suite import measure
from benchmarks.suite.runner import Runner

name, left = sys.argv[1], [5 if sys.argv[1] == "diffusers" else 1000]

def run():
  left[0] -= 1
  if not left[0]:
    sys.exit("the machine is on fire")
  return {}

measure.WARM = 0.0
measure.serve(Runner(run, {"name": name}, memory=lambda: 7), 1, sys.stdout)
"""


@pytest.mark.parametrize("stay", [True, False])
def test_contestants_take_turns_and_one_that_dies_is_left_out_with_its_reason(stay, monkeypatch):
  monkeypatch.setattr(measure, "PAUSE", 0.0)
  monkeypatch.setattr(measure, "command", lambda plan, case, name: [sys.executable, "-c", CONTESTANT, name])
  plan = measure.Plan("cpu", 3, stay, rivals=("torch", "diffusers"))
  facts, rows, absent = measure.take_turns(plan, "dit_s4_train")
  assert absent == {"diffusers": "the machine is on fire"}
  assert facts == {"jaxdiff": {"name": "jaxdiff"}, "torch": {"name": "torch"}}
  assert {name: len(taken) for name, taken in rows.items()} == dict.fromkeys(
    facts, 3 if stay else 3 * measure.IN_A_ROW
  )
  assert all(row["memory"] == 7 and row["seconds"] > 0 for taken in rows.values() for row in taken)


def test_ours_without_a_setting_of_its_process_is_a_rival_where_asked_for(monkeypatch):
  told = '{"environment": {key: os.environ.get(key) for key in ("GLIBC_TUNABLES", "XLA_FLAGS")}}'
  script = "import os\n" + CONTESTANT.replace('{"name": name}', told)
  monkeypatch.setattr(measure, "PAUSE", 0.0)
  monkeypatch.setattr(measure, "command", lambda plan, case, name: [sys.executable, "-c", script, name])
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
  plan = measure.Plan("cpu", 2, True, rivals=("small_pages", "ynnpack"))
  facts = measure.take_turns(plan, "loop").facts
  given = {name: said["environment"] for name, said in facts.items()}
  assert given["jaxdiff"] == {"GLIBC_TUNABLES": None, "XLA_FLAGS": None}
  assert given["small_pages"] == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0", "XLA_FLAGS": None}
  assert given["ynnpack"]["XLA_FLAGS"].startswith(f"{platform.FUSION_FLAG}=")
  assert all(run.is_ours(name) for name in facts) and not run.is_ours("torch")


@pytest.mark.parametrize(
  "module", sorted((report.ROOT / "benchmarks").glob("[a-z]*.py")), ids=lambda path: path.stem
)
def test_every_benchmark_can_be_imported(module):
  try:
    importlib.import_module(f"benchmarks.{module.stem}")
  except ModuleNotFoundError as missing:
    if missing.name not in ("torch", "diffusers"):
      raise
    pytest.skip(f"{missing.name} is not here")


@pytest.mark.slow
def test_the_suite_prints_a_row_with_every_rival_that_is_asked_for():
  """The command as users give it, with its processes."""
  pytest.importorskip("torch")
  asked = ["--quick", "--rival", "torch", "--rival", "torch.compile", "--rival", "small_pages"]
  command = [sys.executable, "-m", "benchmarks.run", "--suite", "cpu", "--only", "nano_sample_1", *asked]
  said = subprocess.run(
    command, cwd=report.ROOT, capture_output=True, text=True, timeout=600, check=True
  ).stdout
  (row,) = [line for line in said.splitlines() if line.startswith("| nano_sample_1")]
  spread = r"[0-9.]+ \([0-9.]+ to [0-9.]+\)"
  assert re.search(rf"\| {spread} \| {spread} \|  \| small_pages {spread} \|$", row), said


def test_sizes_for_gpus_do_not_begin_on_a_cpu(monkeypatch):
  monkeypatch.setattr(run, "contest", lambda *args: pytest.fail("it began"))
  monkeypatch.setattr(os, "dup2", lambda *args: None)
  for contestant in (measure.OURS, "torch") if not wheels.missing(["torch"]) else (measure.OURS,):
    with pytest.raises(SystemExit, match=f"{contestant} finds no GPU here"):
      run.work("gpu", cases.GPU["dit_xl2_train"], contestant)


@pytest.mark.parametrize("flag", [("--rounds", "0"), ("--batch=-3",), ("--batch", "many")])
def test_numbers_below_one_are_refused(flag, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["run", "--suite", "cpu", *flag])
  with pytest.raises(SystemExit):
    run.main()
  assert f"{flag[-1].removeprefix('--batch=')} is no number of 1 or more" in capsys.readouterr().err


def test_an_unknown_rival_is_refused(monkeypatch):
  monkeypatch.setattr(sys, "argv", ["run", "--suite", "cpu", "--rival", "tensorflow"])
  with pytest.raises(SystemExit, match=r"no rival 'tensorflow' of these cases\. Known: .*small_pages.*torch"):
    run.main()


def test_a_case_keeps_the_command_and_the_versions_it_is_of(tmp_path, monkeypatch):
  found = {"date": "2026-01-02"}
  report.write("cpu", "A CPU", {"one": found}, "first", tmp_path)
  monkeypatch.setattr(report, "versions", lambda: {"jax": "9.9"})
  kept = json.loads(report.write("cpu", "A CPU", {"other": found}, "second", tmp_path).read_text())["cases"]
  assert (kept["one"]["command"], kept["other"]["command"]) == ("first", "second")
  assert kept["one"]["versions"] != kept["other"]["versions"] == {"jax": "9.9"}


def test_another_suites_results_are_not_lost(tmp_path):
  path = report.write("cpu", "A CPU", {"one": {}}, "command", tmp_path)
  before = path.read_text()
  with pytest.raises(SystemExit, match="holds the results of the suite cpu"):
    report.write("gpu", "A CPU", {"two": {}}, "command", tmp_path)
  assert path.read_text() == before


@pytest.mark.parametrize(
  ("suite", "platform", "flags", "writes"),
  [
    ("cpu", "cpu", [], True), ("cpu", "cpu", ["--rival", "torch"], False), ("cpu", "cpu", ["--batch", "2"], False), ("cpu", "cpu", ["--quick"], False),
    ("gpu", "cpu", [], False), ("gpu", "gpu", [], True), ("gpu", "gpu", ["--set", "model.remat=full"], False),
  ],
)  # fmt: skip
def test_what_is_not_the_whole_of_a_case_on_its_machine_is_only_printed(
  suite, platform, flags, writes, monkeypatch
):
  facts = {"jaxdiff": {"device": "A device", "platform": platform}}
  row = {"seconds": 1.0, "memory": 1}
  monkeypatch.setattr(
    measure, "take_turns", lambda plan, name: measure.Measured(facts, {"jaxdiff": [row]}, {})
  )
  written = []
  monkeypatch.setattr(report, "keep", lambda *args: written.append(args))
  monkeypatch.setattr(sys, "argv", ["run", "--suite", suite, "--only", "dit_s4_train", *flags])
  assert run.main() == 0
  assert bool(written) == writes


FIGURES = {
  "date": "2026-01-02", "rounds": 7, "batch_size": 4, "images_per_s": 8.0, "seconds": {"jaxdiff": [0.5, 0.4, 0.6]},
  "ratios": {"torch": [1.25, 1.0, 1.5]}, "absent": {"torch.compile": "no compiler"}, "facts": {"jaxdiff": {"compile_s": 2.0}},
  "memory": {"jaxdiff": 2**30}, "flops_formula": 1e9, "flops_compiled": 1.2e9, "flops_differ": "as said", "mfu": 0.5,
}  # fmt: skip


def test_results_are_kept_by_device_and_put_between_markers(tmp_path):
  report.write("cpu", "A CPU, 2 cores", {"dit_s4_train": FIGURES}, "command", tmp_path)
  path = report.write("cpu", "A CPU, 2 cores", {"unet_train": FIGURES}, "command", tmp_path)
  assert path.name == "a_cpu_2_cores.json"
  result = json.loads(path.read_text())
  assert list(result["cases"]) == ["dit_s4_train", "unet_train"]
  text = report.table(result, cases.CPU)
  cells = (
    "4 | 8.00 | 500 (400 to 600) | 1.00, 1.20 | 50% | 1,024 | 2.00 | 1.25 (1.00 to 1.50) | not here |  |  |"
  )
  assert f"| dit_s4_train, batch {cells}" in text
  assert (
    "- unet_train: as said." in text and "- unet_train: torch.compile does not run here: no compiler" in text
  )
  page = tmp_path / "page.md"
  page.write_text("before\n<!-- cpu: begin -->\nold\n<!-- cpu: end -->\nafter\n")
  report.put_into_page("cpu", text, page)
  assert page.read_text() == f"before\n<!-- cpu: begin -->\n{text}\n<!-- cpu: end -->\nafter\n"
  with pytest.raises(ValueError, match="gpu: begin"):
    report.put_into_page("gpu", text, page)


def test_a_page_keeps_the_table_of_another_device(tmp_path):
  page = tmp_path / "page.md"
  page.write_text("<!-- cpu: begin -->\nNot measured yet.\n<!-- cpu: end -->\n")
  keep = lambda device: report.keep("cpu", device, {"dit_s4_train": FIGURES}, "c", cases.CPU, page, tmp_path)
  keep("A CPU, 2 cores")
  shown = page.read_text()
  assert report.shown_in_page("cpu", page) == "A CPU, 2 cores" and "dit_s4_train" in shown
  keep("Another")
  assert page.read_text() == shown and report.path_of("Another", tmp_path).is_file()


def test_the_page_has_the_markers_of_every_suite():
  page = report.PAGE.read_text()
  for suite in cases.SUITES:
    assert page.count(f"<!-- {suite}: begin -->") == page.count(f"<!-- {suite}: end -->") == 1


@pytest.mark.parametrize("change", ["train.batch_size=8", "data.image_size=16", "model.depth=3"])
def test_other_sizes_for_ours_alone_are_refused(change):
  """Rivals and formula would go on with the case's."""
  pytest.importorskip("ml_collections")
  from benchmarks.suite import ours

  case = cases.tiny(cases.CPU["dit_s4_train"])
  with pytest.raises(SystemExit, match=f"{change}: this case and its rivals have"):
    ours.config(case._replace(changes=(change,)))
  assert ours.config(case._replace(changes=("model.remat=full",))).model.remat == "full"


def test_ratios_are_of_the_same_round():
  seconds = {"jaxdiff": [1.0, 2.0, 4.0], "torch": [2.0, 2.0, 2.0]}
  assert measure.ratios(seconds, "torch") == [2.0, 1.0, 0.5]
  assert measure.quartiles([2.0, 1.0, 0.5])[0] == 1.0
  assert measure.quartiles([3.0]) == [3.0, 3.0, 3.0]


def test_missing_wheels_leave_out_what_needs_them(monkeypatch, capsys):
  monkeypatch.setattr(wheels, "_is_here", lambda module: module not in ("grain", "ml_collections"))
  kept = run.runnable(cases.CPU)
  assert set(cases.CPU) - set(kept) == {"data", "loop"}
  said = capsys.readouterr().out
  assert (
    "wheels that are not here: ml_collections, grain" in said and "data: left out, it needs grain" in said
  )
  monkeypatch.setattr(wheels, "_is_here", lambda module: module != "optax")
  with pytest.raises(SystemExit, match="optax"):
    run.runnable(cases.CPU)


def test_a_config_without_ml_collections():
  c = wheels.ConfigDict()
  c.model = wheels.ConfigDict({"width": 3})
  c.model.depth = 2
  assert dict(c.model.items()) == {"width": 3, "depth": 2} and c["model"]["width"] == 3
  with pytest.raises(AttributeError):
    _ = c.optim


# As sitecustomize.py, which Python imports at its start, so that it holds in the processes that benchmarks start too.
MISSING = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in ("grain", "ml_collections", "tensorflow_datasets", "orbax", "sklearn", "tensorboardX"):
      raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
"""
PLAIN_CHECKOUT = """
from benchmarks import run
from benchmarks.suite import cases
kept = run.runnable(cases.GPU)
assert {"data", "loop", "checkpoint"}.isdisjoint(kept) and len(kept) == len(cases.GPU) - 3
for name in ("dit_s4_sample", "control_train"):
  tiny = cases.tiny(kept[name])._replace(changes=("model.remat=full",))
  run.contest(tiny, "jaxdiff").run()
  print(name, "ran")
"""


@pytest.fixture
def in_a_plain_checkout(tmp_path):
  """The function that runs Python where Grain, ml_collections and Orbax are missing, and returns what it prints."""
  (tmp_path / "sitecustomize.py").write_text(MISSING)

  def run_python(*arguments):
    env = dict(os.environ, PYTHONPATH=f"{tmp_path}")
    command = [sys.executable, *arguments]
    result = subprocess.run(command, cwd=measure.ROOT, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout

  return run_python


@pytest.mark.slow
def test_a_machine_without_grain_ml_collections_and_orbax(in_a_plain_checkout):
  told = in_a_plain_checkout("-c", PLAIN_CHECKOUT)
  assert "wheels that are not here: ml_collections, grain, orbax-checkpoint" in told
  assert "control_train ran" in told


@pytest.mark.slow
def test_curves_of_growth_and_their_plot_on_such_a_machine(in_a_plain_checkout, tmp_path):
  sizes = ["--tokens", "4", "--batches", "1", "--depths", "2", "--width", "64", "--depth", "1"]
  told = in_a_plain_checkout("-m", "benchmarks.growth", "--quick", "--out", f"{tmp_path}", *sizes)
  assert "remat full: 2 blocks" in told and (tmp_path / "growth.png").stat().st_size > 0
  found = json.loads((tmp_path / "growth.json").read_text())
  assert found["batch"]["1"]["flops"] == found["tokens"]["4"]["flops"] > 1e5
  one, _, recomputed, shared, _ = (found["depth"][name]["2"]["bytes"] for name in growth.PLANS)
  assert 1e5 < recomputed < one and shared < one
