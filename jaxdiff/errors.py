"""Mistakes, told in one line."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class UserError(Exception):
  """Wrong input: the message says what is wrong, which value, where it is set and what would be right.

  `main` prints it as one line, `jaxdiff: <message>`, and exits with its status, without a traceback.
  """

  status = 2


class Outage(UserError):
  """What may pass by itself, as a network that is down: the same command goes on when it has."""

  status = 74  # EX_IOERR of sysexits.h: something outside failed, to try again is worth it


def unknown(kind: str, name: object, known: Iterable[str]) -> UserError:
  """A UserError for a name that is not in a dict of known ones, with the nearest one suggested."""
  names = sorted(known)
  near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
  hint = f" Did you mean {near[0]!r}?" if near else ""
  return UserError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")


def first_line(error: BaseException) -> str:
  """What an error says, in one line; its kind where it says nothing."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0]


def require(module: str, package: str, why: str) -> ModuleType:
  """The module, imported when it is first needed.

  Raises:
    UserError: it is not installed; names the package that has it.
  """
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as e:
    raise UserError(f"{why} needs the package {package} ({e}): pip install {package}") from None
