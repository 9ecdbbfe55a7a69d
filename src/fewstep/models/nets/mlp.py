"""A residual MLP for vectors and very small images."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core import Cond
from fewstep.models.nets.blocks import FourierEmbedding, label_keys, label_of


class _Block(nn.Module):
    def __init__(self, width: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.modulate = nn.Linear(embedding, 2 * width)
        self.up = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(width, width)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulate(embedding).chunk(2, dim=1)
        y = torch.addcmul(shift, self.norm(h), 1 + scale)
        return h + self.down(self.dropout(F.silu(self.up(F.silu(y)))))


class ResidualMLP(nn.Module):
    """Pre-normalised residual blocks on the flattened event, scaled and shifted by time and label.

    Args:
        shape: event shape, e.g. ``(2,)`` or ``(1, 8, 8)``.
        width: channels of the trunk.
        blocks: residual blocks.
        classes: number of labels; 0 for none. Label ``classes`` is null.
        fourier_scale: spread of the time embedding's frequencies.
        dropout: probability inside each block.
    """

    two_time = False
    units = (_Block,)

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 256,
        blocks: int = 4,
        classes: int = 0,
        fourier_scale: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.options = {
            "shape": list(shape),
            "width": width,
            "blocks": blocks,
            "classes": classes,
            "fourier_scale": fourier_scale,
            "dropout": dropout,
        }
        self.cond_keys = label_keys(classes)
        embedding = width // 2
        self.time = nn.Sequential(FourierEmbedding(64, fourier_scale), nn.Linear(64, embedding))
        self.label = nn.Embedding(classes + 1, embedding) if classes else None
        self.first = nn.Linear(prod(shape), width)
        self.blocks = nn.ModuleList(_Block(width, embedding, dropout) for _ in range(blocks))
        self.last = nn.Linear(width, prod(shape))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self, x: Tensor, c_noise: Tensor, s_noise: Tensor | None = None, cond: Cond | None = None
    ) -> Tensor:
        """F, shaped as ``x``."""
        embedding = self.time(c_noise)
        if self.label is not None:
            embedding = embedding + self.label(label_of(cond))
        embedding = F.silu(embedding)
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = block(h, embedding)
        return self.last(F.silu(h)).reshape(x.shape)
