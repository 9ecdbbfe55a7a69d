"""Grids of images: samples side by side as one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewstep.errors import UsageError

SMALLEST = 48
"""Pixels that a sample's shorter side is enlarged to, by a whole factor."""


def drawable(shape: Sequence[int | None]) -> bool:
    """Whether there is a picture of samples of this shape."""
    if len(shape) == 3:
        return shape[0] in (1, 3)
    return len(shape) == 2 or (len(shape) == 1 and shape[0] in (1, 2))


def pixels(x: Tensor) -> np.ndarray:
    """Values in [-1, 1] to uint8 as official code rounds them: clip(127.5 x + 128) cut off."""
    return (x.detach().double() * 127.5 + 128).clamp(0, 255).to(torch.uint8).cpu().numpy()


def grid(x: Tensor, columns: int | None = None) -> Image.Image:
    """Images ``(n, c, h, w)`` in [-1, 1], c of 1 or 3, side by side."""
    n, c, h, w = x.shape
    if c not in (1, 3):
        raise UsageError(f"a grid shows images of 1 or 3 channels, got {c}; save an .npz instead")
    columns = columns or math.ceil(math.sqrt(n))
    lines = math.ceil(n / columns)
    factor = max(1, math.ceil(SMALLEST / min(h, w)))
    gap = max(1, factor // 2)
    size = (columns * (w * factor + gap) - gap, lines * (h * factor + gap) - gap)
    canvas = Image.new("RGB", size, (72, 72, 72))
    for i, one in enumerate(pixels(x).transpose(0, 2, 3, 1)):
        tile = Image.fromarray(one[..., 0] if c == 1 else one)
        tile = tile.resize((w * factor, h * factor), Image.Resampling.NEAREST).convert("RGB")
        canvas.paste(tile, (i % columns * (w * factor + gap), i // columns * (h * factor + gap)))
    return canvas
