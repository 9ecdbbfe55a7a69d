r"""Flow matching (Lipman et al. 2023, eq. 9): $E[w(t) \|v_\theta(x_t, t) - \dot x_t\|^2]$.

The velocity of one trajectory is $\dot x_t = \dot\alpha x_0 + \dot\sigma \epsilon$; on the linear
path it is noise - x0. Time runs from data to noise, the other way round than in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.core import Batch, Rng, expand
from fewstep.models import AbstractDenoiser
from fewstep.objectives.base import Loss, Objective, Phase
from fewstep.objectives.shared.distances import l2
from fewstep.objectives.shared.drop import (
    ConditionDrop,
    Draws,
    conditions,
    draw_noised,
    guidance_of,
)
from fewstep.times import Times, law_on


class FlowMatching(Objective):
    """A flow model: any denoiser, compared as a velocity.

    Args:
        student: the denoiser, on a path with t > 0 at all times of the law.
        times: the law of the training times.
        weight: w(t), ``(b,)`` to ``(b,)``; Esser et al. (2024) take 1 with the logit-normal law.
        drop: label dropping, which also makes guidance possible.
    """

    def __init__(
        self,
        student: AbstractDenoiser,
        *,
        times: Times,
        weight: Callable[[Tensor], Tensor] = torch.ones_like,
        drop: ConditionDrop | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.times = law_on(student.path, times)
        self.weight = weight
        self.drop = drop

    def draw(self, batch: Batch, step: int, rng: Rng) -> Draws:
        """Draw times, noise and the samples whose conditions are dropped."""
        t = self.times.draw(self.student.path, len(batch), rng)
        return draw_noised(batch, t, self.drop, rng)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Compute the weighted mean squared error of the velocity."""
        cond = conditions(batch.cond, self.drop, draws.dropped)
        path = self.student.path
        x_t = path.perturb(batch.x0, draws.noise, draws.t)
        _, _, d_alpha, d_sigma = path.coefficients(draws.t)
        velocity = expand(d_alpha, x_t) * batch.x0 + expand(d_sigma, x_t) * draws.noise
        predicted = path.velocity(x_t, self.student(x_t, draws.t, None, cond), draws.t)
        each = l2(predicted, velocity, batch.mask)
        return Loss({"flow": (self.weight(draws.t).to(each.dtype) * each).mean()})

    def phases(self) -> Sequence[Phase]:
        """The model trains at every step."""
        return (Phase("student", self.student, self.draw, self.loss),)

    def contract(self, data: DataSpec) -> Contract:
        """Users may generate by Heun's method on any grid, guided if labels were dropped."""
        path = self.student.path
        sampling = Sampling(
            start=Start(t=path.t_max, std=path.start_std()),
            kind="ode",
            any_times=True,
            grid="uniform",
            guidance=guidance_of(self.drop, data),
        )
        return Contract(method="flow_matching", data=data, sampling=sampling)
