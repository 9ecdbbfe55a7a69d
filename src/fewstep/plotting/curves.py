"""The losses and the evaluations of several runs in one picture, read from their logs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from fewstep.errors import UsageError
from fewstep.plotting.figures import COLOURS, figure, write

EVALUATION = "eval/"
"""The names of what evaluations measure begin with this in a log."""


def curves(runs: Sequence[Path], out: Path) -> tuple[str, ...]:
    """Write a picture with the loss of each run, and a panel for each metric of evaluations.

    The vertical axis of a panel is logarithmic where all its values are above 0. A loss of one
    method says nothing beside that of another; the metrics can be compared.

    Args:
        runs: run folders; they may be training.
        out: a file that matplotlib writes, by its suffix: .png, .svg or .pdf.

    Returns:
        The titles of the panels.

    Raises:
        UsageError: a folder is no run or has no row yet, or the extra is not installed.
    """
    logs = {name: _rows(run) for name, run in _names(runs).items()}
    measured = {
        key for rows in logs.values() for row in rows for key in row if key.startswith(EVALUATION)
    }
    panels = ("loss", *sorted(measured))
    drawn, axes = figure(len(panels), width=5.0, height=3.6)
    for key, panel in zip(panels, axes, strict=True):
        positive = True
        for (name, rows), colour in zip(logs.items(), cycle(COLOURS), strict=False):
            points = [
                (row["step"], row[key]) for row in rows if math.isfinite(row.get(key, math.nan))
            ]
            if points:
                panel.plot(*zip(*points, strict=True), label=name, color=colour, lw=1.2)
                positive &= min(value for _, value in points) > 0
        panel.set(title=key.removeprefix(EVALUATION), xlabel="step")
        panel.grid(alpha=0.3)
        if positive:
            panel.set(yscale="log")
    axes[0].legend(fontsize="small")
    write(drawn, out)
    return tuple(key.removeprefix(EVALUATION) for key in panels)


def _names(runs: Sequence[Path]) -> dict[str, Path]:
    """Runs by their folders' names, or by their paths where two folders have one name."""
    short = {run.resolve().name: run for run in runs}
    return short if len(short) == len(runs) else {str(run): run for run in runs}


def _rows(run: Path) -> list[dict[str, float]]:
    """The rows of a log that are whole; the last one may be half written.

    Raises:
        UsageError: there is no log, or it has no row.
    """
    log = run / "log.jsonl"
    if not log.is_file():
        raise UsageError(f"{run} is no run folder: it has no log.jsonl")
    rows = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            numbers = {k: v for k, v in row.items() if isinstance(v, int | float)}
            rows.append(numbers)
    if not any(math.isfinite(row.get("loss", math.nan)) for row in rows):
        raise UsageError(f"{log} has no loss yet")
    return rows
