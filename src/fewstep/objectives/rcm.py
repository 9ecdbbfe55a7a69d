r"""rCM, a score-regularised consistency model in continuous time (Zheng et al. 2025).

It has two losses on TrigFlow. The first is sCD's (Lu & Song 2025), on noised data, which
misses nothing of the teacher's distribution but is blurred where the student falls short (forward
divergence): with F the student's, F_T the teacher's and minus for a stopped gradient,

$$L_1 = \|F - F^- - g / (\|g\| + 0.1)\|^2 / d, \quad
g = - \cos t \sqrt{1 - r^2 \sin^2 t}\, \sigma_d (F^- - F_T)
    - r \cos t \sin t\, x_t - \cos t \sin t\, \sigma_d \tfrac{dF^-}{dt}.$$

At r = 1 g is sCM's; while r grows from 0, in ``warmup`` steps, the last part is whole, as in the
code (sCM multiplies it by r). The second sharpens samples x (reverse divergence): with fresh noise
at a time t, mu_T and mu_f the answers of the teacher and of a denoiser that trains on samples,

$$L_2 = \|x - sg(x - (\mu_f - \mu_T) / \max(mean|x - \mu_T|, 10^{-5}))\|^2 / d.$$

The loss is L_1 + 0.01 L_2; the official one is 100 d times that, with weights 100 and 1 of sums.
1, 2, ... ``calls`` calls generate x in turn, at times of its own for each sample: the path's last
(officially pi/2), then the lower of a new draw and the time before. Only the last has a gradient.

mu_f minimises |mu_f - x|^2 / sin^2 t. **A step moves either the student or mu_f**: the student in
the warm-up, which has no L_2, and then at each K-th step. So mu_f has K - 1 updates for one of the
student, steps are counted over both, and turns of calls for each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.core import Batch, Cond, Rng, UsageError, expand, per_sample
from fewstep.derivatives import Derivative, jvp
from fewstep.models import AbstractDenoiser
from fewstep.objectives.base import Capabilities, Loss, Objective, Phase
from fewstep.objectives.shared.collapse import lag, statistics
from fewstep.objectives.shared.copies import on_path_of
from fewstep.objectives.shared.distances import l2
from fewstep.objectives.shared.drop import draw_noised
from fewstep.objectives.shared.gradients import matching_gradient, surrogate
from fewstep.objectives.shared.matching import check_critic
from fewstep.objectives.shared.trigflow import normalised, trig_flow, trig_tangent
from fewstep.paths import Event, Trig
from fewstep.times import Times, law_on


class Draws(NamedTuple):
    """``t``, ``noise``, ``r`` of L_1; for L_2 those of a sample's n calls, then of its noising."""

    t: Tensor
    noise: Tensor
    r: Tensor
    weight: Tensor | None  # of L_2, after the warm-up
    times: Tensor  # (n + 1, b)
    noises: Tensor


