r"""Consistency models (Song, Dhariwal, Chen & Sutskever 2023, algorithms 2 and 3).

A descending grid is $t_0 = t_{max} > ... > t_{N-1} = t_{min}$. In an interval $i$ the student is
evaluated at $t = t_i$ and the target at $r = t_{i+1}$ (the indices of the paper run the other way):

$$L = E[ w(t, r)\, d( f_\theta(x_t, t),\ \mathrm{sg} f_{\theta^-}(x_r, r) ) ]$$

Distillation (CD, algorithm 2) takes $x_r$ from one ODE step of a teacher, and training (CT,
algorithm 3) from the same noise.
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
from fewstep.objectives.shared.copies import follow, frozen_copy
from fewstep.objectives.shared.discrete import (
    Draws,
    PairWeight,
    SameNoise,
    TeacherStep,
    check_pair,
    consistency_loss,
    frozen_parts,
    renoise_contract,
)
from fewstep.objectives.shared.distances import Distance, l2
from fewstep.objectives.shared.drop import ConditionDrop, conditions, draw_noised
from fewstep.times import UniformIndex, karras

__all__ = ["Consistency", "Draws", "Fixed", "Progressive", "SameNoise", "Scales", "TeacherStep"]


UNIFORM_INDEX = UniformIndex()


class Scales(NamedTuple):
    """The number of grid points N at a step, and the averaging rate mu of the target."""

    points: int
    rate: float


Schedule = Callable[[int], Scales]


@dataclass(frozen=True)
class Fixed:
    """The same N and mu at every step.

    Args:
        points: N, at least 2.
        rate: mu in [0, 1); at 0 the target is the student itself.
    """

    points: int = 18
    rate: float = 0.0

    def __call__(self, step: int) -> Scales:
        """Return N and mu."""
        return Scales(self.points, self.rate)


@dataclass(frozen=True)
class Progressive:
    """N grows from ``start`` to ``end`` with the square root of the step (Song et al., app. C).

    The adaptive rate is exp(start ln(rate) / q) with q = N - 1 intervals. The paper writes N in the
    denominator; the code, which gave the published numbers, has q, and we follow it: at step 0 with
    start 2 and rate 0.9 it gives 0.81 where the paper gives 0.9.

    Args:
        start, end: s0 and s1, the first and the last number of intervals.
        steps: length K of the whole training, in steps.
        rate: mu_0, in [0, 1).
        adaptive: the rate follows N; otherwise it stays at ``rate``.
    """

    start: int
    end: int
    steps: int
    rate: float = 0.9
    adaptive: bool = True

    def __call__(self, step: int) -> Scales:
        """Return N and mu at a step."""
        low, high = self.start**2, (self.end + 1) ** 2
        q = max(1, math.ceil(math.sqrt(step / self.steps * (high - low) + low) - 1))
        rate = math.exp(self.start * math.log(self.rate) / q) if self.adaptive else self.rate
        return Scales(q + 1, rate)


class Consistency(Objective):
    """CD with a :class:`TeacherStep`, CT with :class:`SameNoise`.

    Args:
        student: a denoiser with ``f(x, t_min) = x``, as :class:`fewstep.models.ConsistencyBoundary`
            makes one.
        step: computes the earlier point of a pair.
        schedule: N and mu by step. If mu is 0 at step 0 there is no target network: the target is
            the student, without gradient.
        weight: w(t, r); published runs use 1.
        distance: d; published runs use LPIPS, or l2 and l1.
        index: the law of the interval of the grid.
        grid: N to descending times; by default the Karras grid of the student's path.
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
        drop: ConditionDrop | None = None,
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
        """Return times ``(t, r)``, float64, of intervals, int64 ``(b,)`` in [0, points - 2]."""
        grid = self.grid(points).to(index.device, widest(index.device))
        return grid[index], grid[index + 1]

    def draw(self, batch: Batch, step: int, rng: Rng) -> Draws:
        """Draw noise and an interval of the current grid for each sample."""
        points = self.schedule(step).points
        index = self.index(len(batch), self.grid(points), rng)
        t, r = self.pair(index, points)
        return Draws(t, r, *draw_noised(batch, t, self.drop, rng)[1:])

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Average the weighted distance over the batch."""
        cond = conditions(batch.cond, self.drop, draws.dropped)
        batch = Batch(batch.x0, cond, batch.mask, batch.aux)
        target = self.student if self.target is None else self.target
        each = consistency_loss(
            self.student, target, self.step, batch, *draws[:3], self.weight, self.distance
        )
        return Loss({"consistency": each.mean()})

    def phases(self) -> Sequence[Phase]:
        """The student trains at every step."""
        return (Phase("student", self.student, self.draw, self.loss),)

    def after_step(self, step: int) -> None:
        """Move the target towards the student at the current rate."""
        if self.target is not None:
            follow(self.target, self.student, self.schedule(step).rate)

    def contract(self, data: DataSpec) -> Contract:
        """Users may generate at any times, with fresh noise between calls."""
        method = "cd" if isinstance(self.step, TeacherStep) else "ct"
        return renoise_contract(method, self.student.path, data, self.drop)
