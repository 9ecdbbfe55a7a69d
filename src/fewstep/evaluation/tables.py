"""Measurements as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.system.files import write_json

LEGEND = (
    "fd, swd: Frechet and sliced Wasserstein distance to held-out data (train: to training data);\n"
    "nn: nearest training sample, over that of held-out data (well below 1 is memory)"
)
COLUMNS = ("fd", "swd", "fd_train", "swd_train", "nn", "images_per_second")

FURTHER_LEGEND = (
    "to held-out data. kid: kernel distance, unbiased; precision, density: are samples like data;\n"
    "recall, coverage: is all of the data there"
)
FURTHER = ("kid", "precision", "recall", "density", "coverage")
"""Columns of a table of their own, where they were measured."""

Rows = Sequence[tuple[str, Mapping[str, float]]]


def table(rows: Rows, baseline: float) -> str:
    """Rows of metrics as text; ``speed-up`` is over ``baseline`` images per second."""
    lines: list[tuple[str, ...]] = [
        ("", "fd", "swd", "fd train", "swd train", "nn", "images/s", "speed-up")
    ]
    for name, row in rows:
        cells = [f"{row[k]:.3f}" if k in row else "-" for k in COLUMNS[:-1]]
        speed = row.get("images_per_second")
        cells += ["-", "-"] if speed is None else [f"{speed:,.0f}", f"{speed / baseline:.1f}x"]
        lines.append((name, *cells))
    text = f"{_aligned(lines)}\n\n{LEGEND}"
    further = [key for key in FURTHER if any(key in row for _, row in rows)]
    if further:
        cells = [(name, *(f"{row[k]:.4f}" for k in further)) for name, row in rows]
        text += f"\n\n{_aligned([('', *further), *cells])}\n\n{FURTHER_LEGEND}"
    return text


def write_metrics(path: str | Path, metrics: Mapping[str, Any]) -> None:
    """``metrics.json``, numbers rounded to six significant digits."""
    write_json(
        Path(path), json.loads(json.dumps(metrics), parse_float=lambda s: float(f"{float(s):.6g}"))
    )


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
