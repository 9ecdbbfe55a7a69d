r"""Continuous-time consistency models (Song et al. 2023, app. B.1 and B.2, theorems 3 to 6).

Along a trajectory of the probability-flow ODE a consistency function is constant:

$$\frac{d}{dt} f_\theta(x_t, t) = \partial_t f_\theta + \nabla_x f_\theta \cdot \dot x_t = 0.$$

With the target's gradient stopped, the squared discrete loss over its step size has in the limit
the gradient of

$$L = E[ w(t)\, \langle \mathrm{sg}\, \tfrac{d f_\theta}{dt},\ f_\theta(x_t, t) \rangle ]$$

up to a factor 2; the value of L means nothing. Without the stop, the loss penalises the derivative
itself. $\dot x_t$ is the teacher's velocity in distillation. In training it is the sample's own,
whose expectation is the former.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.core import Batch, Rng, UsageError, expand, per_sample
from fewstep.derivatives import jvp
from fewstep.models import AbstractDenoiser
from fewstep.objectives.base import Capabilities, Loss, Objective, Phase
from fewstep.objectives.shared.distances import Distance
from fewstep.objectives.shared.drop import (
    ConditionDrop,
    Draws,
    conditions,
    draw_noised,
    guidance_of,
)
from fewstep.times import Times, law_on


class ContinuousConsistency(Objective):
    """CD with a teacher, CT without; training from scratch needs a diffusion model to start from.

    Args:
        student: a denoiser with ``f(x, t_min) = x``, whose network has a forward-mode derivative.
        teacher: a denoiser on the same path, or None.
        times: the law of the training times, :class:`fewstep.times.KarrasUniform` in the paper.
        weight: w(t), ``(b,)`` to ``(b,)``.
        penalty: distance of the derivative from 0; None stops the gradient instead.
        drop: label dropping.
    """

    def __init__(
        self,
        student: AbstractDenoiser,
        teacher: AbstractDenoiser | None = None,
        *,
        times: Times,
        weight: Callable[[Tensor], Tensor] = torch.ones_like,
        penalty: Distance | None = None,
        drop: ConditionDrop | None = None,
    ) -> None:
        super().__init__()
        if student.two_time:
            raise UsageError("a consistency model goes to t_min only; take a one-time network")
        if teacher is not None and teacher.path != student.path:
            raise UsageError(
                f"the teacher lives on {teacher.path}, the student on {student.path}; read the "
                "teacher on the student's path with teacher.on(student.path)"
            )
        self.student = student
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)
        self.frozen = () if teacher is None else ("teacher",)
        self.times = law_on(student.path, times)
        self.weight = weight
        self.penalty = penalty
        self.derivative = jvp
        second_order = penalty is not None
        self.capabilities = Capabilities(forward_mode=True, second_order=second_order)
        self.drop = drop

    def draw(self, batch: Batch, step: int, rng: Rng) -> Draws:
        """Draw times, noise and the samples whose conditions are dropped."""
        t = self.times.draw(self.student.path, len(batch), rng)
        return draw_noised(batch, t, self.drop, rng)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Compute the pseudo-loss or the penalty; ``derivative`` logs the mean square of df/dt."""
        cond = conditions(batch.cond, self.drop, draws.dropped)
        path, t = self.student.path, draws.t
        x_t = path.perturb(batch.x0, draws.noise, t)
        with torch.no_grad():
            x0 = batch.x0 if self.teacher is None else self.teacher(x_t, t, None, cond)
            velocity = path.velocity(x_t, x0, t)

        def f(x: Tensor, at: Tensor) -> Tensor:
            return self.student(x, at, torch.full_like(at, path.t_min), cond)

        primals, tangents = (x_t, t), (velocity, torch.ones_like(t))
        if self.penalty is None:
            value, derivative = self.derivative(f, primals, tangents)
            each = per_sample(derivative * value, batch.mask)
        else:
            _, derivative = jvp(f, primals, tangents, differentiable=True)
            each = self.penalty(derivative, torch.zeros_like(derivative), batch.mask)
        weight = expand(self.weight(t), each)
        return Loss(
            {"consistency": (weight * each).mean()},
            {"derivative": per_sample(derivative.detach() ** 2, batch.mask).mean()},
        )

    def phases(self) -> Sequence[Phase]:
        """The student trains at every step."""
        return (Phase("student", self.student, self.draw, self.loss),)

    def contract(self, data: DataSpec) -> Contract:
        """Users may generate at any times, with fresh noise between calls."""
        path = self.student.path
        times = {1: (path.t_max,)}
        start = Start(t=path.t_max, std=path.start_std())
        return Contract(
            method="cd" if self.teacher is not None else "ct",
            data=data,
            sampling=Sampling(
                start=start,
                kind="renoise",
                times=times,
                any_times=True,
                guidance=guidance_of(self.drop, data),
            ),
        )