class RCM(Objective):
    """A score-regularised continuous-time consistency model.

    Args:
        student: a one-time denoiser on a :class:`Trig` path from t = 0.
        teacher: a diffusion model on the same path, guided if its guided samples are wanted.
        fake: mu_f, a one-time denoiser on the same path, at best a copy of the teacher.
        times: the law of the times of the first loss.
        matching_times: the law of the times of the second loss, of mu_f and of the calls;
            ``ShiftedFlow(5)`` in the official code.
        weight: of the second loss.
        warmup: steps in which r grows from 0 to 1.
        every: K, at least 2.
        calls: the largest number of calls of a sample.
        rate: learning rate of mu_f as a multiple of the student's.
        derivative: computes dF/dt.
    """

    frozen = ("teacher",)
    capabilities = Capabilities(forward_mode=True)

    def __init__(
        self,
        student: AbstractDenoiser,
        teacher: AbstractDenoiser,
        fake: AbstractDenoiser,
        *,
        times: Times,
        matching_times: Times,
        weight: float = 0.01,
        warmup: int = 1000,
        every: int = 5,
        calls: int = 4,
        rate: float = 0.2,
        derivative: Derivative = jvp,
    ) -> None:
        super().__init__()
        path = student.path
        if not isinstance(path, Trig) or path.t_min or student.two_time:
            raise UsageError(
                f"rCM's student is a one-time network on the Trig path from 0, got one of "
                f"{1 + student.two_time} time(s) on {path}; read one there with .on(Trig(...))"
            )
        check_critic(student, fake)
        if warmup < 0 or every < 2 or calls < 1:
            raise UsageError(
                f"expected warmup >= 0, every >= 2 and calls >= 1, got {warmup}, {every}, {calls}"
            )
        self.path, self.student, self.fake = path, student, fake
        self.teacher = on_path_of(student, teacher)
        self.times, self.matching_times = law_on(path, times), law_on(path, matching_times)
        self.weight, self.rate, self.derivative = weight, rate, derivative
        self.warmup, self.every, self.calls = warmup, every, calls

    def _student_is_due(self, step: int) -> bool:
        return step < self.warmup or (step - self.warmup) % self.every == 0

    def draw(self, batch: Batch, step: int, rng: Rng) -> Draws:
        """Draw for both phases; a step runs only one of them."""
        b, warm = len(batch), step < self.warmup
        t, noise, _ = draw_noised(batch, self.times.draw(self.path, b, rng), None, rng)
        r = torch.full_like(t, step / self.warmup if warm else 1.0)
        weight = None if warm else t.new_tensor(self.weight)
        students = min(step, self.warmup) + -(-max(step - self.warmup, 0) // self.every)
        turn = students if self._student_is_due(step) else step - students
        calls = range(turn % self.calls + 1)
        *drawn, end = (self.matching_times.draw(self.path, b, rng) for _ in calls)
        times = torch.stack([torch.full_like(t, self.path.t_max), *drawn]).cummin(0).values
        times = torch.cat([times, end[None]])
        each = [draw_noised(batch, at, None, rng).noise for at in times]
        return Draws(t, noise, r, weight, times, torch.stack(each))

    def simulate(self, draws: Draws, cond: Cond) -> tuple[Event, Event]:
        """Generate samples, with gradient through the last call, and noise them."""
        *calls, (end, noise) = zip(draws.times, draws.noises, strict=True)
        x_t = self.path.sigma_data * draws.noises[0]
        with torch.no_grad():
            for (t, _), (later, fresh) in pairwise(calls):
                x_t = self.path.perturb(self.student(x_t, t, None, cond), fresh, later)
        x = self.student(x_t, calls[-1][0], None, cond)
        return x, self.path.perturb(x, noise, end)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Compute L_1; ``tangent`` logs the root mean square of g before its limit."""
        t, r, sigma_data = draws.t, draws.r, self.path.sigma_data
        x_t = self.path.perturb(batch.x0, draws.noise, t)
        with torch.no_grad():
            velocity = sigma_data * trig_flow(self.teacher, x_t, t, batch.cond)
        speed = t.cos() * t.sin()
        flow, along = partial(trig_flow, self.student, cond=batch.cond), expand(speed, x_t)
        value, rate = self.derivative(flow, (x_t, t), (along * velocity, speed))
        gap = sigma_data * value.detach() - velocity
        lead = (1 - (r * t.sin()) ** 2).sqrt()
        g = trig_tangent(x_t, gap, sigma_data * rate, t, lead, r, torch.ones_like(r))
        logs = {"tangent": per_sample(g**2, batch.mask).mean().sqrt()}
        g = normalised(g if batch.mask is None else g * batch.mask)
        each = per_sample((value - value.detach() - g) ** 2, batch.mask)
        return Loss({"consistency": each.mean()}, logs)

    def matching_loss(self, batch: Batch, draws: Draws) -> Loss:
        """Compute L_2 with its weight; it has no terms in the warm-up."""
        if draws.weight is None:
            return Loss({})
        x, x_t = self.simulate(draws, batch.cond)
        with torch.no_grad():
            asked = x_t, draws.times[-1], None, batch.cond
            real, fake = self.teacher(*asked), self.fake(*asked)
        g = matching_gradient(x, real, fake, batch.mask, floor=1e-5)
        matching = 2 * draws.weight.to(x.dtype) * surrogate(x, g, batch.mask).mean()
        logs = {**statistics(x, batch), "lag": lag(x, real, fake, batch.mask)}
        return Loss({"matching": matching}, logs)

    def critic_loss(self, batch: Batch, draws: Draws) -> Loss:
        """Compute the denoising error of mu_f on samples, in units of F."""
        with torch.no_grad():
            x, x_t = self.simulate(draws, batch.cond)
        error = l2(self.fake(x_t, draws.times[-1], None, batch.cond), x, batch.mask)
        return Loss({"denoising": (error / draws.times[-1].sin().to(error.dtype) ** 2).mean()})

    def phases(self) -> Sequence[Phase]:
        """A step trains either the student or the critic."""
        due, fake = self._student_is_due, self.fake
        return (
            Phase("student", self.student, self.draw, self.loss, due, (self.matching_loss,)),
            Phase("critic", fake, self.draw, self.critic_loss, lambda i: not due(i), (), self.rate),
        )

    def contract(self, data: DataSpec) -> Contract:
        """Users may generate at any times, with fresh noise between calls."""
        start = Start(t=self.path.t_max, std=self.path.sigma_data)
        times = {1: (start.t,)}
        how = Sampling(start=start, kind="renoise", times=times, any_times=True, grid="uniform")
        return Contract(method="rcm", data=data, sampling=how)
