r"""MeanFlow (Geng, Deng, Bai, Kolter & He 2025): a network of average velocities.

The average velocity from $t$ to an earlier $r$ obeys $(t - r)\, u(x_t, t, r) = x_t - x_r$.
Differentiated along the trajectory that is the MeanFlow identity, whose right side is the target:

$$u = v - (t - r) \frac{du}{dt}, \qquad \frac{du}{dt} = \nabla_x u \cdot v + \partial_t u,$$

$$L = E[ w\, \|u_\theta - \mathrm{sg}(v - (t - r)\, \tfrac{du_\theta}{dt})\|^2 ], \qquad
w = \mathrm{sg} \frac{1}{(\|\cdot\|^2 + c)^p}.$$

$v$ is the sample's own velocity, noise - x0 on the linear path, or a teacher's. A denoiser's answer
is an average velocity where constant answers are straight lines: $u = (x - D)/t$ on the linear path
and on the variance-exploding one. The squared norm is a sum over the sample, as in the paper, so c
is in units of the whole sample.

Guidance is a part of the target, and users need none when they generate: $v$ becomes
$\omega v + (1 - \omega - \kappa) u(x, t, t | \varnothing) + \kappa u(x, t, t | c)$, of scale
$\omega / (1 - \kappa)$. Samples whose label is dropped keep the plain $v$.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.core import Batch, Rng, UsageError, expand
from fewstep.derivatives import Derivative, jvp
from fewstep.models import AbstractDenoiser
from fewstep.objectives.base import Capabilities, Loss, Objective, Phase
from fewstep.objectives.shared.copies import on_path_of
from fewstep.objectives.shared.drop import ConditionDrop, conditions, draw_noised, guidance_of
from fewstep.paths import Event, Linear, VarianceExploding
from fewstep.times import Law, TwoTimes


@dataclass(frozen=True)
class AdaptiveWeight:
    """The weight (error + c)^-p of a sample's squared norm.

    ImageNet has p = 1 and c = 0.01, CIFAR-10 0.75 and 0.001; c is in units of the squared norm of a
    whole sample. In few dimensions this norm varies, and the weight moves the mean that is the
    target towards the mode: for points in the plane, take ``torch.ones_like``.
    """

    power: float = 1.0
    c: float = 0.01

    def __call__(self, error: Tensor) -> Tensor:
        """Return the weights ``(b,)`` of errors ``(b,)``."""
        return (error + self.c) ** -self.power


@dataclass(frozen=True)
class TrainedGuidance:
    """Omega and kappa where ``t_start <= t <= t_end``; elsewhere the velocity stays plain.

    Args:
        omega: share of the sample's own velocity, above 0.
        kappa: share of the student's velocity with the label, in [0, 1).
        t_start, t_end: the guided times, in the path's unit.
    """

    omega: float = 1.0
    kappa: float = 0.5
    t_start: float = 0.0
    t_end: float = 1.0

    def __post_init__(self) -> None:
        if not (self.omega > 0 and 0 <= self.kappa < 1 and self.t_start < self.t_end):
            raise UsageError(f"expected omega > 0, 0 <= kappa < 1, t_start < t_end, got {self}")


class Draws(NamedTuple):
    """``r`` <= ``t``, ``ramp`` and ``dropped`` are ``(b,)``; ``noise`` has the data's shape."""

    t: Tensor
    r: Tensor
    noise: Tensor
    ramp: Tensor
    dropped: Tensor | None = None


