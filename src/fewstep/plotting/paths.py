"""Samples of the plane on their way: lines from noise to data, as a picture and as a film."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fewstep.errors import UsageError
from fewstep.plotting.figures import COLOURS, figure, write
from fewstep.plotting.walks import Walk
from fewstep.system.files import whole_file

FRAMES = 24
"""Frames of a film, beside the pause at its end."""


def paths(walks: Sequence[Walk], out: Path) -> None:
    """Write a picture with one panel for each model: lines through the states, dots at samples.

    Args:
        walks: of models of the plane, which begin at the same noise.
        out: a file that matplotlib writes, by its suffix: .png, .svg or .pdf.

    Raises:
        UsageError: samples are no points of the plane, or the extra is not installed.
    """
    _check(walks)
    drawn, axes = figure(len(walks))
    reach = _reach(walks)
    for walk, panel, colour in zip(walks, axes, cycle(COLOURS), strict=False):
        _panel(panel, walk, len(walk.levels), colour, reach)
    write(drawn, out)


def animation(walks: Sequence[Walk], out: Path) -> None:
    """Write a film of the same, in which the noise level falls; every model moves at its own times.

    Args:
        walks: of models of the plane, which begin at the same noise.
        out: a .gif file.

    Raises:
        UsageError: samples are no points of the plane, or the extra is not installed.
    """
    _check(walks)
    reach, frames = _reach(walks), []
    # Where a path begins at noise without signal, the first level is infinite.
    finite = [level for walk in walks for level in walk.levels if 0 < level < math.inf] or [1.0]
    high, low = max(finite), min(finite)
    falling = torch.linspace(0, 1, FRAMES)
    levels = [high * (low / high) ** float(share) for share in falling]
    for level in [*levels, 0.0]:
        drawn, axes = figure(len(walks))
        for walk, panel, colour in zip(walks, axes, cycle(COLOURS), strict=False):
            # A model has made the steps whose calls were at a higher level.
            called = sum(level < at for at in walk.levels[:-1])
            _panel(panel, walk, 1 + called, colour, reach)
        data = io.BytesIO()
        write(drawn, data)
        frames.append(Image.open(data).convert("P", palette=Image.Palette.ADAPTIVE, colors=64))
    pauses = [80] * (len(frames) - 1) + [2000]
    with whole_file(out) as fresh:
        frames[0].save(
            fresh, format="GIF", save_all=True, append_images=frames[1:], duration=pauses, loop=0
        )


def _check(walks: Sequence[Walk]) -> None:
    for walk in walks:
        if walk.states.shape[2:] != (2,):
            raise UsageError(
                f"{walk.name} makes samples of shape {tuple(walk.states.shape[2:])}; paths are "
                "drawn of models of the plane, whose samples have 2 numbers"
            )


def _reach(walks: Sequence[Walk]) -> float:
    """Half the side of all panels: states that are not far outside of the others are in them."""
    return 1.1 * max(float(walk.states.abs().flatten().quantile(0.995)) for walk in walks)


def _panel(panel: Any, walk: Walk, states: int, colour: str, reach: float) -> None:
    """One model's paths up to a number of states."""
    x, y = walk.states[:states].unbind(-1)
    panel.plot(x, y, color=colour, lw=0.6, alpha=0.7)
    panel.scatter(x[0], y[0], s=6, color="0.6", zorder=2)
    panel.scatter(x[-1], y[-1], s=10, color=colour, zorder=3)
    plural = "s" * (walk.calls != 1)
    panel.set(
        title=f"{walk.name}: {walk.calls} network call{plural}",
        xlim=(-reach, reach),
        ylim=(-reach, reach),
        aspect="equal",
    )
