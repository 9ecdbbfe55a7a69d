r"""Consistency models (Song, Dhariwal, Chen & Sutskever 2023): distillation and training.

With a descending grid $t_0 = t_{max} > ... > t_{N-1} = t_{min}$ and an interval $i$, online at
$t = t_i$ and target at $r = t_{i+1}$ (algorithms 2 and 3, whose indices run the other way):

$$L = E[ w(t, r)\, d( f_\theta(x_t, t),\ \mathrm{sg} f_{\theta^-}(x_r, r) ) ]$$

where CD takes $x_r$ from one ODE step of a teacher and CT from the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.contract import Contract, DataSpec
from fewstep.core import Batch, Rng, widest
from fewstep.models import AbstractDenoiser
from fewstep.objectives.base import Loss, Objective, Phase
from fewstep.objectives.discrete import (
    Draws,
    PairWeight,
    SameNoise,
    TeacherStep,
    check_pair,
    consistency_loss,
    frozen_parts,
    renoise_contract,
)
from fewstep.objectives.distances import Distance, l2
from fewstep.objectives.terms import LabelDrop, conditions, draw_noised, follow, frozen_copy
from fewstep.times import UniformIndex, karras

__all__ = ["Consistency", "Draws", "Fixed", "Progressive", "SameNoise", "Scales", "TeacherStep"]


UNIFORM_INDEX = UniformIndex()


class Scales(NamedTuple):
    """At some step: the number of grid points N, and the target's averaging rate mu."""

    points: int
    rate: float


Schedule = Callable[[int], Scales]


@dataclass(frozen=True)
class Fixed:
    """The same at every step; rate 0 makes the target the student itself."""

    points: int = 18
    rate: float = 0.0

    def __call__(self, step: int) -> Scales:
        """N, mu."""
        return Scales(self.points, self.rate)


@dataclass(frozen=True)
class Progressive:
    r"""N grows from ``start`` to ``end`` with the square root of the step (Song et al., app. C).

    The adaptive rate is exp(start ln(rate) / q) with q = N - 1 intervals. The paper writes N in the
    denominator; the code, which gave the published numbers, has q, and we follow it: at step 0 with
    start 2 and rate 0.9 it gives 0.81 where the paper gives 0.9.

    Args:
        start, end: s0 and s1.
        steps: length K of the whole training.
        rate: mu_0.
        adaptive: let the rate follow N; else it stays ``rate``.
    """

    start: int
    end: int
    steps: int
    rate: float = 0.9
    adaptive: bool = True

    def __call__(self, step: int) -> Scales:
        """N, mu."""
        low, high = self.start**2, (self.end + 1) ** 2
        q = max(1, math.ceil(math.sqrt(step / self.steps * (high - low) + low) - 1))
        rate = math.exp(self.start * math.log(self.rate) / q) if self.adaptive else self.rate
        return Scales(q + 1, rate)


class Consistency(Objective):
    """CD with a :class:`TeacherStep`, CT with :class:`SameNoise`.

    Args:
        student: whose ``f(x, t_min) = x``: see :class:`fewstep.models.ConsistencyBoundary`.
        step: how the earlier point arises.
        schedule: N and mu by step. If mu is 0 at step 0 there is no target network: the target is
            the student, without gradient.
        weight: w(t, r); published runs use 1.
        distance: d; published runs use LPIPS, or l2 and l1.
        index: which interval of the grid.
        grid: N to descending times; the Karras grid of the student's path by default.
        drop: label dropping.
    """

    def __init__(
        self,
        student: AbstractDenoiser,
        step: TeacherStep | SameNoise,
        *,
        schedule: Schedule,
        weight: PairWeight = lambda t, r: torch.ones_like(t),
        distance: Distance = l2,
        index: Callable[[int, Tensor, torch.Generator], Tensor] = UNIFORM_INDEX,
        grid: Callable[[int], Tensor] | None = None,
        drop: LabelDrop | None = None,
    ) -> None:
        super().__init__()
        check_pair(student, step)
        self.student = student
        self.step = step
        self.frozen = frozen_parts(step, distance)
        self.target = frozen_copy(student) if schedule(0).rate > 0 else None
        self.schedule = schedule
        self.weight = weight
        self.distance = distance
        self.index = index
        self.grid = grid or (lambda n: karras(n, student.path.t_min, student.path.t_max))
        self.drop = drop

    def pair(self, index: Tensor, points: int) -> tuple[Tensor, Tensor]:
        """Times ``(t, r)`` of grid intervals: int64 ``(b,)`` in [0, points - 2] to float64."""
        grid = self.grid(points).to(index.device, widest(index.device))
        return grid[index], grid[index + 1]

    def draw(self, batch: Batch, step: int, rng: Rng) -> Draws:
        """An interval of the current grid for each sample, and noise."""
        points = self.schedule(step).points
        index = self.index(len(batch), self.grid(points), rng)
        t, r = self.pair(index, points)
        return Draws(t, r, *draw_noised(batch, t, self.drop, rng)[1:])

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """The weighted distance, averaged over the batch."""
        cond = conditions(batch.cond, self.drop, draws.dropped)
        batch = Batch(batch.x0, cond, batch.mask, batch.aux)
        target = self.student if self.target is None else self.target
        each = consistency_loss(
            self.student, target, self.step, batch, *draws[:3], self.weight, self.distance
        )
        return Loss({"consistency": each.mean()})

    def phases(self) -> Sequence[Phase]:
        """The student's update."""
        return (Phase("student", self.student, self.draw, self.loss),)

    def after_step(self, step: int) -> None:
        """The target follows at the current rate."""
        if self.target is not None:
            follow(self.target, self.student, self.schedule(step).rate)

    def contract(self, data: DataSpec) -> Contract:
        """Any time serves; noise again between calls."""
        method = "cd" if isinstance(self.step, TeacherStep) else "ct"
        return renoise_contract(method, self.student.path, data)