class MeanFlow(Objective):
    """MeanFlow from scratch, or from a teacher.

    Args:
        student: a two-time denoiser on a linear or variance-exploding path.
        teacher: gives the velocity, with guidance as ``Guided(teacher)``. None takes the data's.
        times: the law of (t, r), or a function from ``(b, rng)`` to both, each ``(b,)``.
        weight: of a sample, as a function of its squared error, ``(b,)`` to ``(b,)``.
        drop: label dropping.
        guidance: of the target; it needs ``drop``, and no teacher.
        warmup: steps in which the weight of du/dt grows from 0 to 1 (FastGen, from a teacher).
        derivative: computes du/dt.
    """

    capabilities = Capabilities(forward_mode=True)

    def __init__(
        self,
        student: AbstractDenoiser,
        teacher: AbstractDenoiser | None = None,
        *,
        times: TwoTimes | Callable[[int, torch.Generator], tuple[Tensor, Tensor]],
        weight: Callable[[Tensor], Tensor],
        drop: ConditionDrop | None = None,
        guidance: TrainedGuidance | None = None,
        warmup: int = 0,
        derivative: Derivative = jvp,
    ) -> None:
        super().__init__()
        if not student.two_time:
            raise UsageError("MeanFlow goes from any time to any other; take a two-time network")
        if not isinstance(student.path, Linear | VarianceExploding):
            raise UsageError(
                f"MeanFlow averages velocities where constant answers are straight lines, got "
                f"{type(student.path).__name__}; read the student there with .on(Linear())"
            )
        if guidance is not None and (drop is None or teacher is not None):
            raise UsageError(
                "guidance is trained in from the student's own answer without a label: give drop, "
                "and no teacher (a teacher is guided as Guided(teacher, null, scale))"
            )
        if isinstance(times, Law):
            raise UsageError(f"MeanFlow needs a law of two times, got {times}; give TwoTimes(...)")
        if isinstance(times, TwoTimes):
            times.check(student.path)
        self.student = student
        self.teacher = None if teacher is None else on_path_of(student, teacher)
        self.frozen = () if teacher is None else ("teacher",)
        self.times, self.weight, self.derivative = times, weight, derivative
        self.drop, self.guidance = drop, guidance
        self.warmup = warmup

    def draw(self, batch: Batch, step: int, rng: Rng) -> Draws:
        """Draw two times, noise and the samples to drop; set the weight of the derivative."""
        t, r = self.times(len(batch), rng)
        _, noise, dropped = draw_noised(batch, t, self.drop, rng)
        ramp = torch.full_like(t, min(1.0, step / self.warmup) if self.warmup else 1.0)
        return Draws(t, r, noise, ramp, dropped)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Compute the weighted squared norm; ``error`` logs it without its weight."""
        path, t, r = self.student.path, draws.t, draws.r
        cond = conditions(batch.cond, self.drop, draws.dropped)
        x_t = path.perturb(batch.x0, draws.noise, t)
        with torch.no_grad():
            v = self.velocity(x_t, batch, draws)

        def u(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
            return path.velocity(x, self.student(x, t, r, cond), t)

        tangents = v, torch.ones_like(t), torch.zeros_like(r)
        mean_velocity, du_dt = self.derivative(u, (x_t, t, r), tangents)
        square = (mean_velocity - (v - expand(draws.ramp * (t - r), v) * du_dt)) ** 2
        error = (square if batch.mask is None else square * batch.mask).flatten(1).sum(1)
        weighted = self.weight(error.detach()) * error
        return Loss({"meanflow": weighted.mean()}, {"error": error.detach().mean()})

    def velocity(self, x_t: Event, batch: Batch, draws: Draws) -> Event:
        """Return the teacher's velocity, or the sample's own, guided where asked."""
        path, t = self.student.path, draws.t
        if self.teacher is not None:
            cond = conditions(batch.cond, self.drop, draws.dropped)
            return path.velocity(x_t, self.teacher(x_t, t, None, cond), t)
        _, _, d_alpha, d_sigma = path.coefficients(t)
        v = expand(d_alpha, x_t) * batch.x0 + expand(d_sigma, x_t) * draws.noise
        if self.guidance is None or self.drop is None or draws.dropped is None:
            return v
        omega, kappa, t_start, t_end = vars(self.guidance).values()
        null = self.drop.apply(batch.cond, torch.ones_like(draws.dropped))
        guided = omega * v
        for share, cond in ((1 - omega - kappa, null), (kappa, batch.cond)):
            if share != 0:
                guided += share * path.velocity(x_t, self.student(x_t, t, None, cond), t)
        inside = (t >= t_start) & (t <= t_end) & ~draws.dropped
        return torch.where(expand(inside, v), guided, v)

    def phases(self) -> Sequence[Phase]:
        """The student trains at every step."""
        return (Phase("student", self.student, self.draw, self.loss),)

    def contract(self, data: DataSpec) -> Contract:
        """Users may jump between any two times."""
        path = self.student.path
        sampling = Sampling(
            start=Start(t=path.t_max, std=path.start_std()),
            kind="deterministic",
            times={1: (path.t_max,)},
            any_times=True,
            grid="uniform" if isinstance(path, Linear) else "karras",
            guidance=None if self.guidance else guidance_of(self.drop, data),
        )
        return Contract(method="meanflow", data=data, sampling=sampling)
