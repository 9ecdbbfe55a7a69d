r"""Improved consistency training, iCT (Song & Dhariwal 2024, eq. 7 and 10).

This is consistency training without a target average, whose grid of N(k) points doubles in stages:

$$L = E[ \tfrac{1}{t - r}\, d( f_\theta(x_t, t),\ \mathrm{sg} f_\theta(x_r, r) ) ],$$

with d the pseudo-Huber distance of whole samples (eq. 7) and (t, r) an interval of the Karras grid,
drawn by its mass under a log-normal law (eq. 10). iCT-deep is the same loss on a network twice as
deep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.contract import Contract, DataSpec
from fewstep.core import Batch, Rng, UsageError, widest
from fewstep.models import AbstractDenoiser
from fewstep.objectives.base import Loss, Objective, Phase
from fewstep.objectives.shared.discrete import (
    Draws,
    SameNoise,
    check_pair,
    consistency_loss,
    frozen_parts,
    inverse_gap,
    renoise_contract,
)
from fewstep.objectives.shared.distances import Distance, PseudoHuber
from fewstep.objectives.shared.drop import ConditionDrop, conditions, draw_noised
from fewstep.times import DiscreteLogNormal, karras

__all__ = ["Doubling", "Draws", "ImprovedConsistency"]

LOG_NORMAL = DiscreteLogNormal()
PSEUDO_HUBER = PseudoHuber()


@dataclass(frozen=True)
class Doubling:
    r"""$N(k) = \min(s_0 2^{\lfloor k / K' \rfloor}, s_1) + 1$ in stages of K' steps.

    $K' = \lfloor K / (\log_2 \lfloor s_1 / s_0 \rfloor + 1) \rfloor$, so that the last has s_1.

    Args:
        steps: length K of the whole training, in steps.
        start, end: s0 and s1, the first and the last number of intervals.
    """

    steps: int
    start: int = 10
    end: int = 1280

    def __post_init__(self) -> None:
        if not (1 <= self.start <= self.end and self.every >= 1):
            raise UsageError(
                f"Doubling: expected 1 <= start <= end, and a step or more a stage, got {self}"
            )

    @property
    def every(self) -> int:
        """K', the steps of a stage."""
        return math.floor(self.steps / (math.log2(self.end // self.start) + 1))

    def __call__(self, step: int) -> int:
        """Return N, the number of grid points, at a step."""
        return min(self.start * 2 ** (step // self.every), self.end) + 1


class ImprovedConsistency(Objective):
    """Improved consistency training.

    Args:
        student: a denoiser with ``f(x, t_min) = x``, as :class:`fewstep.models.ConsistencyBoundary`
            makes one.
        schedule: number of grid points by step.
        index: the law of the interval of the grid.
        distance: d.
        drop: label dropping.
    """

    def __init__(
        self,
        student: AbstractDenoiser,
        *,
        schedule: Callable[[int], int],
        index: Callable[[int, Tensor, torch.Generator], Tensor] = LOG_NORMAL,
        distance: Distance = PSEUDO_HUBER,
        drop: ConditionDrop | None = None,
    ) -> None:
        super().__init__()
        self.step = SameNoise(student.path)
        check_pair(student, self.step)
        self.student = student
        self.frozen = frozen_parts(self.step, distance)
        self.schedule = schedule
        self.index = index
        self.distance = distance
        self.drop = drop

    def draw(self, batch: Batch, step: int, rng: Rng) -> Draws:
        """Draw an interval of the grid for each sample, noise and the conditions to drop."""
        path = self.student.path
        grid = karras(self.schedule(step), path.t_min, path.t_max)
        index = self.index(len(batch), grid, rng)
        grid = grid.to(index.device, widest(index.device))
        t, noise, dropped = draw_noised(batch, grid[index], self.drop, rng)
        return Draws(t, grid[index + 1], noise, dropped)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Average the weighted distance over the batch."""
        cond = conditions(batch.cond, self.drop, draws.dropped)
        batch = Batch(batch.x0, cond, batch.mask, batch.aux)
        student, pair = self.student, draws[:3]
        each = consistency_loss(
            student, student, self.step, batch, *pair, inverse_gap, self.distance
        )
        return Loss({"consistency": each.mean()})

    def phases(self) -> Sequence[Phase]:
        """The student trains at every step."""
        return (Phase("student", self.student, self.draw, self.loss),)

    def contract(self, data: DataSpec) -> Contract:
        """Users may generate at any times, with fresh noise between calls."""
        return renoise_contract("ict", self.student.path, data, self.drop)
