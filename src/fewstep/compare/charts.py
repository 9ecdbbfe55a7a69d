"""A line chart as SVG, on a logarithmic scale, with its legend below."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

WIDE, NARROW = 760, 360
"""Widths, in units of which a letter is 12 high: of a file or a screen, and of a phone."""

LEFT, RIGHT, TOP, BOTTOM = 44, 14, 30, 48
"""Margins of the plot; the legend follows below the bottom one."""

COLOURS = ("#0969da", "#cf222e", "#1a7f37", "#8250df", "#bc4c00", "#bf3989", "#6e7781")
DASHES = ("", "7 4", "2 3", "9 3 2 3")
MARKS = (
    "m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
    "m-3.2 -3.2h6.4v6.4h-6.4z",
    "m0 -4.4l4.4 7.4h-8.8z",
    "m0 -4.8l4.8 4.8l-4.8 4.8l-4.8 -4.8z",
)
"""A circle, a square, a triangle and a diamond around a point."""

ROW, SWATCH, LETTER = 20, 36, 7
"""Height of a row of the legend, width of its sample of a line, and width of a letter."""

NAMESPACE = ' xmlns="http://www.w3.org/2000/svg"'
"""The attribute that an SVG file needs, and an SVG element of a page does not."""


class Line(NamedTuple):
    """A name and its points, in order of x."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class _Axes:
    """The ranges of a plot and its size, in the units of the drawing."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    width: int
    height: int

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The position of a point."""
        across = (x - self.x_low) / ((self.x_high - self.x_low) or 1.0)
        up = math.log(y / self.y_low) / math.log(self.y_high / self.y_low)
        return (
            round(LEFT + across * (self.width - LEFT - RIGHT), 1),
            round(self.height - BOTTOM - up * (self.height - TOP - BOTTOM), 1),
        )


def chart(
    lines: Sequence[Line],
    levels: Mapping[str, float],
    x_title: str,
    y_title: str,
    *,
    ticks: Mapping[float, str] | None = None,
    width: int = WIDE,
) -> str:
    """Draw lines, horizontal levels and a legend.

    Args:
        lines: the data. Values that are not finite and positive are left out, here and of the
            levels.
        levels: horizontal lines by name.
        x_title: the title of the horizontal axis.
        y_title: the title of the vertical axis.
        ticks: labels of the horizontal axis by position; by default round numbers from 0.
        width: the width of the drawing, in units of which a letter is 12 high.

    Returns:
        The text of an SVG file.
    """
    lines = [Line(n, [p for p in pts if 0 < p[1] < math.inf]) for n, pts in lines]
    levels = {name: value for name, value in levels.items() if 0 < value < math.inf}
    xs = [*(ticks or (x for line in lines for x, _ in line.points))] or [0.0, 1.0]
    ys = [*(y for line in lines for _, y in line.points), *levels.values()] or [1.0]
    low = min(xs) if ticks else 0.0
    height = 230 + round(0.3 * width)
    axes = _Axes(low, max(xs), min(ys) / 1.1, max(ys) * 1.1, width, height)
    rows, legend = _legend([line.name for line in lines], width, height)
    whole = height + ROW * rows
    return "\n".join(
        [
            f'<svg{NAMESPACE} viewBox="0 0 {width} {whole}" width="{width}" height="{whole}" '
            f'font-family="system-ui, sans-serif" font-size="12" role="img" '
            f'aria-label="{escape(y_title)} against {escape(x_title)}">',
            f'<rect width="{width}" height="{whole}" fill="#fff"/>',
            *_scales(axes, ticks),
            f'<text x="{width / 2:g}" y="{height - 12}" text-anchor="middle">'
            f"{escape(x_title)}</text>",
            f'<text x="4" y="16">{escape(y_title)}</text>',
            *(part for i, line in enumerate(lines) for part in _drawn(i, line, axes)),
            *_levels(levels, axes),
            *legend,
            "</svg>",
        ]
    )


