"""A residual MLP for vectors and very small images."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core import Cond
from fewstep.models.nets.blocks import (
    AbstractNetwork,
    FourierEmbedding,
    GuidanceEmbedding,
    condition_keys,
    guidance_of,
    label_of,
    zero,
)

FEATURES = 64
"""Width of the Fourier features of time."""


class _Block(nn.Module):
    def __init__(self, width: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.modulate = nn.Linear(embedding, 2 * width)
        self.up = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.down = zero(nn.Linear(width, width))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulate(embedding).chunk(2, dim=1)
        y = torch.addcmul(shift, self.norm(h), 1 + scale)
        return h + self.down(self.dropout(F.silu(self.up(F.silu(y)))))


class ResidualMLP(AbstractNetwork):
    """Pre-normalised residual blocks on the flattened event, scaled and shifted by time and label.

    Args:
        shape: event shape, e.g. ``(2,)`` or ``(1, 8, 8)``.
        width: channels of the trunk.
        blocks: residual blocks.
        classes: number of labels; 0 for none. Label ``classes`` is null.
        fourier_scale: spread of the time embedding's frequencies.
        dropout: probability inside each block.
        two_time: read the second time too; at first it adds nothing.
        guidance: read a guidance scale, ``cond["guidance"]``, too; at first it adds nothing.
    """

    units = (_Block,)

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 256,
        blocks: int = 4,
        classes: int = 0,
        fourier_scale: float = 1.0,
        dropout: float = 0.0,
        two_time: bool = False,
        guidance: bool = False,
    ) -> None:
        super().__init__()
        self.options = {
            "shape": list(shape),
            "width": width,
            "blocks": blocks,
            "classes": classes,
            "fourier_scale": fourier_scale,
            "dropout": dropout,
            "two_time": two_time,
            "guidance": guidance,
        }
        self.cond_keys, self.two_time = condition_keys(classes, guidance), two_time
        embedding = width // 2
        self.time = nn.Sequential(
            FourierEmbedding(FEATURES, fourier_scale), nn.Linear(FEATURES, embedding)
        )
        self.end = zero(nn.Linear(FEATURES, embedding, bias=False)) if two_time else None
        self.guidance = GuidanceEmbedding(FEATURES, embedding) if guidance else None
        self.label = nn.Embedding(classes + 1, embedding) if classes else None
        self.first = nn.Linear(prod(shape), width)
        self.blocks = nn.ModuleList(_Block(width, embedding, dropout) for _ in range(blocks))
        self.last = zero(nn.Linear(width, prod(shape)))

    def forward(
        self, x: Tensor, c_noise: Tensor, s_noise: Tensor | None = None, cond: Cond | None = None
    ) -> Tensor:
        """F, shaped as ``x``."""
        embedding = self.time(c_noise)
        if self.end is not None:
            features = self.time[0](c_noise if s_noise is None else s_noise)
            embedding = embedding + self.end(features)
        if self.guidance is not None:
            embedding = embedding + self.guidance(guidance_of(cond, c_noise))
        if self.label is not None:
            embedding = embedding + self.label(label_of(cond))
        embedding = F.silu(embedding)
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = block(h, embedding)
        return self.last(F.silu(h)).reshape(x.shape)
