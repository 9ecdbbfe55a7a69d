"""A method with a student, a teacher and a critic that learns: what such methods hold in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fewstep.contract import Contract, DataSpec
from fewstep.core import Batch, Rng
from fewstep.models import AbstractDenoiser, Judge
from fewstep.objectives.base import Loss, Objective, Phase, every
from fewstep.objectives.shared.adversarial import over_heads, softplus_discriminator
from fewstep.objectives.shared.collapse import lag, statistics
from fewstep.objectives.shared.copies import on_path_of
from fewstep.objectives.shared.gradients import matching_gradient, surrogate
from fewstep.objectives.shared.matching import FewSteps, Made, denoising_error


class Draws(NamedTuple):
    made: Made
    t: Tensor
    noise: Tensor


class Matching(Objective):
    """Distribution matching at one noise level; with a judge, its loss beside the critic's."""

    frozen = ("teacher",)

    def __init__(
        self,
        student: AbstractDenoiser,
        teacher: AbstractDenoiser,
        fake: AbstractDenoiser,
        judge: Judge | None = None,
    ) -> None:
        super().__init__()
        self.student, self.teacher = student, on_path_of(student, teacher)
        self.critic = nn.ModuleDict({"fake": fake} | ({"judge": judge} if judge else {}))
        self.generate = FewSteps((80.0,))

    def draw(self, batch: Batch, step: int, rng: Rng) -> Draws:
        t = 0.1 + torch.rand(len(batch), generator=rng, dtype=torch.float64)
        noise = torch.randn(batch.x0.shape, generator=rng)
        return Draws(self.generate.draw(batch, rng), t, noise)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        x = self.generate(self.student, batch, draws.made, batch.cond)
        x_t = self.student.path.perturb(x, draws.noise, draws.t)
        with torch.no_grad():
            asked = (x_t, draws.t, None, batch.cond)
            real, fake = self.teacher(*asked), self.critic["fake"](*asked)
        g = matching_gradient(x, real, fake)
        logs = {**statistics(x, batch), "lag": lag(x, real, fake)}
        return Loss({"matching": surrogate(x, g).mean()}, logs)

    def critic_loss(self, batch: Batch, draws: Draws) -> Loss:
        with torch.no_grad():
            x = self.generate(self.student, batch, draws.made, batch.cond)
        fake = self.critic["fake"]
        error = denoising_error(fake, x, draws.noise, draws.t, batch.cond, None)
        return Loss({"denoising": error.mean()})

    def judge_loss(self, batch: Batch, draws: Draws) -> Loss:
        with torch.no_grad():
            x = self.generate(self.student, batch, draws.made, batch.cond)
        fake, judge = self.critic["fake"], self.critic["judge"]
        logits = [judge(fake, clean, draws.t, batch.cond) for clean in (batch.x0, x)]
        return Loss({"judge": over_heads(softplus_discriminator, *logits)})

    def phases(self) -> Sequence[Phase]:
        more = (self.judge_loss,) if "judge" in self.critic else ()
        return (
            Phase("student", self.student, self.draw, self.loss, every(2)),
            Phase("critic", self.critic, self.draw, self.critic_loss, more=more),
        )

    def contract(self, data: DataSpec) -> Contract:
        return self.generate.contract("matching", self.student.path, data)
