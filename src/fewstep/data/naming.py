"""The names of classes: their order, and how messages show them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def in_order(given: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names in their order, and notes on it: as numbers if all are integers, else sorted."""
    names = sorted(set(given))
    if not all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names):
        return tuple(names), ()
    classes = sorted(names, key=lambda name: (int(name), name))
    if [int(name) for name in classes] == [*range(len(classes))]:
        return tuple(classes), ()
    last = len(classes) - 1
    note = (
        f"the classes {shortened(classes)} are sorted as numbers: label 0 is {classes[0]}, label "
        f"{last} is {classes[last]}"
    )
    return tuple(classes), (note,)


def shortened(names: Sequence[str]) -> str:
    """Some names in a sentence: all if they are few."""
    if len(names) <= 6:
        return ", ".join(names)
    return f"{', '.join(names[:3])}, ... {names[-1]}"
