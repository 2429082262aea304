"""The notebooks are whole, hold no outputs, and run from clean to their end in fast mode."""

import pathlib

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [
  "01_quickstart",
  "02_how_diffusion_works",
  "03_controlnet",
  "04_distillation",
  "05_your_own_images",
  "06_cluster",
]
SECONDS = 120  # until a cell counts as stuck
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_of(path):
  return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_all_are_there():
  assert [path.stem for path in NOTEBOOKS] == NAMES


@every_notebook
def test_a_notebook_is_valid_and_has_no_outputs(path):
  nbformat.validate(nbformat.read(path, as_version=4))
  cells = code_of(path)
  assert cells and not any(cell.outputs or cell.execution_count is not None for cell in cells)


@every_notebook
def test_the_code_of_a_notebook_compiles_and_defines_nothing(path):
  """What a notebook needs is a function of the library, with a docstring and a test."""
  for cell in code_of(path):
    source = TransformerManager().transform_cell(cell.source)  # magics are calls
    compile(source, f"{path.name}: {cell.id}", "exec")
    assert not any(line.lstrip().startswith(("def ", "class ")) for line in source.splitlines())


@every_notebook
def test_a_notebook_begins_with_the_same_installation(path):
  """It asks for an address in Colab, and there is none in it."""
  first = code_of(path)[0].source
  assert first == code_of(NOTEBOOKS[0])[0].source
  assert first.startswith('REPOSITORY = ""') and "://" not in first


@pytest.mark.slow
@every_notebook
def test_a_notebook_runs(path, monkeypatch):
  from nbclient import NotebookClient

  monkeypatch.setenv("JAXDIFF_FAST", "1")
  # One device, as a user has; compiling well would take longer than it saves.
  monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
  monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
  notebook = nbformat.read(path, as_version=4)
  client = NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(path.parent)}})
  client.execute()
  shown = [
    output.data
    for cell in notebook.cells
    if cell.cell_type == "code"
    for output in cell.outputs
    if output.output_type in ("display_data", "execute_result")
  ]
  assert shown
