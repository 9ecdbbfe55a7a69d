"""The discrete consistency step: two adjacent points of one trajectory must agree.

CD, CT and their discrete descendants differ in how the earlier point arises, in the times of the
pair, and in weight and distance; the step itself is here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.core import Batch, expand, same_dropout
from fewstep.models import AbstractDenoiser
from fewstep.objectives.terms import Distance
from fewstep.paths import Event, Path, Time
from fewstep.solvers import Step, heun

PairWeight = Callable[[Time, Time], Tensor]
"""(t, r) -> weight ``(b,)``, with r < t."""


class TeacherStep(nn.Module):
    """x_r by one ODE step of a frozen teacher from x_t: consistency distillation."""

    def __init__(self, teacher: AbstractDenoiser, solver: Step = heun) -> None:
        super().__init__()
        self.teacher = teacher.eval().requires_grad_(False)
        self.solver = solver

    def forward(self, x_t: Event, batch: Batch, noise: Event, t: Time, r: Time) -> Event:
        """x_r, without gradient."""
        return self.solver(self.teacher, x_t, t, r, batch.cond)


@dataclass(frozen=True)
class SameNoise:
    """x_r from the same clean sample and noise: consistency training.

    It is a DDIM step with the clean sample for a denoiser (Euler's on VE and linear paths); its
    expectation given x_t is that step with the exact denoiser.
    """

    path: Path

    def __call__(self, x_t: Event, batch: Batch, noise: Event, t: Time, r: Time) -> Event:
        """x_r."""
        return self.path.perturb(batch.x0, noise, r)


def consistency_loss(
    student: AbstractDenoiser,
    target: AbstractDenoiser,
    step: TeacherStep | SameNoise,
    batch: Batch,
    t: Time,
    r: Time,
    noise: Event,
    weight: PairWeight,
    distance: Distance,
) -> Tensor:
    """w(t, r) d(f(x_t, t), sg f-(x_r, r)) of each sample, ``(b,)``; one dropout mask for both."""
    x_t = student.path.perturb(batch.x0, noise, t)
    with torch.no_grad():
        x_r = step(x_t, batch, noise, t, r)
    s = torch.full_like(t, student.path.t_min)
    # The target first: afterwards, memory holds what the student's backward pass needs.
    with torch.no_grad(), same_dropout(x_t):
        # At the boundary f is the identity, whatever c_skip is there.
        answer = target(x_r, r, s, batch.cond)
        answer = torch.where(expand(r > s, x_r), answer, x_r)
    online = student(x_t, t, s, batch.cond)
    return weight(t, r).to(x_t.dtype) * distance(online, answer, batch.mask)
