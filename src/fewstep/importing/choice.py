"""Which of several networks in a file is meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fewstep.errors import UsageError
from fewstep.importing.options import ImportOptions


def chosen(names: Sequence[str], options: ImportOptions, source: Path) -> str:
    """The network that is imported: the one that the user names, the only one, or the only average.

    Raises:
        UsageError: there is none of that name, or several and no name.
    """
    if options.weights is not None:
        if options.weights in names:
            return options.weights
        raise UsageError(
            f"{source} has no network {options.weights!r}; give --weights {' or '.join(names)}"
        )
    averages = [name for name in names if name.startswith("ema")]
    for one in (names, averages):
        if len(one) == 1:
            return one[0]
    raise UsageError(
        f"{source} holds the networks {', '.join(names)}; choose one with --weights NAME"
    )
