"""The noise of generated samples, which belongs to each sample and not to its batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fewstep.hashing import entropies

AHEAD = 2**26
"""The most numbers that are drawn before they are asked for: 256 MiB of float32."""


class SampleNoise:
    """Unit noise that belongs to the sample: drawn on the CPU from (seed, index).

    So a sample depends neither on the batch it is made in nor on the device, but for the rounding
    of matrix products.

    Args:
        seeds: a pair of seed and index for each sample.
        shape: of a sample.
        lengths: of the samples along the last axis, all at most the shape's; each sample's noise is
            drawn at its own length, and zeros fill it up.
        calls: how many steps will ask, where that is known. All their noise is then drawn at once,
            by one generator, which takes less time than a generator for each sample.
    """

    def __init__(
        self,
        seeds: Sequence[tuple[int, int]],
        shape: Sequence[int],
        lengths: Sequence[int] | None = None,
        calls: int | None = None,
    ) -> None:
        self.shape = tuple(shape)
        self.lengths = lengths
        self.seeds = entropies(seeds)
        drawn = math.prod((calls or 0, len(seeds), *self.shape))
        self._steps = self._as_asked() if not calls or drawn > AHEAD else self._ahead(calls)

    def __call__(self, i: int) -> Tensor:
        """``(b, *shape)``; each sample's own stream goes on, so steps must be asked in order."""
        return next(self._steps)

    def _ahead(self, calls: int) -> Iterator[Tensor]:
        """The noise of so many steps, all drawn before the first."""
        generator = torch.Generator()
        steps = [self._empty() for _ in range(calls)]
        reseed, whole = generator.manual_seed, self.lengths is None
        for n, (seed, *own) in enumerate(zip(self.seeds, *steps, strict=True)):
            reseed(seed)
            for row in own:
                if whole:
                    row.normal_(generator=generator)
                else:
                    self._fill(row, n, generator)
        yield from steps

    def _as_asked(self) -> Iterator[Tensor]:
        generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        while True:
            step = self._empty()
            for n, (row, generator) in enumerate(zip(step, generators, strict=True)):
                self._fill(row, n, generator)
            yield step

    def _empty(self) -> Tensor:
        make = torch.empty if self.lengths is None else torch.zeros
        return make(len(self.seeds), *self.shape)

    def _fill(self, row: Tensor, n: int, generator: torch.Generator) -> None:
        if self.lengths is None:
            row.normal_(generator=generator)
        else:
            shape = (*self.shape[:-1], self.lengths[n])
            row[..., : self.lengths[n]] = torch.randn(shape, generator=generator)
