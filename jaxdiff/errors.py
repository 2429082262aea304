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
  return UserError(
    f"unknown {kind} {name!r}.{did_you_mean(str(name), names, '{!r}')} Known: {', '.join(names)}."
  )


def did_you_mean(name: str, known: Iterable[str], shown: str = "{}", cutoff: float = 0.4) -> str:
  """The question whether the nearest known name, formatted by `shown`, was meant; empty where none has difflib's ratio of cutoff."""
  near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
  return f" Did you mean {shown.format(near[0])}?" if near else ""


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
