"""The shape of the code: imports point only downwards, and a few habits that a parser can check."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jaxdiff"

# A group is a package or a single module under jaxdiff/. It may import groups of lower layers, and groups beside
# it unless one of the two is an island: the maths, the networks, the data and the scores do not know of each other.
ISLANDS = {"diffusion", "models", "data", "scores"}
LAYERS = {
  0: {"__init__", "types", "errors", "files", "calls", "stores", "sums"},
  1: {"diffusion", "models", "data", "scores"}
  | {
    "optim",
    "parallel",
    "checkpoints",
    "metrics",
    "reporting",
    "pictures",
    "plots",
    "platform",
    "configuration",
    "signals",
    "spikes",
    "distributed",
    "locks",
    "goodput",
    "watchdog",
    "profiling",
    "flops",
  },
  2: {"tasks", "train_step", "summary", "weights", "onnx_model", "exported", "toy", "explain"},
  3: {
    "train",
    "sample",
    "draw",
    "steering",
    "control",
    "hint_reader",
    "doctor",
    "plan",
    "fidelity",
    "classifiers",
    "runs",
    "starts",
    "resume",
    "journal",
    "students",
    "previews",
    "accuracy",
    "evaluation",
  },
  4: {"main", "notebook"},
}
LAYER_OF = {group: layer for layer, groups in LAYERS.items() for group in groups}

MODULES = {
  "jaxdiff." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
  for path in sorted(PACKAGE.rglob("*.py"))
}


def group_of(module: str) -> str:
  return (module.split(".") + ["__init__"])[1]


def imported_names(module: str, source: str) -> set[str]:
  """All that a module imports, anywhere in it, as absolute dotted names ("from a import b" gives a.b)."""
  names = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        base = ".".join([*module.split(".")[: -node.level], *([base] if base else [])])
      names.update(f"{base}.{alias.name}" for alias in node.names)
  return names


def imported_modules(module: str, source: str) -> set[str]:
  """The jaxdiff modules among them."""
  found = set()
  for name in imported_names(module, source):
    if name.split(".")[0] != "jaxdiff":
      continue
    while name not in MODULES and f"{name}.__init__" not in MODULES:
      name = name.rpartition(".")[0]
    found.add(name if name in MODULES else f"{name}.__init__")
  return found - {module}


def violations(module: str, source: str) -> list[str]:
  """The imports of a module that the layers forbid, each as a sentence."""
  found = []
  here = group_of(module)
  for target in sorted(imported_modules(module, source)):
    there = group_of(target)
    up = LAYER_OF.get(there, 99) - LAYER_OF[here]
    if here != there and (up > 0 or (up == 0 and ISLANDS & {here, there})):
      found.append(f"{module} (layer {LAYER_OF[here]}) imports {target} (layer {LAYER_OF.get(there, '?')})")
  return found


@pytest.mark.parametrize("module", MODULES)
def test_module_has_a_layer(module):
  assert group_of(module) in LAYER_OF, (
    f"{module} is in no layer: give jaxdiff/{group_of(module)} a place in tests/test_layers.py and in the docs"
  )


@pytest.mark.parametrize("module", [m for m in MODULES if group_of(m) in LAYER_OF])
def test_imports_point_downwards(module):
  assert not violations(module, MODULES[module].read_text())


def test_imports_have_no_cycles():
  graph = {module: imported_modules(module, path.read_text()) for module, path in MODULES.items()}
  done: set[str] = set()

  def visit(module: str, trail: tuple[str, ...]):
    assert module not in trail, "imports go in a circle: " + " -> ".join([*trail, module])
    if module not in done:
      for target in graph[module]:
        visit(target, (*trail, module))
      done.add(module)

  for module in graph:
    visit(module, ())


@pytest.mark.parametrize("module", [m for m in MODULES if group_of(m) == "diffusion"])
def test_diffusion_does_not_know_flax(module):
  tops = {name.split(".")[0] for name in imported_names(module, MODULES[module].read_text())}
  assert not tops & {"flax", "optax", "grain", "ml_collections"}


@pytest.mark.parametrize("module", [m for m in MODULES if group_of(m) == "scores"])
def test_scores_know_numpy_and_scipy_alone(module):
  tops = {name.split(".")[0] for name in imported_names(module, MODULES[module].read_text())}
  assert tops - sys.stdlib_module_names <= {"numpy", "scipy", "jaxdiff"}


@pytest.mark.parametrize("module", [m for m in MODULES if group_of(m) != "main"])
def test_library_code_does_not_print(module):
  calls = [n for n in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(n, ast.Call)]
  lines = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
  assert not lines, f"{module} prints on lines {lines}: use the logger 'jaxdiff'"


def test_import_is_light():
  heavy = ["jax", "flax", "grain", "tensorflow_datasets", "cv2", "matplotlib", "sklearn", "tensorboardX"]
  code = f"import sys, jaxdiff; print([name for name in {heavy} if name in sys.modules])"
  result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
  assert result.stdout.strip() == "[]"


def test_the_check_itself():
  """Each way to break the rule is seen: sideways, upwards, relative, inside a function, of a name."""
  assert violations("jaxdiff.models.x", "from jaxdiff.diffusion import schedules")
  assert violations("jaxdiff.models.x", "from ..diffusion import schedules")
  assert violations("jaxdiff.optim", "import jaxdiff.tasks.denoise")
  assert violations("jaxdiff.optim", "from jaxdiff.models.dit import DiT")
  assert violations("jaxdiff.optim", "def f():\n  from jaxdiff import train_step")
  assert violations("jaxdiff.types", "from jaxdiff.optim import params_ema")
  assert not violations(
    "jaxdiff.models.x", "from jaxdiff.models import layers\nfrom jaxdiff.types import Cond"
  )
  assert not violations("jaxdiff.checkpoints", "from jaxdiff import configuration")
  assert not violations("jaxdiff.tasks.x", "from jaxdiff import optim\nfrom jaxdiff.diffusion import losses")
