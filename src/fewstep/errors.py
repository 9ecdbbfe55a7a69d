"""Errors that the command line answers with a message alone; imports no torch."""

from __future__ import annotations

import difflib
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
