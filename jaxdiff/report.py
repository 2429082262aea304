"""What evaluations found, gathered in WORKDIR/evaluation.json: a row for each, with its settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jaxdiff.errors import UserError
from jaxdiff.figures import NAMES
from jaxdiff.files import write_atomically

FILE = "evaluation.json"


def add(
  workdir: Path, settings: dict[str, Any], figures: dict[str, float], per_class: dict[str, float]
) -> list[dict[str, Any]]:
  """Adds a row to evaluation.json, last, instead of one with the same settings if there is one; returns all rows."""
  row = json.loads(json.dumps({"settings": settings, "figures": figures, "accuracy_per_class": per_class}))
  rows = [old for old in read(workdir) if old["settings"] != row["settings"]] + [row]
  text = json.dumps({"rows": rows}, indent=2) + "\n"
  write_atomically(workdir / FILE, lambda file: file.write(text.encode()))
  return rows


def read(workdir: Path) -> list[dict[str, Any]]:
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
