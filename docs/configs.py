"""Writes docs/configs.md: every config key with its meaning and default, from the comments of configs/*.py.

python -m docs.configs

A key's comment stands behind its value or on the lines above it; a section's likewise.
"""

from __future__ import annotations

import ast
import html
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxdiff import configuration

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "configs.md"
FILES = {  # the file in configs/ -> what its sections configure
  "base": "What every config has",
  "dit_cfg": "Diffusion Transformers",
  "unet_cfg": "UNets",
  "classifier_cfg": "Classifiers",
  "controlnet_cfg": "Control branches",
  "distill_cfg": "Distillation",
}
INTRO = """\
# Config keys

Made from the comments in `configs/` by `python -m docs.configs`; a test compares. Change the comment, not this page.

A config is what `get_config(preset)` of a file in `configs/` returns. Any value can be set on the command line, as
`--config.optim.learning_rate=3e-4`; it is read as the type of the default, and a wrong key or type is an error that names
the right one. Defaults in the tables are those of the files, before a preset sets others; below them stands what a file sets when it is
taken without a preset. A run tells every value when it starts and
keeps them in `<workdir>/config.json`. How to choose them: [recipes.md](recipes.md).
"""


REFERENCE = object()  # a default that is another key's, or made of the preset's name


class Key(NamedTuple):
  """One assignment in a file's get_config."""

  name: str  # "data.source"; a section is a key too, without a default
  default: str  # as it is written in the file; "" of a section
  comment: str  # "" where there is none


def keys(source: str) -> list[Key]:
  """The assignments `c.<name> = <default>` in a config file's get_config, in their order."""
  body = next(
    node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == "get_config"
  ).body
  behind, alone = _comments(source)
  found = []
  for node in body:
    if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
      continue
    name = ast.unparse(node.targets[0]).removeprefix("c.")
    text = behind.get(node.end_lineno or node.lineno) or " ".join(_above(alone, node.lineno))
    found.append(Key(name, _default(ast.get_source_segment(source, node.value) or ""), text))
  return found


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
  """The comments of a file by line: those behind code, and those alone on their line."""
  behind: dict[int, str] = {}
  alone: dict[int, str] = {}
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      place = behind if token.line[: token.start[1]].strip() else alone
      place[token.start[0]] = token.string.lstrip("# ")
  return behind, alone


def _above(alone: dict[int, str], line: int) -> list[str]:
  first = line
  while first - 1 in alone:
    first -= 1
  return [alone[number] for number in range(first, line)]


def _default(written: str) -> str:
  """A default as people read it: a reference to another key by that key's name."""
  if written == "ConfigDict()":
    return ""
  return {'c.data.get_ref("channels")': "config.data.channels"}.get(written, written)


def page() -> str:
  """The text of docs/configs.md."""
  of_file = {name: keys((ROOT / "configs" / f"{name}.py").read_text(encoding="utf-8")) for name in FILES}
  shared = {key.name for key in of_file["base"]}
  parts = [INTRO]
  for name, found in of_file.items():
    parts.append(f"## {FILES[name]}\n\n[configs/{name}.py](../configs/{name}.py)\n")
    is_base = name == "base"
    parts += _sections([key for key in found if is_base or key.name not in shared])
    if not is_base:
      told = ", ".join(
        f"`{key} = {value!r}`" for key, value in _changed(name, found, of_file["base"]).items()
      )
      parts.append(f"Without a preset, `configs/{name}.py` sets {told}.\n")
  return "\n".join(parts)


def _changed(name: str, found: list[Key], shared: list[Key]) -> dict[str, Any]:
  """Key -> value, of a file's config as it is without a preset, of those that the tables give other defaults."""
  told = {key.name: _value(key.default) for key in [*found, *shared] if key.default}
  made = configuration.flatten(configuration.load(str(ROOT / "configs" / f"{name}.py")))
  return {key: value for key, value in made.items() if told[key] is not REFERENCE and value != told[key]}


def _value(written: str) -> Any:
  """What a default is, as it is written; REFERENCE where it is another key's."""
  try:
    return ast.literal_eval(written)
  except ValueError:
    return REFERENCE


def _sections(found: list[Key]) -> Iterator[str]:
  """A heading, the comment and a table for each section that has keys."""
  comments = {key.name: key.comment for key in found if not key.default}
  for section in dict.fromkeys(key.name.rpartition(".")[0] for key in found if key.default):
    head = f"### config.{section}\n" if section else ""
    about = comments.get(section, "")
    rows = [
      f"| `{key.name.rpartition('.')[2]}` | `{key.default}` | {_cell(key.comment)} |"
      for key in found
      if key.default and key.name.rpartition(".")[0] == section
    ]
    table = "\n".join(["| key | default | meaning, unit |", "| --- | --- | --- |", *rows]) + "\n"
    yield "\n".join(part for part in (head, f"{_sentence(about)}\n" if about else "", table) if part)


def _cell(comment: str) -> str:
  """A comment inside a table of Markdown: bars and angle brackets as themselves."""
  return html.escape(comment, quote=False).replace("|", "\\|")


def _sentence(comment: str) -> str:
  return html.escape(comment[0].upper() + comment[1:], quote=False) + "."


if __name__ == "__main__":
  PAGE.write_text(page(), encoding="utf-8")
