"""Runs notebooks from clean and writes what they show to docs/notebooks/: a page with its pictures for each.

python -m docs.notebooks [01_quickstart ...]         (pip install nbconvert nbclient ipykernel)

All of them, or the ones named.  Their runs lie in checkpoints/notebooks: one that is complete is not trained again.
JAXDIFF_FAST=1 makes tiny runs, to see that it works.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat

from jaxdiff.errors import require, unknown

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
PAGES = ROOT / "docs" / "notebooks"
LINES = 24  # of a cell's log that are kept: the last ones
WHY = "running a notebook"
SECONDS = 3600 * 2  # until a cell counts as stuck


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("names", nargs="*", metavar="NAME")
  names = parser.parse_args().names or list(NOTEBOOKS)
  for name in names:
    if name not in NOTEBOOKS:
      parser.error(str(unknown("notebook", name, NOTEBOOKS)))
  for name in names:
    begin = time.monotonic()
    page = write(name, run(NOTEBOOKS[name]))
    print(f"{page.relative_to(ROOT)}: {time.monotonic() - begin:.0f} s")


def run(path: Path) -> Any:
  """The notebook with its outputs, executed in a kernel of its own."""
  client = require("nbclient", "nbclient", WHY)
  notebook = nbformat.read(path, as_version=4)
  client.NotebookClient(
    notebook, timeout=SECONDS, resources={"metadata": {"path": str(path.parent)}}
  ).execute()
  return notebook


def write(name: str, notebook: Any, pages: Path = PAGES) -> Path:
  """Writes <pages>/<name>.md and its pictures; those of an earlier page go.  Returns the page."""
  exporter = require("nbconvert", "nbconvert", WHY).MarkdownExporter()
  for cell in notebook.cells:
    cell.outputs = [tidy(output) for output in joined(cell.get("outputs", ()))]
  told, resources = exporter.from_notebook_node(notebook, {"unique_key": name})
  pages.mkdir(parents=True, exist_ok=True)
  for old in pages.glob(f"{name}_*.png"):
    old.unlink()
  for picture, content in resources["outputs"].items():
    (pages / picture).write_bytes(content)
  page = pages / f"{name}.md"
  head = f"*The notebook [{name}](../../notebooks/{name}.ipynb) and what it shows, by `python -m docs.notebooks {name}`; its times are those of that day's machine.*\n\n"
  page.write_text(head + linked(told.strip()) + "\n")
  return page


def linked(text: str) -> str:
  """A page's text, whose links to other notebooks lead there from the pages' folder."""
  return re.sub(r"\]\((\w+\.ipynb)\)", r"](../../notebooks/\1)", text)


def joined(outputs: Iterable[Any]) -> list[Any]:
  """The outputs of a cell, what was printed without a break as one: a kernel sends it in pieces."""
  found: list[Any] = []
  for output in outputs:
    if output.output_type == "stream" and found and found[-1].output_type == "stream":
      found[-1].text += output.text
    else:
      found.append(output)
  return found


def tidy(output: Any) -> Any:
  """An output without what a page does not show: progress bars, the start of long logs, where on this machine it ran, pictures twice."""
  if output.output_type == "stream":
    output.text = log(output.text)
  elif "image/png" in output.get("data", ()):
    output.data.pop("image/jpeg", None)  # which IPython adds
  return output


def log(text: str) -> str:
  """The last lines of what a terminal would show, without progress bars and without this machine's folders."""
  shown = [line.rsplit("\r", 1)[-1] for line in text.splitlines() if line.strip()]
  kept = [line for line in shown if not re.search(r"\d+%\|.*\|", line)]
  cut = ["..."] * (len(kept) > LINES) + kept[-LINES:]
  return (
    "".join(f"{line}\n" for line in cut)
    .replace(f"{ROOT}/", "")
    .replace(str(ROOT), ".")
    .replace(str(Path.home()), "~")
  )


if __name__ == "__main__":
  main()
