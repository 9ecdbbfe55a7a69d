"""Errors that the command line answers with a message alone; imports no torch."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable


class UsageError(Exception):
    """Something the caller gave cannot be used; the message says what was given and what to do.

    The command line prints the message alone and exits with code 2.
    """


class UsageWarning(UserWarning):
    """Something the caller gave can be used, but is seldom meant; the command line prints it."""


class Interrupted(Exception):
    """A signal ended a training after it saved; the command line exits with 128 + signal."""

    def __init__(self, signum: int, saved: object) -> None:
        super().__init__(f"interrupted; saved {saved}; the same command resumes")
        self.signum = signum


def in_words(error: BaseException) -> str:
    """What went wrong with a file, for a message of ours: Python's own words name no thing.

    Args:
        error: that a reader raised.
    """
    if isinstance(error, UsageError):
        return str(error)
    if isinstance(error, json.JSONDecodeError):
        if not error.doc.strip():
            return "it is empty"
        if not error.doc[error.pos :].strip():
            return "it is cut short"
        return f"it is no JSON from line {error.lineno}, column {error.colno} on"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is no text"
    if isinstance(error, KeyError):
        return f"it has no entry {error.args[0]!r}" if error.args else "an entry is missing"
    if isinstance(error, IndexError | EOFError):
        return "it is cut short, or a part of it is missing"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, TypeError | AttributeError):
        return "a part of it is of another kind than expected"
    said = error.strerror if isinstance(error, OSError) else None
    return said or next(iter(str(error).splitlines()), "") or type(error).__name__


MANY = 30
"""A message lists no more names than these."""


def nearest(given: str, known: Iterable[str]) -> str:
    """A hint for a message about an unknown name: the nearest known ones, or all if few."""
    names = list(known)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    if len(names) > MANY:
        near = difflib.get_close_matches(given, names, n=5, cutoff=0.3) or names[:5]
        return f"{hint}known: {', '.join(near)} and {len(names) - len(near)} others"
    return f"{hint}known: {', '.join(names)}"
