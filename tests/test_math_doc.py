"""docs/math.md and jaxdiff/diffusion/ tell of the same functions, and GitHub can render the formulas."""

import ast
import importlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "math.md").read_text(encoding="utf-8")
MODULES = sorted(path.stem for path in (ROOT / "jaxdiff" / "diffusion").glob("[!_]*.py"))
NAMED = {
  tuple(name.split(".")) for name in re.findall(r"`(\w+\.\w+)`", TEXT) if name.split(".")[0] in MODULES
}


def module(name):
  return importlib.import_module(f"jaxdiff.diffusion.{name}")


def public_functions(name):
  tree = ast.parse((ROOT / "jaxdiff" / "diffusion" / f"{name}.py").read_text(encoding="utf-8"))
  return [d.name for d in tree.body if isinstance(d, ast.FunctionDef) and not d.name.startswith("_")]


def formulas(text):
  """(display, inline) formulas of a page, code left out. Raises AssertionError where a $ has no partner."""
  text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
  text = re.sub(r"`[^`\n]*`", "code", text)
  display, inline, block = [], [], None
  lines = ["", *text.split("\n"), ""]
  for number, line in enumerate(lines):
    if "$$" in line:
      assert line == "$$", f"$$ is not alone on its line: {line}"
      outside = lines[number - 1] if block is None else lines[number + 1]
      assert not outside, f"no blank line between a formula and: {outside}"
      if block is not None:
        display.append("\n".join(block))
      block = [] if block is None else None
    elif block is not None:
      assert "$" not in line, f"$ inside $$, or a $$ without a partner before: {line}"
      block.append(line)
    else:
      parts = line.split("$")
      assert len(parts) % 2, f"a $ without a partner: {line}"
      inline += parts[1::2]
      for before, after in zip(parts[0:-1:2], parts[2::2], strict=True):
        assert re.search(r"(^|[\s(|])$", before), f"GitHub opens no formula after: {before}"
        assert re.match(r"$|[\s.,:;)|]", after), f"GitHub closes no formula before: {after}"
  assert block is None, "a $$ without a partner"
  return display, inline


def breaks_github(formula):
  """What in a formula Markdown takes for itself before MathJax sees it, or None."""
  rules = {
    "an escape that Markdown eats": r"\\[^a-zA-Z]",
    "a raw < or >": r"[<>]",
    "an asterisk, which is emphasis": r"\*",
    "an underscore after punctuation, which is emphasis": r"(^|[^a-zA-Z0-9])_",
    "a bar, which ends a table's cell": r"\|",
    "\\operatorname, which GitHub does not allow": r"\\operatorname",
    "space at its ends": r"^\s|\s$",
    "a line that begins a list or a heading": r"(?m)^\s*([-+]\s|[-=]+\s*$|#)",
  }
  found = [what for what, pattern in rules.items() if re.search(pattern, formula)]
  if formula.count("{") != formula.count("}"):
    found.append("unbalanced braces")
  return found or None


def test_every_function_that_the_page_names_exists():
  assert NAMED
  missing = [f"{m}.{name}" for m, name in sorted(NAMED) if not callable(getattr(module(m), name, None))]
  assert not missing


@pytest.mark.parametrize("name", MODULES)
def test_the_page_names_every_public_function(name):
  """Where it is defined, or as a re-export of samplers."""
  exported = module("samplers")

  def is_named(function):
    is_same = getattr(exported, function, None) is getattr(module(name), function)
    return (name, function) in NAMED or (is_same and ("samplers", function) in NAMED)

  assert [function for function in public_functions(name) if not is_named(function)] == []


def test_formulas_render_on_github():
  display, inline = formulas(TEXT)
  assert display and inline
  broken = {formula: why for formula in display + inline if (why := breaks_github(formula))}
  assert not broken


@pytest.mark.parametrize(
  "text",
  [
    "a $b",
    "a$b$",
    "a $b$c",
    "a $$b$$",
    "a\n$$\nb\n$$",
    "$$\nb\n$$\na",
    "\n$$\nb\n",
    "\n$$\nb $c$\n$$\n",
  ],
)
def test_a_dollar_out_of_place_is_found(text):
  with pytest.raises(AssertionError):
    formulas(text)


@pytest.mark.parametrize(
  "formula",
  [
    r"a \\ b",
    r"a\,b",
    "a < b",
    "a* b",
    r"\hat{x}_t",
    "|a|",
    r"\operatorname{b}",
    "a\n- b",
    "a\n=",
    "{a",
    " a",
  ],
)
def test_a_formula_that_github_breaks_is_found(formula):
  assert breaks_github(formula)
  assert not breaks_github(r"-\hat x_t \lt \frac{\pi}{2}")


def test_code_holds_no_formulas():
  assert formulas("`a $b`\n\n```\n$$ c\n```\n") == ([], [])