def _scales(axes: _Axes, ticks: Mapping[float, str] | None) -> list[str]:
    """Grid lines with the values of the vertical axis, and the labels of the horizontal one."""
    out = []
    for value in _round_values(axes.y_low, axes.y_high):
        y = axes.at(axes.x_low, value)[1]
        out.append(f'<path d="M{LEFT} {y}H{axes.width - RIGHT}" stroke="#d8dee4"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    for x, text in (ticks or {v: f"{v:g}" for v in _even_values(axes.x_high)}).items():
        x_at, y_at = axes.at(x, axes.y_low)[0], axes.height - BOTTOM + 18
        out.append(f'<text x="{x_at}" y="{y_at}" text-anchor="middle">{escape(text)}</text>')
    return out


def _levels(levels: Mapping[str, float], axes: _Axes) -> list[str]:
    """Dotted lines, each with its name above it, or below it where another name is near."""
    out, right, last = [], axes.width - RIGHT, -math.inf
    for name, value in sorted(levels.items(), key=lambda pair: -pair[1]):
        y = axes.at(axes.x_low, value)[1]
        text_y = y - 4 if y - 4 > last + 12 else y + 13
        last = text_y
        out.append(f'<path d="M{LEFT} {y}H{right}" stroke="#1b1f24" stroke-dasharray="1 4"/>')
        out.append(
            f'<text x="{right - 4}" y="{round(text_y, 1)}" text-anchor="end" '
            f'paint-order="stroke" stroke="#fff" stroke-width="4">{escape(name)}</text>'
        )
    return out


def _drawn(i: int, line: Line, axes: _Axes) -> list[str]:
    """A line and its marks; its name appears where a pointer rests on it."""
    places = [axes.at(x, y) for x, y in line.points]
    if not places:
        return []
    path = "L".join(f"{x} {y}" for x, y in places)
    marks = [_mark(i, x, y) for x, y in places]
    stroke = f'<path d="M{path}" {_look(i)}/>'
    return [f"<g><title>{escape(line.name)}</title>", stroke, *marks, "</g>"]


def _look(i: int) -> str:
    """The attributes of a line, which differ in colour or dashes."""
    dash = DASHES[i // len(COLOURS) % len(DASHES)]
    look = f'stroke="{COLOURS[i % len(COLOURS)]}" fill="none" stroke-width="2"'
    return look + (f' stroke-dasharray="{dash}"' if dash else "")


def _mark(i: int, x: float, y: float) -> str:
    """A point of a line: its shape differs where its colour does not."""
    shape = MARKS[i // len(COLOURS) % len(MARKS)]
    return f'<path class="mark" d="M{x} {y}{shape}" fill="{COLOURS[i % len(COLOURS)]}"/>'


def _legend(names: Sequence[str], width: int, top: int) -> tuple[int, list[str]]:
    """The number of its rows, and its parts, in as many columns as the names leave room for."""
    needed = SWATCH + LETTER * max((len(name) for name in names), default=0) + 12
    columns = max(1, (width - 16) // needed)
    column = (width - 16) // columns
    rows, out = math.ceil(len(names) / columns), []
    for i, name in enumerate(names):
        x, y = 8 + column * (i // rows), top + 8 + ROW * (i % rows)
        fit = column - SWATCH - 4
        squeeze = f' textLength="{fit}" lengthAdjust="spacingAndGlyphs"'
        squeeze = squeeze if LETTER * len(name) > fit else ""
        out.append(f'<path d="M{x} {y - 4}h28" {_look(i)}/>')
        out.append(_mark(i, x + 14, y - 4))
        out.append(f'<text x="{x + SWATCH}" y="{y}"{squeeze}>{escape(name)}</text>')
    return rows, out


def _round_values(low: float, high: float) -> list[float]:
    """Round values between two positive ends: at least three, where few digits give them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values: list[float] = []
    for digits in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(k / 10 for k in range(10, 100))):
        values = [m * 10.0**k for k in powers for m in digits if low <= m * 10.0**k <= high]
        if len(values) >= 3:
            break
    return values


def _even_values(high: float) -> list[float]:
    """Some round values from 0 to ``high``."""
    step = 10.0 ** math.floor(math.log10(high / 2 or 1.0))
    step *= next((m for m in (1, 2, 5) if high / (m * step) <= 8), 10)
    return [k * step for k in range(int(high / step) + 1)]
