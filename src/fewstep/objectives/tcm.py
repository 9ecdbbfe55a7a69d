r"""Truncated consistency models, TCM (Lee, Xu, Geffner, Fanti, Kreis, Vahdat & Nie 2025).

A consistency model $f_0$ (the first stage, here ECT's or any other) stays for the times below t';
the second stage trains a student for the times from t' on only. With f the first below t' and the
student above, the loss is the discrete consistency loss of f for $t \ge t'$. Where r < t' the
target is frozen, so samples at t = t' tie the student to the first stage:

$$L = \mathrm{mean}_{t > t'}[ w(t, r)\, d(f_\theta(x_t, t),\ \mathrm{sg} f(x_r, r)) ]
  + \lambda_b\, \mathrm{mean}_{t = t'}[ w(t', r)\, d(f_\theta(x_{t'}, t'),\ f_0(x_r, r)) ].$$

The delivered model is f. Official runs draw log t from a truncated Student's t and replace 25 % of
the times by t'; w = 1/(t - r) with d the norm on CIFAR-10, w = $1/t^2 + 1/\sigma_{data}^2$ with
pseudo-Huber 0.06 on ImageNet-64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.contract import Contract, DataSpec
from fewstep.core import Batch, Rng, UsageError
from fewstep.models import AbstractDenoiser, Switched
from fewstep.objectives.base import Capabilities, Loss, Objective, Phase
from fewstep.objectives.shared.copies import frozen_copy
from fewstep.objectives.shared.discrete import (
    Curriculum,
    PairWeight,
    SameNoise,
    TeacherStep,
    check_pair,
    consistency_loss,
    frozen_parts,
    inverse_gap,
    renoise_contract,
)
from fewstep.objectives.shared.distances import Distance, PseudoHuber
from fewstep.objectives.shared.drop import ConditionDrop, conditions, draw_noised
from fewstep.paths import Path
from fewstep.times import Times, TruncatedLogStudent, law_on

__all__ = ["Curriculum", "Draws", "SameNoise", "TeacherStep", "TruncatedConsistency"]

NEARLY_THE_NORM = PseudoHuber(1e-8)


class Draws(NamedTuple):
    """``boundary`` says where t = t'; all are ``(b,)`` but ``noise``, which is as the data."""

    t: Tensor
    r: Tensor
    noise: Tensor
    boundary: Tensor
    dropped: Tensor | None = None


class TruncatedConsistency(Objective):
    """TCM's second stage.

    Args:
        student: a copy of ``first``, which trains for the times from ``at`` on.
        first: the first stage's consistency model, on the same path.
        step: computes the earlier point of a pair; :class:`SameNoise` in the paper.
        curriculum: the earlier time, by time and step. Official runs limit the ratio to 0.999
            (0.9961 on ImageNet-64), keep r at least 1e-6 and start where the first stage stopped.
        at: t', a time of the path.
        times: the law of t, within [at, t_max]; by default
            :class:`fewstep.times.TruncatedLogStudent`.
        share: of the samples that sit on the boundary t = t', in (0, 1).
        boundary_weight: weight of their term, above 0.
        weight: w(t, r).
        distance: d.
        drop: label dropping.
    """

    def __init__(
        self,
        student: AbstractDenoiser,
        first: AbstractDenoiser,
        step: TeacherStep | SameNoise,
        *,
        curriculum: Curriculum,
        at: float = 1.0,
        times: Times | None = None,
        share: float = 0.25,
        boundary_weight: float = 0.1,
        weight: PairWeight = inverse_gap,
        distance: Distance = NEARLY_THE_NORM,
        drop: ConditionDrop | None = None,
    ) -> None:
        super().__init__()
        check_pair(student, step)
        path = student.path
        if first is student:
            raise UsageError("the first stage stays as it is; take a copy of it for the student")
        if not 0 < share < 1 or boundary_weight <= 0:
            raise UsageError(
                "without samples at t' nothing ties the student to the first stage: expected "
                f"0 < share < 1 and boundary_weight > 0, got {share} and {boundary_weight}"
            )
        Switched(first, student, at)  # refuses what does not fit together
        self.student = student
        self.first = first.requires_grad_(False)
        # What is delivered, in a tuple so that it is no submodule: ``first`` may get sharded, and
        # its mode follows the student's.
        self.kept = (frozen_copy(first).eval(),)
        self.step = step
        self.frozen = ("first", *frozen_parts(step, distance))
        self.curriculum = curriculum
        self.at = at
        self.times = law_on(path, _between(path, at) if times is None else times)
        self.share = share
        self.capabilities = Capabilities(batch_least=math.ceil(1 / share))
        self.boundary_weight = boundary_weight
        self.weight = weight
        self.distance = distance
        self.drop = drop

    def draw(self, batch: Batch, step: int, rng: Rng) -> Draws:
        """Draw times, a share of which is t', earlier times, noise and the samples to drop."""
        b = len(batch)
        count = int(self.share * b)
        if count == 0:
            raise UsageError(
                f"a share of {self.share} of {b} samples is none at t'; take (micro)batches of at "
                f"least {self.capabilities.batch_least}"
            )
        boundary = torch.zeros(b, dtype=torch.bool, device=rng.device)
        boundary[torch.randperm(b, generator=rng, device=rng.device)[:count]] = True
        t = self.times.draw(self.student.path, b, rng).masked_fill(boundary, self.at)
        t, noise, dropped = draw_noised(batch, t, self.drop, rng)
        return Draws(t, self.curriculum(t, step), noise, boundary, dropped)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Compute the two means."""
        cond = conditions(batch.cond, self.drop, draws.dropped)
        batch = Batch(batch.x0, cond, batch.mask, batch.aux)
        # In the student's mode: its dropout masks are the first stage's too, as in official code.
        f = Switched(self.first.train(self.student.training), self.student, self.at)
        each = consistency_loss(f, f, self.step, batch, *draws[:3], self.weight, self.distance)
        boundary, away = draws.boundary, ~draws.boundary
        return Loss(
            {
                "consistency": (each * away).sum() / away.sum().clamp(min=1),
                "boundary": self.boundary_weight
                * (each * boundary).sum()
                / boundary.sum().clamp(min=1),
            }
        )

    def phases(self) -> Sequence[Phase]:
        """The student trains at every step."""
        return (Phase("student", self.student, self.draw, self.loss),)

    def deliver(self, student: AbstractDenoiser) -> AbstractDenoiser:
        """Join the first stage, below t', and the student, from there on."""
        (first,) = self.kept
        return Switched(first.to(next(student.parameters()).device), student, self.at)

    def contract(self, data: DataSpec) -> Contract:
        """Users may generate at any times, with fresh noise between calls."""
        return renoise_contract("tcm", self.student.path, data, self.drop)


def _between(path: Path, at: float) -> TruncatedLogStudent:
    """Make the paper's law of noise levels between the time ``at`` and the end of the path."""
    low, high = path.ratio(torch.tensor([at, path.t_max], dtype=torch.float64)).tolist()
    return TruncatedLogStudent(low, high)
