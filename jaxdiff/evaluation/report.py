"""What evaluations found: a row for each in WORKDIR/evaluation.json, and all on one page, WORKDIR/report.html.

The page needs no other file: its pictures are inside.
"""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxdiff import plots
from jaxdiff.errors import UserError
from jaxdiff.evaluation import show
from jaxdiff.evaluation.figures import NAMES
from jaxdiff.files import write_atomically
from jaxdiff.reporting import read_metrics

FILE, PAGE = "evaluation.json", "report.html"
PREFIX = "eval/"  # of the names in metrics.jsonl
# settings that curves are drawn over, and how their axes are called
AXES = {
  "step": "train steps",
  "sample.guidance": "guidance scale",
  "sample.classifier_scale": "scale of the classifier's guidance",
  "sample.steps": "sampling steps",
}

Row = dict[str, Any]  # "settings", "figures", "accuracy_per_class"


def add(
  workdir: Path, settings: dict[str, Any], figures: dict[str, float], per_class: dict[str, float]
) -> list[Row]:
  """Adds a row to evaluation.json, last, instead of one with the same settings if there is one; returns all rows."""
  row = json.loads(json.dumps({"settings": settings, "figures": figures, "accuracy_per_class": per_class}))
  rows = [old for old in read(workdir) if old["settings"] != row["settings"]] + [row]
  text = json.dumps({"rows": rows}, indent=2) + "\n"
  write_atomically(workdir / FILE, lambda file: file.write(text.encode()))
  return rows


def read(workdir: Path) -> list[Row]:
  """The rows of a workdir's evaluation.json; none if it has none.  Raises UserError for a file that is something else."""
  path = workdir / FILE
  if not path.is_file():
    return []
  try:
    rows = json.loads(path.read_text())["rows"]
    return [row for row in rows if row["settings"] is not None and row["figures"] is not None]
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{path} is not what an evaluation wrote ({error}). Move it away.") from None


def line(figures: dict[str, float]) -> str:
  """The figures in one line."""
  return "  ".join(f"{NAMES[name]} {value:.4g}" for name, value in figures.items())


def write(workdir: Path, rows: Sequence[Row]) -> None:
  """Writes the page: the figures of the last row and its pictures, curves of what varies, and a table of all rows."""
  newest = rows[-1]
  parts = [
    f"<h1>{html.escape(workdir.resolve().name)}</h1>",
    table(["", ""], [(NAMES[name], number(value)) for name, value in newest["figures"].items()]),
    per_class(newest),
    picture(workdir / show.GRID, "Images by class"),
    picture(workdir / show.NEIGHBOURS, "The images closest to a training image, and the nearest of those"),
    *(picture(path, title) for path, title in curves(workdir, rows)),
    "<h2>All evaluations</h2>",
    overview(rows),
    "<h2>Settings</h2>",
    table(["", ""], [(key, json.dumps(value)) for key, value in newest["settings"].items()]),
  ]
  title = html.escape(f"{workdir.resolve().name}: evaluation")
  text = f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>" + "\n".join(parts)
  write_atomically(workdir / PAGE, lambda file: file.write(text.encode()))


def curves(workdir: Path, rows: Sequence[Row]) -> list[tuple[Path, str]]:
  """Draws what evaluations that differ in one setting alone say over it, and quick evaluations over the run.

  Returns (file, title) of each picture.
  """
  found = []
  for key, axis in AXES.items():
    points = sorted(alike(rows, key), key=lambda row: row["settings"][key])
    if len(points) > 1:
      path = workdir / show.FOLDER / f"over_{key.rpartition('.')[2]}.png"
      plots.figures([(row["settings"][key], row["figures"]) for row in points], axis, NAMES, path)
      found.append((path, f"Over {axis}"))
  metrics = workdir / "metrics.jsonl"
  quick = quick_rows(read_metrics(metrics)) if metrics.is_file() else []
  if quick:
    path = workdir / show.FOLDER / "while_training.png"
    plots.figures(quick, AXES["step"], NAMES, path)
    found.append((path, "Quick evaluations while it trained (fewer images: another Frechet distance)"))
  return found


def alike(rows: Sequence[Row], key: str) -> list[Row]:
  """The rows whose settings are those of the last one, but for `key`."""
  others = lambda row: {name: value for name, value in row["settings"].items() if name != key}
  return [row for row in rows if key in row["settings"] and others(row) == others(rows[-1])]


def quick_rows(metrics: Iterable[dict[str, float]]) -> list[tuple[float, dict[str, float]]]:
  """(step, figures) of the evaluations in a run's metrics."""
  found = []
  for row in metrics:
    figures = {name.removeprefix(PREFIX): value for name, value in row.items() if name.startswith(PREFIX)}
    if figures:
      found.append((row["step"], figures))
  return found


def overview(rows: Sequence[Row]) -> str:
  """A table of all rows, the newest first: the settings in which they differ, and their figures."""
  every = list(dict.fromkeys(key for row in rows for key in row["settings"]))
  varied = [key for key in every if len({json.dumps(row["settings"].get(key)) for row in rows}) > 1]
  names = [name for name in NAMES if any(name in row["figures"] for row in rows)]
  lines = [
    [
      *(plain(row["settings"].get(key, "")) for key in varied),
      *(number(row["figures"].get(n)) for n in names),
    ]
    for row in reversed(rows)
  ]
  return table([*varied, *(NAMES[name] for name in names)], lines)


def per_class(row: Row) -> str:
  found = row["accuracy_per_class"]
  return table(["class", *found], [["accuracy", *map(number, found.values())]]) if found else ""


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
  """An HTML table of plain text."""
  row = lambda cells, tag: (
    "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"
  )
  first = row(head, "th") if any(head) else ""
  return "<table>" + first + "".join(row(cells, "td") for cells in lines) + "</table>"


def picture(path: Path, title: str) -> str:
  """A picture with its title, inside the page; nothing if there is none."""
  if not path.is_file():
    return ""
  inside = base64.b64encode(path.read_bytes()).decode()
  return f'<h2>{html.escape(title)}</h2><img alt="{html.escape(title)}" src="data:image/png;base64,{inside}">'


def number(value: float | None) -> str:
  return "" if value is None or math.isnan(value) else f"{value:.4g}"


def plain(value: Any) -> str:
  return f"{value:g}" if isinstance(value, float) else str(value)


STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; display: block; overflow-x: auto }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; border-bottom: 1px solid #e6e6e6; font-variant-numeric: tabular-nums }
img { max-width: 100% }
"""
