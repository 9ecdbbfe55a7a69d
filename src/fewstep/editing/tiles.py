"""Pictures larger than a model: overlapping tiles whose answers are blended at every call.

The state is one large picture. Each call cuts it into tiles of the model's size, asks the model of
all of them, and averages their answers where they overlap (Bar-Tal et al. 2023, MultiDiffusion).
Noise and replacement act on the whole picture, so that known regions have no seams.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.core import Cond
from fewstep.models import AbstractDenoiser
from fewstep.paths import Event, Time

OVERLAP = 0.5
"""The share of a tile that its neighbour covers, too."""

TILES = 64
"""Tiles in one call of the network, at most."""


class Tiled(AbstractDenoiser):
    """A model of small pictures as a denoiser of larger ones.

    Args:
        denoiser: of pictures ``(c, height, width)``.
        height: rows of a tile.
        width: columns of a tile.
    """

    def __init__(self, denoiser: AbstractDenoiser, height: int, width: int) -> None:
        super().__init__()
        self.denoiser, self.height, self.width = denoiser, height, width
        self.path, self.two_time = denoiser.path, denoiser.two_time
        self.cond_keys, self.calls = denoiser.cond_keys, denoiser.calls

    def forward(self, x: Event, t: Time, s: Time | None = None, cond: Cond | None = None) -> Event:
        """The blended answers of all tiles; every tile has its sample's conditions."""
        b, _, height, width = x.shape
        places = [
            (top, left) for top in starts(height, self.height) for left in starts(width, self.width)
        ]
        weight = _window(self.height, self.width).to(x)
        total, weights = torch.zeros_like(x), torch.zeros_like(x[:1, :1])
        each = max(1, TILES // b)
        for first in range(0, len(places), each):
            some = places[first : first + each]
            tiles = torch.cat([self._tile(x, place) for place in some])
            n = len(some)
            again = {key: torch.cat([value] * n) for key, value in (cond or {}).items()}
            second = None if s is None else s.repeat(n)
            answers = self.denoiser(tiles, t.repeat(n), second, again).chunk(n)
            for place, own in zip(some, answers, strict=True):
                total = total + _placed(own * weight, place, x.shape)
                weights = weights + _placed(weight[None, None], place, (1, 1, height, width))
        return total / weights

    def _tile(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        top, left = place
        return x[..., top : top + self.height, left : left + self.width]


def starts(size: int, tile: int, overlap: float = OVERLAP) -> list[int]:
    """Where tiles begin along a side, the last one flush with its end."""
    step = max(1, round(tile * (1 - overlap)))
    return [*range(0, size - tile, step), size - tile]


def _window(height: int, width: int) -> Tensor:
    """Weights of a tile's pixels ``(height, width)``, which fall towards its edges, above 0."""
    rows, columns = (
        1 - ((torch.arange(n, dtype=torch.float64) + 0.5) * 2 / n - 1).abs()
        for n in (height, width)
    )
    return rows[:, None] * columns


def _placed(tile: Tensor, place: tuple[int, int], shape: Sequence[int]) -> Tensor:
    """A tile on an empty picture; padding, unlike assignment, has a gradient."""
    top, left = place
    below, right = shape[-2] - top - tile.shape[-2], shape[-1] - left - tile.shape[-1]
    return torch.nn.functional.pad(tile, (left, right, top, below))
