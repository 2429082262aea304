"""Functions called by text: `ddim`, or `ddim(eta=0.5)` where a config names one of a dict of functions."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from jaxdiff.errors import UserError, unknown

Built = TypeVar("Built")

TYPE_NAMES = {
  bool: "true or false",
  int: "a whole number",
  float: "a number",
  str: "a word",
  tuple: "a list as in 0,1,2",
}


def build(spec: str, functions: Mapping[str, Callable[..., Built]], kind: str) -> Built:
  """What a spec such as `ddim` or `ddim(eta=0.5)` names: functions["ddim"](eta=0.5).  Raises UserError."""
  name, arguments = parse_call(spec, functions, kind)
  try:
    return functions[name](**arguments)
  except (ValueError, ZeroDivisionError) as error:
    raise UserError(f"the {kind} {spec!r} cannot be: {error}.") from None


def parse_call(
  spec: str, functions: Mapping[str, Callable[..., Any]], kind: str
) -> tuple[str, dict[str, Any]]:
  """`name(key=value, ...)` as (name, {key: value}), both checked against functions.  Values are numbers or words."""
  try:
    node = ast.parse(spec.strip(), mode="eval").body
    call = node if isinstance(node, ast.Call) else ast.Call(func=node, args=[], keywords=[])
    if not isinstance(call.func, ast.Name) or call.args:
      raise ValueError
    arguments = {str(word.arg): _literal(word.value) for word in call.keywords}
  except (SyntaxError, ValueError):
    raise UserError(f"cannot read the {kind} {spec!r}. Write a name, or name(key=value).") from None
  name = call.func.id
  if name not in functions:
    raise unknown(kind, name, functions)
  settable = inspect.signature(functions[name]).parameters.values()
  defaults = {p.name: p.default for p in settable if p.default is not inspect.Parameter.empty}
  for key, value in arguments.items():
    if key not in defaults:
      raise unknown(f"argument of {kind} {name!r}:", key, defaults)
    wanted = type(defaults[key])
    fits = {float: (int, float)}.get(wanted, wanted)
    if not isinstance(value, fits) or isinstance(value, bool) != (wanted is bool):
      raise UserError(
        f"{key} of {kind} {name!r} takes {TYPE_NAMES[wanted]} (by default {defaults[key]!r}), not {value!r}."
      )
    arguments[key] = wanted(value)
  return name, arguments


def _literal(node: ast.expr) -> Any:
  return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)
