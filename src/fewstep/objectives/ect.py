r"""Easy consistency tuning, ECT (Geng, Pokle, Luo, Lin & Kolter 2024).

A diffusion model is the consistency model whose earlier time is 0. Tuning starts from one and
brings the earlier time r(t) nearer to t from stage to stage:

$$L = E[ w(t, r)\, d( f_\theta(x_t, t),\ \mathrm{sg} f_\theta(x_r, r) ) ],$$

where $x_t$ and $x_r$ have the same noise and dropout, d is the norm of the whole sample's
difference, and w is 1/(t - r) on CIFAR-10 and $1/t^2 + 1/\sigma_{data}^2$ on ImageNet-64. Where
r = 0 the target is the clean sample. There is no target network. The paper's adaptive weight is a
norm instead of its square.

The student keeps EDM's plain scalings, which are the identity at 0. The official code evaluates it
under scalings that are the identity at 0.003, and so does the model that is delivered here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fewstep.contract import Contract, DataSpec
from fewstep.core import Batch, Rng, UsageError
from fewstep.models import EDM, AbstractDenoiser, ConsistencyBoundary, Denoiser
from fewstep.objectives.base import Loss, Objective, Phase
from fewstep.objectives.shared.discrete import (
    Curriculum,
    Draws,
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
from fewstep.times import LogNormal, Times, law_on

__all__ = ["Curriculum", "Draws", "EasyConsistency", "SameNoise", "TeacherStep"]

TIMES = LogNormal(-1.1, 2.0)
NORM = PseudoHuber(0.0)


class EasyConsistency(Objective):
    """ECT; with a :class:`TeacherStep`, distillation by the same curriculum.

    Args:
        student: a diffusion model on a path that reaches clean data.
        step: computes the earlier point of a pair; :class:`SameNoise` in the paper.
        curriculum: the earlier time, by time and step. A new stage restarts nothing.
        times: the law of t.
        weight: w(t, r).
        distance: d.
        boundary: the noise level at which the delivered model is the identity, below ``t_max``; 0
            delivers the student as trained.
        drop: label dropping.
    """

    def __init__(
        self,
        student: AbstractDenoiser,
        step: TeacherStep | SameNoise,
        *,
        curriculum: Curriculum,
        times: Times = TIMES,
        weight: PairWeight = inverse_gap,
        distance: Distance = NORM,
        boundary: float = 0.003,
        drop: ConditionDrop | None = None,
    ) -> None:
        super().__init__()
        check_pair(student, step)
        path = student.path
        if float(path.coefficients(torch.tensor([path.t_min], dtype=torch.float64)).sigma) > 0:
            raise UsageError(
                f"ECT's earlier times go down to clean data, and {path} stops before it; take a "
                "path whose t_min is 0, e.g. VarianceExploding(0.0, 80.0)"
            )
        plain = isinstance(student, Denoiser) and isinstance(student.preconditioning, EDM)
        if boundary != 0 and not (plain and 0 < boundary < path.t_max):
            raise UsageError(
                "the boundary is a noise level to which the identity of EDM's scalings is moved; "
                f"got boundary={boundary} with a {type(student).__name__} on {path}; pass "
                "boundary=0 to deliver the student as trained"
            )
        self.student = student
        self.step = step
        self.frozen = frozen_parts(step, distance)
        self.curriculum = curriculum
        self.times = law_on(student.path, times)
        self.weight = weight
        self.distance = distance
        self.boundary = boundary
        self.drop = drop

    def draw(self, batch: Batch, step: int, rng: Rng) -> Draws:
        """Draw times, noise and the samples whose conditions are dropped; add the earlier times."""
        t = self.times.draw(self.student.path, len(batch), rng)
        t, noise, dropped = draw_noised(batch, t, self.drop, rng)
        return Draws(t, self.curriculum(t, step), noise, dropped)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Average the weighted distance over the batch."""
        cond = conditions(batch.cond, self.drop, draws.dropped)
        batch = Batch(batch.x0, cond, batch.mask, batch.aux)
        each = consistency_loss(
            self.student, self.student, self.step, batch, *draws[:3], self.weight, self.distance
        )
        return Loss({"consistency": each.mean()})

    def phases(self) -> Sequence[Phase]:
        """The student trains at every step."""
        return (Phase("student", self.student, self.draw, self.loss),)

    def deliver(self, student: AbstractDenoiser) -> AbstractDenoiser:
        """Return the student's network under the shifted scalings."""
        if self.boundary == 0:
            return student
        assert isinstance(student, Denoiser)
        plain = student.preconditioning
        assert isinstance(plain, EDM)
        path = replace(plain.path, t_min=self.boundary)
        shifted = ConsistencyBoundary(
            sigma_data=plain.sigma_data, time_scale=plain.time_scale, path=path
        )
        return Denoiser(student.net, shifted)

    def contract(self, data: DataSpec) -> Contract:
        """Users may generate at any times, with fresh noise between calls."""
        return renoise_contract("ect", self.student.path, data, self.drop)
