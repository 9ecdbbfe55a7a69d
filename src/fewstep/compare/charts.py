"""A line chart as SVG, on a logarithmic scale, with its legend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 900, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 210, 16, 48
COLOURS = ("#0969da", "#cf222e", "#1a7f37", "#8250df", "#bc4c00", "#bf3989", "#6e7781")
DASHES = ("", "7 4", "2 3", "9 3 2 3")
NAMESPACE = ' xmlns="http://www.w3.org/2000/svg"'
"""What a file of its own needs, and a drawing in a page does not."""


class Line(NamedTuple):
    """A name and its points, in order of x."""

    name: str
    points: Sequence[tuple[float, float]]


def chart(
    lines: Sequence[Line],
    levels: Mapping[str, float],
    x_title: str,
    y_title: str,
    *,
    ticks: Mapping[float, str] | None = None,
) -> str:
    """The drawing.

    Args:
        lines: what is not finite and positive is left out, here and of the levels.
        levels: horizontal lines by name.
        x_title: of the axis.
        y_title: of the axis.
        ticks: of the horizontal axis; by default round numbers.
    """
    lines = [Line(n, [p for p in pts if 0 < p[1] < math.inf]) for n, pts in lines]
    levels = {name: value for name, value in levels.items() if 0 < value < math.inf}
    xs = [*(ticks or (x for line in lines for x, _ in line.points))] or [0.0, 1.0]
    ys = [*(y for line in lines for _, y in line.points), *levels.values()] or [1.0]
    x_low, x_high = (min(xs), max(xs)) if ticks else (0.0, max(xs))
    y_low, y_high = math.log(min(ys) / 1.1), math.log(max(ys) * 1.1)

    height = max(HEIGHT, TOP + 12 + 20 * len(lines))

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / ((x_high - x_low) or 1.0)
        up = (math.log(y) - y_low) / (y_high - y_low)
        return (
            round(LEFT + across * (WIDTH - LEFT - RIGHT), 1),
            round(height - BOTTOM - up * (height - TOP - BOTTOM), 1),
        )

    right = WIDTH - RIGHT
    out = [
        f'<svg{NAMESPACE} viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="12" role="img">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for value in _round_values(math.exp(y_low), math.exp(y_high)):
        y = at(x_low, value)[1]
        out.append(f'<path d="M{LEFT} {y}H{right}" stroke="#d8dee4"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    for x, text in (ticks or {v: f"{v:g}" for v in _even_values(x_high)}).items():
        at_x = at(x, math.exp(y_low))[0]
        out.append(
            f'<text x="{at_x}" y="{height - BOTTOM + 18}" text-anchor="middle">{text}</text>'
        )
    middle = (LEFT + right) / 2
    out.append(
        f'<text x="{middle}" y="{height - 10}" text-anchor="middle">{escape(x_title)}</text>'
    )
    out.append(
        f'<text transform="translate(16 {height / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_title)}</text>'
    )
    for name, value in levels.items():
        y = at(x_low, value)[1]
        out.append(f'<path d="M{LEFT} {y}H{right}" stroke="#1b1f24" stroke-dasharray="1 4"/>')
        out.append(f'<text x="{right - 4}" y="{y - 4}" text-anchor="end">{escape(name)}</text>')
    for i, (name, points) in enumerate(lines):
        look = f'stroke="{COLOURS[i % len(COLOURS)]}" fill="none" stroke-width="2"'
        dash = DASHES[i // len(COLOURS) % len(DASHES)]
        look += f' stroke-dasharray="{dash}"' if dash else ""
        places = [at(x, y) for x, y in points]
        if places:
            path = "L".join(f"{x} {y}" for x, y in places)
            out.append(f'<path d="M{path}" {look}/>')
        dot = f'r="3" fill="{COLOURS[i % len(COLOURS)]}"'
        out += [f'<circle cx="{x}" cy="{y}" {dot}/>' for x, y in places]
        y = TOP + 12 + 20 * i
        out.append(f'<path d="M{right + 20} {y - 4}h28" {look}/>')
        out.append(f'<text x="{right + 56}" y="{y}">{escape(name)}</text>')
    return "\n".join([*out, "</svg>"])


def _round_values(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two positive ends."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**k for k in powers for m in (1, 2, 5) if low <= m * 10.0**k <= high]


def _even_values(high: float) -> list[float]:
    """Some round values from 0 to ``high``."""
    step = 10.0 ** math.floor(math.log10(high / 2 or 1.0))
    step *= next((m for m in (1, 2, 5) if high / (m * step) <= 8), 10)
    return [k * step for k in range(int(high / step) + 1)]
