r"""Denoising score matching: $E[ w(t) \|D(x_t, t) - x_0\|^2 ]$ (Karras et al. 2022, eq. 2).

This is EDM's loss and, with another weight and another law of times, every earlier diffusion loss:

| model | path | times | weight |
| --- | --- | --- | --- |
| EDM | VE | log-normal(-1.2, 1.2) | snr + 1/sigma_data^2 |
| VE (Song et al. 2021) | VE | log-uniform | snr |
| DDPM, VP (eps) | VP | uniform | snr |
| v-prediction | VP | uniform | snr + 1 |
| truncated (progressive distillation) | VP | uniform | max(snr, 1) |
| min-SNR | VP | uniform | min(snr, 5) |

EDM2 (Karras et al. 2024, eq. 21) trains beside the model the logarithm u(sigma) of the expected
loss, and minimises $E[ e^{-u} w \|D - x_0\|^2 + u ]$: every noise level then counts alike, however
large its loss. At the optimum $e^u$ is the expected weighted error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.core import Batch, Rng
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
from fewstep.objectives.shared.weights import SnrWeight
from fewstep.times import Times, law_on


class Denoising(Objective):
    """A diffusion model.

    Args:
        student: the denoiser.
        times: the law of the training times.
        weight: w as a function of the signal-to-noise ratio, ``(b,)`` to ``(b,)``.
        drop: label dropping, which also makes guidance possible.
        grid: rule of the times at which users generate by default.
        uncertainty: EDM2's u, a module from ln(sigma / alpha) / 4 ``(b,)`` to ``(b,)``.
    """

    def __init__(
        self,
        student: AbstractDenoiser,
        *,
        times: Times,
        weight: SnrWeight,
        drop: ConditionDrop | None = None,
        grid: Literal["karras", "uniform"] = "karras",
        uncertainty: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.times = law_on(student.path, times)
        self.weight = weight
        self.drop = drop
        self.grid: Literal["karras", "uniform"] = grid
        self.uncertainty = uncertainty

    def draw(self, batch: Batch, step: int, rng: Rng) -> Draws:
        """Draw times, noise and the samples whose conditions are dropped."""
        t = self.times.draw(self.student.path, len(batch), rng)
        return draw_noised(batch, t, self.drop, rng)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Weigh the squared error, a mean over the sample where EDM's code has a sum."""
        cond = conditions(batch.cond, self.drop, draws.dropped)
        path = self.student.path
        x_t = path.perturb(batch.x0, draws.noise, draws.t)
        each = l2(self.student(x_t, draws.t, None, cond), batch.x0, batch.mask)
        weighted = self.weight(path.snr(draws.t)).to(each.dtype) * each
        if self.uncertainty is None:
            return Loss({"denoising": weighted.mean()})
        u = self.uncertainty((path.ratio(draws.t).log() / 4).to(each.dtype))
        logs = {"weighted_error": weighted.detach().mean()}
        return Loss({"denoising": (weighted / u.exp() + u).mean()}, logs)

    def phases(self) -> Sequence[Phase]:
        """The model trains at every step, and its uncertainty with it."""
        module = self.student
        if self.uncertainty is not None:
            module = nn.ModuleList([self.student, self.uncertainty])
        return (Phase("student", module, self.draw, self.loss),)

    def contract(self, data: DataSpec) -> Contract:
        """Users may generate by Heun's method on any grid, guided if labels were dropped."""
        path = self.student.path
        sampling = Sampling(
            start=Start(t=path.t_max, std=path.start_std()),
            kind="ode",
            any_times=True,
            grid=self.grid,
            guidance=guidance_of(self.drop, data),
        )
        return Contract(method="edm", data=data, sampling=sampling)
