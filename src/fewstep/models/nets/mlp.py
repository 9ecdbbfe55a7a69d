"""A residual MLP for vectors and very small images."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core import Cond, UsageError
from fewstep.models.nets.blocks import (
    AbstractNetwork,
    FourierEmbedding,
    GuidanceEmbedding,
    condition_keys,
    embedding_of,
    guidance_of,
    label_of,
    zero,
)
from fewstep.models.nets.conditions import Conditions

FEATURES = 64
"""Time has so many Fourier features."""


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
    """Residual blocks on the flattened sample; time and conditions scale and shift their inputs.

    Args:
        shape: the sample shape, e.g. ``(2,)`` or ``(1, 8, 8)``.
        width: the number of channels of the trunk.
        blocks: the number of residual blocks.
        classes: the number of labels, 0 for none; the label ``classes`` is null.
        fourier_scale: the standard deviation of the time embedding's frequencies.
        dropout: the probability of dropout inside each block.
        two_time: whether the network also reads the second time, which at first adds nothing.
        guidance: whether the network also reads a guidance scale, ``cond["guidance"]``, which at
            first adds nothing.
        vectors: the names of vector conditions, and how many numbers each has per sample;
            ``cond[name]`` is float ``(b, ...)``.
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
        vectors: Mapping[str, int] | None = None,
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
        if width < 2:
            raise UsageError(f"an mlp has a width of at least 2, got {width}")
        embedding = width // 2
        self.conditions = Conditions("ResidualMLP", embedding, vectors)
        self.options |= self.conditions.options
        self.cond_keys = condition_keys(classes, guidance) + self.conditions.keys
        self.two_time = two_time
        self.time = nn.Sequential(
            FourierEmbedding(FEATURES, fourier_scale), nn.Linear(FEATURES, embedding)
        )
        self.end = zero(nn.Linear(FEATURES, embedding, bias=False)) if two_time else None
        self.guidance = GuidanceEmbedding(FEATURES, embedding) if guidance else None
        self.label = embedding_of(classes + 1, embedding) if classes else None
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
        embedding = F.silu(self.conditions.add_vectors(embedding, cond))
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = block(h, embedding)
        return self.last(F.silu(h)).reshape(x.shape)
