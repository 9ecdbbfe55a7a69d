"""Pictures of samples: grids of images, clouds of points, lines, and rows with captions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from fewstep.image_grid import drawable as drawable
from fewstep.image_grid import grid as grid
from fewstep.image_grid import pixels as pixels
from fewstep.system.files import whole_file

MARK = "Software"
"""The text of a PNG that says what wrote it."""

PANEL = (96, 64)
"""Width and height of a plot of lines."""

COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")


def cloud(x: Tensor, size: int = 480, reach: float = 2.0) -> Image.Image:
    """Points ``(n, 2)`` in [-reach, reach]^2 as a density; 1-D points as a histogram."""
    points = x.detach().double().cpu().numpy()
    if points.shape[1] == 1:
        counts, _ = np.histogram(points[:, 0], bins=size // 4, range=(-reach, reach))
        height = counts / max(counts.max(), 1)
        rows = np.linspace(1, 0, size // 4)[:, None]
        density = (rows <= height[None]).astype(float)
    else:
        density, _, _ = np.histogram2d(
            points[:, 1], points[:, 0], bins=size // 4, range=[[-reach, reach]] * 2
        )
        density = np.sqrt(density / max(density.max(), 1))[::-1]
    shade = (255 * (1 - density)).astype(np.uint8)
    return Image.fromarray(shade).resize((size, size), Image.Resampling.NEAREST).convert("RGB")


def lines(x: Tensor, columns: int | None = None) -> Image.Image:
    """Sequences ``(n, c, length)``, such as action chunks, as plots with a line for each channel.

    All plots have the same axes. Zeros behind the end of a sequence are left out.
    """
    values = x.detach().double().cpu().nan_to_num(0.0, 0.0, 0.0).numpy()
    n, _, length = values.shape
    columns = columns or math.ceil(math.sqrt(n))
    (width, height), gap = PANEL, 4
    size = (columns * (width + gap) - gap, math.ceil(n / columns) * (height + gap) - gap)
    canvas = Image.new("RGB", size, (72, 72, 72))
    low, high = float(values.min()), float(values.max())
    spread = high - low or 1.0
    across = np.linspace(2, width - 3, length)
    for i, one in enumerate(values):
        tile = Image.new("RGB", PANEL, "white")
        draw = ImageDraw.Draw(tile)
        real = int((one != 0).any(0).nonzero()[0].max(initial=0)) + 1
        for k, channel in enumerate(one):
            down = 2 + (height - 5) * (high - channel[:real]) / spread
            points = [*zip(across[:real].tolist(), down.tolist(), strict=True)]
            colour = COLOURS[k % len(COLOURS)]
            if len(points) > 1:
                draw.line(points, fill=colour)
            else:
                draw.ellipse([points[0][0] - 1, points[0][1] - 1, *points[0]], fill=colour)
        canvas.paste(tile, (i % columns * (width + gap), i // columns * (height + gap)))
    return canvas


def marked(path: Path, mark: str) -> bool:
    """Whether a file is a PNG that :func:`picture` or :func:`rows` wrote with this mark."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.info.get(MARK) == mark
    except OSError:  # also of what is no picture
        return False


def _marks(mark: str) -> PngInfo:
    info = PngInfo()
    if mark:
        info.add_text(MARK, mark)
    return info


def picture(x: Tensor, path: str | Path, columns: int | None = None, mark: str = "") -> None:
    """Write samples as a PNG: images, points or lines; of other samples there is no picture.

    Args:
        x: the samples, ``(n, *shape)``.
        path: of the file; its folder is made where there is none.
        columns: of the grid; by default it is about square.
        mark: by which :func:`marked` knows the file.
    """
    if not drawable(x.shape[1:]):
        return
    draw = {4: grid, 3: lines}.get(x.ndim)
    image = cloud(x) if draw is None else draw(x, columns)
    with whole_file(Path(path)) as fresh:
        image.save(fresh, pnginfo=_marks(mark))


def rows(parts: Sequence[tuple[str, Tensor]], path: str | Path, mark: str = "") -> None:
    """Write one captioned row of images for each part.

    Args:
        parts: captions and images ``(n, c, h, w)`` in [-1, 1].
        path: of the file; its folder is made where there is none.
        mark: by which :func:`marked` knows the file.
    """
    strips = [(caption, grid(x, columns=len(x))) for caption, x in parts]
    margin, line = 8, 20
    width = max(strip.width for _, strip in strips) + 2 * margin
    height = sum(strip.height + line + margin for _, strip in strips) + margin
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    y = margin
    for caption, strip in strips:
        draw.text((margin, y), caption, fill="black", font_size=14)
        canvas.paste(strip, (margin, y + line))
        y += strip.height + line + margin
    with whole_file(Path(path)) as fresh:
        canvas.save(fresh, pnginfo=_marks(mark))
