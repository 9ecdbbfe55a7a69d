"""The noise of generated samples, which belongs to each sample and not to its batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.core import entropy


class SampleNoise:
    """Unit noise that belongs to the sample: drawn on the CPU from (seed, index).

    So a sample depends neither on the batch it is made in nor on the device, but for the rounding
    of matrix products.

    Args:
        seeds: a pair of seed and index for each sample.
        shape: of a sample.
        lengths: of the samples along the last axis, all at most the shape's; each sample's noise is
            drawn at its own length, and zeros fill it up.
    """

    def __init__(
        self,
        seeds: Sequence[tuple[int, int]],
        shape: Sequence[int],
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.generators = [torch.Generator().manual_seed(entropy(*pair)) for pair in seeds]
        self.shape = tuple(shape)
        self.lengths = lengths

    def __call__(self, i: int) -> Tensor:
        """``(b, *shape)``; each sample's own stream goes on, so steps must be asked in order."""
        if self.lengths is None:
            return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators])
        noise = torch.zeros(len(self.generators), *self.shape)
        for row, g, length in zip(noise, self.generators, self.lengths, strict=True):
            row[..., :length] = torch.randn((*self.shape[:-1], length), generator=g)
        return noise
