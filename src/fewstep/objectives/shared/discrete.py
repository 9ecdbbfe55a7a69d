"""The discrete consistency step: two adjacent points of one trajectory must have one answer.

CD, CT and their discrete descendants differ in how they compute the earlier point, in the times of
the pair, and in weight and distance. The step itself is here, and what else several of them share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.core import Batch, UsageError, expand, same_dropout
from fewstep.models import AbstractDenoiser
from fewstep.objectives.shared.distances import Distance
from fewstep.objectives.shared.drop import ConditionDrop, guidance_of
from fewstep.paths import Event, Path, Time
from fewstep.solvers import Step, heun

PairWeight = Callable[[Time, Time], Tensor]
"""A function from times (t, r), with r < t, to weights ``(b,)``."""


def inverse_gap(t: Time, r: Time) -> Tensor:
    """Return 1 / (t - r)."""
    return 1 / (t - r)


class Draws(NamedTuple):
    """``t`` > ``r`` and ``dropped`` are ``(b,)``, and ``noise`` has the shape of the data."""

    t: Tensor
    r: Tensor
    noise: Tensor
    dropped: Tensor | None = None


@dataclass(frozen=True)
class Curriculum:
    r"""ECT's earlier time, which comes nearer from stage to stage (Geng et al. 2024).

    $$r = \max(least,\ t (1 - n(t) (1 - ratio))),\quad n(t) = 1 + k\,\mathrm{sigmoid}(-b t),\quad
    ratio = \min(1 - q^{-(stage + 1)},\ limit).$$

    Args:
        every: length of a stage, in steps.
        q: factor, above 1, by which the gap shrinks from stage to stage.
        k: pairs near the data are wider by a factor of up to 1 + k / 2; 0 makes r / t constant.
        b: how fast this factor falls with the time, above 0.
        limit: largest ratio, in (0, 1].
        least: smallest earlier time, 0 or more.
        start: steps of an earlier training, which this one continues.
    """

    every: int
    q: float = 2.0
    k: float = 8.0
    b: float = 1.0
    limit: float = 1.0
    least: float = 0.0
    start: int = 0

    def __post_init__(self) -> None:
        counts = self.every >= 1 and self.start >= 0 and self.least >= 0
        if not (counts and self.q > 1 and self.k >= 0 and self.b > 0 and 0 < self.limit <= 1):
            raise UsageError(
                "Curriculum: expected every >= 1, q > 1, k >= 0, b > 0, 0 < limit <= 1, "
                f"least >= 0 and start >= 0, got {self}"
            )

    def stage(self, step: int) -> int:
        """Count how often the gap has shrunk."""
        return (self.start + step) // self.every

    def ratio(self, step: int) -> float:
        """Return r / t far from the data."""
        return min(1 - self.q ** -(self.stage(step) + 1), self.limit)

    def earlier(self, t: Time, ratio: float) -> Time:
        """Return the earlier time ``r`` at a ratio."""
        wider = 1 + self.k * (-self.b * t).sigmoid()
        return (t * (1 - wider * (1 - ratio))).clamp(min=self.least)

    def __call__(self, t: Time, step: int) -> Time:
        """Return the earlier time ``r`` at a step."""
        return self.earlier(t, self.ratio(step))


class TeacherStep(nn.Module):
    """Consistency distillation: one ODE step of a frozen teacher leads from x_t to x_r."""

    def __init__(self, teacher: AbstractDenoiser, solver: Step = heun) -> None:
        super().__init__()
        self.teacher = teacher.eval().requires_grad_(False)
        self.solver = solver

    def forward(self, x_t: Event, batch: Batch, noise: Event, t: Time, r: Time) -> Event:
        """Compute x_r, without gradient."""
        return self.solver(self.teacher, x_t, t, r, batch.cond)


@dataclass(frozen=True)
class SameNoise:
    """Consistency training: x_r has the clean sample and the noise of x_t.

    This is a DDIM step with the clean sample in place of a denoiser's answer (Euler's on VE and
    linear paths). Its expectation given x_t is that step with the exact denoiser.
    """

    path: Path

    def __call__(self, x_t: Event, batch: Batch, noise: Event, t: Time, r: Time) -> Event:
        """Compute x_r."""
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
    *,
    taught: Batch | None = None,
) -> Tensor:
    """Compute w(t, r) d(f(x_t, t), sg f-(x_r, r)), ``(b,)``, with one dropout mask for both.

    ``taught`` is the batch with the conditions of ``step``, where these are not the student's.
    """
    x_t = student.path.perturb(batch.x0, noise, t)
    with torch.no_grad():
        x_r = step(x_t, batch if taught is None else taught, noise, t, r)
    s = torch.full_like(t, student.path.t_min)
    # The target first: afterwards, memory holds what the student's backward pass needs.
    with torch.no_grad(), same_dropout(x_t):
        # At the boundary f is the identity, whatever c_skip is there.
        answer = target(x_r, r, s, batch.cond)
        answer = torch.where(expand(r > s, x_r), answer, x_r)
    online = student(x_t, t, s, batch.cond)
    return weight(t, r).to(x_t.dtype) * distance(online, answer, batch.mask)


def check_pair(student: AbstractDenoiser, step: TeacherStep | SameNoise) -> None:
    """Check that the student can be a consistency function, and that the step is on its path.

    Raises:
        UsageError: the student has two times, or the earlier point is on another path.
    """
    if student.two_time:
        raise UsageError("a consistency model goes to t_min only; take a one-time network")
    path = step.teacher.path if isinstance(step, TeacherStep) else step.path
    if path != student.path:
        raise UsageError(
            f"the earlier point lives on {path}, the student on {student.path}; "
            "read the teacher on the student's path with teacher.on(student.path)"
        )


def frozen_parts(step: TeacherStep | SameNoise, distance: Distance) -> tuple[str, ...]:
    """Name what training never changes, in an objective that has this step and distance."""
    teacher = ("step.teacher",) if isinstance(step, TeacherStep) else ()
    return (*teacher, *(("distance",) if isinstance(distance, nn.Module) else ()))


def renoise_contract(
    method: str, path: Path, data: DataSpec, drop: ConditionDrop | None
) -> Contract:
    """Write the contract of a consistency function: any times, fresh noise between calls."""
    sampling = Sampling(
        start=Start(t=path.t_max, std=path.start_std()),
        kind="renoise",
        times={1: (path.t_max,)},
        any_times=True,
        guidance=guidance_of(drop, data),
    )
    return Contract(method=method, data=data, sampling=sampling)
