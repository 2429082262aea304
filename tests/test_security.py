"""What the package must not do: run code that is in a file, a config value or a name that somebody else has written.

A parser looks for the calls, through whatever names their modules have been given.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "jaxdiff"
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}

# Modules that nothing may be imported from: their formats run code, or they start programs.
FORBIDDEN = (
  *("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"),
  *("yaml", "subprocess", "pty", "code", "codeop", "runpy"),
)
# Names that are called, or passed on to be called.
BUILTINS = ("eval", "exec", "compile", "__import__")
CALLS = (
  *("os.system", "os.popen", "os.startfile", "os.posix_spawn", "os.posix_spawnp"),
  *("pandas.read_pickle", "torch.hub", "torch.jit.load", "torch.package"),
  *("asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell"),
)
STARTS_OF_CALLS = ("os.exec", "os.spawn")
# What may load something that can hold code, only with this argument, written out.
NEEDED = {
  "numpy.load": ("allow_pickle", False),
  "numpy.lib.format.read_array": ("allow_pickle", False),
  "torch.load": ("weights_only", True),
}
# Code of the user's is run where the command line or a config asks for it by name, and there only.
IMPORTERS = {
  "configuration.py": "a config file (--config)",
  "classifiers.py": "a function of the user's (config.sample.classifier=module:function)",
  "errors.py": "an optional package, by a name in our code (require)",
  "doctor.py": "the packages that are required, by a name in our code (doctor.REQUIRED)",
}
# Programs are started here only.
STARTERS = {"platform.py": "this program again, with its own arguments"}
# They look whether a package is there, and which; they run nothing of it.
HARMLESS = ("importlib.util.find_spec", "importlib.metadata.version")


def names_of(tree: ast.AST) -> dict[str, str]:
  """What each imported name stands for: {"np": "numpy", "load": "numpy.load"}."""
  names = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names |= {a.asname: a.name for a in node.names if a.asname}
      names |= {a.name.split(".")[0]: a.name.split(".")[0] for a in node.names if not a.asname}
    elif isinstance(node, ast.ImportFrom) and not node.level:
      names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
  return names


def dotted(node: ast.AST, names: dict[str, str]) -> str:
  """An expression such as np.load in full, or nothing for what is no dotted name."""
  if isinstance(node, ast.Name):
    return names.get(node.id, node.id)
  if isinstance(node, ast.Attribute) and (base := dotted(node.value, names)):
    return f"{base}.{node.attr}"
  return ""


def imports(tree: ast.AST) -> list[tuple[int, str]]:
  """(line, what is imported), each name of `from a import b` as a.b."""
  found = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found += [(node.lineno, alias.name) for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and not node.level:
      found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
  return found


def violations(module: str, source: str) -> list[str]:
  """What a module must not do, each as a line."""
  tree = ast.parse(source)
  names, found = names_of(tree), []
  for line, name in imports(tree):
    if name.split(".")[0] in FORBIDDEN:
      found.append(f"{module}:{line} imports {name}")
  used = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
  starts = () if module in STARTERS else STARTS_OF_CALLS
  for node in ast.walk(tree):
    if not isinstance(node, ast.Name | ast.Attribute):
      continue
    name, where = dotted(node, names), f"{module}:{node.lineno}"
    if name.removeprefix("builtins.") in BUILTINS + CALLS or name.startswith(starts):
      found.append(f"{where} uses {name}")
    elif name in NEEDED and not has_argument(used.get(id(node)), *NEEDED[name]):
      found.append(f"{where} calls {name} without {NEEDED[name][0]}={NEEDED[name][1]}")
    elif is_importer(name, node) and module not in IMPORTERS:
      found.append(f"{where} uses {name or ast.unparse(node)}")
  return found


def is_importer(name: str, node: ast.Name | ast.Attribute) -> bool:
  """Whether an expression stands for something that imports by a name or runs a module."""
  if isinstance(node, ast.Attribute) and node.attr in ("exec_module", "load_module"):
    return True
  is_import = name.startswith("importlib.") and name not in ("importlib.util", "importlib.metadata")
  return is_import and name not in HARMLESS


def has_argument(call: ast.Call | None, name: str, value: bool) -> bool:
  if call is None:
    return False
  return any(
    k.arg == name and isinstance(k.value, ast.Constant) and k.value.value is value for k in call.keywords
  )


@pytest.mark.parametrize("module", MODULES)
def test_module_runs_no_foreign_code(module):
  assert not violations(module, MODULES[module].read_text())


def test_the_exceptions_are_used():
  """A module that no longer needs its exception loses it."""
  for module in IMPORTERS | STARTERS:
    assert violations("another.py", MODULES[module].read_text()), module


PLANTED = [
  "import pickle",
  "from pickle import loads",
  "def f():\n  import _pickle as p",
  "import cloudpickle, numpy",
  "import joblib",
  "import marshal",
  "import numpy as np\nnp.load(path)",
  "import numpy as np\nnp.load(path, allow_pickle=True)",
  "import numpy as np\nnp.load(path, None, flag)",
  "import numpy as np\nnp.load(path, allow_pickle=flag)",
  "import numpy\nnumpy.load(path, mmap_mode='r')",
  "from numpy import load as read\nread(path)",
  "import numpy as np\nmap(np.load, paths)",
  "import numpy as np\nnp.lib.format.read_array(file)",
  "import torch\ntorch.load(path)",
  "import torch\ntorch.load(path, weights_only=False)",
  "import torch\ntorch.hub.load('a', 'b')",
  "eval(text)",
  "exec(text)",
  "list(map(eval, texts))",
  "import builtins\nbuiltins.exec(text)",
  "compile(text, 'a', 'exec')",
  "__import__(name)",
  "import yaml\nyaml.load(text)",
  "from yaml import safe_load",
  "import subprocess\nsubprocess.run(['ls'])",
  "from subprocess import run",
  "import os\nos.system('ls')",
  "from os import system as s\ns('ls')",
  "import os\nos.popen('ls')",
  "import os\nos.execv('a', [])",
  "import os as o\no.spawnl(0, 'a')",
  "import asyncio\nasyncio.create_subprocess_shell('ls')",
  "import importlib\nimportlib.import_module(name)",
  "from importlib import import_module\nimport_module(name)",
  "import importlib.util\nimportlib.util.spec_from_file_location(a, b)",
  "spec.loader.exec_module(module)",
  "import runpy\nrunpy.run_path(path)",
]


@pytest.mark.parametrize("source", PLANTED)
def test_what_is_planted_is_found(source):
  found = violations("planted.py", source)
  assert len(found) >= 1 and all(line.startswith("planted.py:") for line in found)


@pytest.mark.parametrize("source", PLANTED)
def test_it_is_found_in_a_module_that_is_there(source):
  """At the end of a module that is clean, with all that it imports."""
  module = "evaluation/drawn.py"
  assert violations(module, f"{MODULES[module].read_text()}\n{source}\n")


CLEAN = [
  "import numpy as np\nnp.load(path, allow_pickle=False)",
  "import numpy as np\nnp.save(path, a, allow_pickle=False)",
  "import torch\ntorch.load(path, map_location='cpu', weights_only=True)",
  "import importlib.util\nimportlib.util.find_spec('torch')",
  "import importlib.metadata\nimportlib.metadata.version('jax')",
  "import re\nre.compile('a')",
  "lowered.compile()\njax.jit(f).lower(x).compile()",
  "model.eval()",
  "import os\nos.path.exists(path)\nos.environ.get('A')",
  '"""Not pickle.load, nor eval(text)."""',
]


@pytest.mark.parametrize("source", CLEAN)
def test_what_is_harmless_passes(source):
  assert violations("clean.py", source) == []
