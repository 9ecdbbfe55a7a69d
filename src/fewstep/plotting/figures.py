"""Figures of matplotlib, without its global state and without a screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

from fewstep.errors import UsageError
from fewstep.system.files import whole_file

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")
"""One for each model or run of a picture, by turns."""

SUFFIXES = (".png", ".svg", ".pdf")
"""Suffixes of the files that :func:`write` makes."""


def figure(panels: int, *, width: float = 4.0, height: float = 4.0) -> tuple[Any, list[Any]]:
    """A figure and its panels side by side, in inches.

    Raises:
        UsageError: the extra is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("plots need the extra: pip install 'fewstep[plot]'") from error
    drawn = Figure(figsize=(width * panels, height), layout="constrained")
    axes = drawn.subplots(1, panels, squeeze=False)
    return drawn, [*axes[0]]


def write(drawn: Any, out: Path | BinaryIO) -> None:
    """Write a figure whole or not at all; a file's suffix says its format.

    Raises:
        UsageError: the suffix is none of :data:`SUFFIXES`.
    """
    if not isinstance(out, Path):
        drawn.savefig(out, dpi=100, format="png")
        return
    check_suffix(out)
    with whole_file(out) as fresh:
        drawn.savefig(fresh, dpi=100, format=out.suffix[1:])


def check_suffix(out: Path, *further: str) -> None:
    """Refuse a file whose format is not known.

    Raises:
        UsageError: the suffix is none of :data:`SUFFIXES` nor of ``further``.
    """
    known = (*SUFFIXES, *further)
    if out.suffix not in known:
        raise UsageError(f"{out} must end in {', '.join(known[:-1])} or {known[-1]}")
