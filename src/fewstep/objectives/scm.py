r"""sCM: consistency models in continuous time on TrigFlow (Lu & Song 2025, eq. 8).

On the :class:`Trig` path a diffusion model is $dx/dt = \sigma_d F(x_t / \sigma_d, t)$ and a
consistency model $f(x_t, t) = \cos t\, x_t - \sin t\, \sigma_d F$: the same denoiser. Along a
trajectory f must not change; cos t times its derivative, with the student's gradient stopped, is

$$g = -\cos^2 t\, (\sigma_d F^- - \tfrac{dx}{dt})
      - r \cos t \sin t\, (x_t + \sigma_d \tfrac{dF^-}{dt}).$$

dx/dt is the teacher's (sCD) or the sample's own, cos t z - sin t x0 (sCT). r grows from 0 to 1 in
the first steps, so that a student which starts as the diffusion model starts at g = 0. Then g is
limited, g / (|g| + c) or clipped, and with D the dimension

$$L = E[ \tfrac{e^{w(t)}}{D} \|F - F^- - g\|^2 - w(t) ],$$

whose gradient with respect to F is $-2 e^w g / D$. g already has the paper's weight 1/tan t of the
times. w = -u trains beside the student.

The derivative is along (cos t sin t dx/dt, cos t sin t), which is bounded at both ends of time,
with scalars in float64 and samples in the precision of the data whatever the network's.

Without a limit sCT has the exact solution in expectation. With one it is biased wherever the law of
x0 given x_t is skewed, because each sample's g is limited before the mean is taken: plainly so for
data of few dimensions. The paper limits all the same, and so do we; sCD has no such bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.core import Batch, Rng, UsageError, expand, per_sample
from fewstep.derivatives import Derivative, jvp
from fewstep.models import AbstractDenoiser, Autoguided, Guided
from fewstep.objectives.base import Capabilities, Loss, Objective, Phase
from fewstep.objectives.shared.copies import on_path_of
from fewstep.objectives.shared.drop import ConditionDrop, conditions, draw_noised, guidance_of
from fewstep.objectives.shared.trigflow import normalised, trig_flow, trig_tangent
from fewstep.paths import Event, Trig
from fewstep.times import Times, law_on


class Draws(NamedTuple):
    """``t``, the warm-up ``r``, ``dropped`` and ``guidance`` are ``(b,)``."""

    t: Tensor
    noise: Tensor
    r: Tensor
    dropped: Tensor | None = None
    guidance: Tensor | None = None


class SCM(Objective):
    """sCD with a teacher, sCT without.

    Args:
        student: on a :class:`Trig` path whose sigma_data is the data's and whose t_max, where
            sampling starts, is atan(80 / sigma_data) in the paper. ``denoiser.on(path)`` reads any
            diffusion model's network there; it must have a forward-mode derivative.
        teacher: a denoiser on the same path, guided or not; or None.
        times: the law of the training times. The paper's is :class:`fewstep.times.LogNormal` of
            (-1, 1.4) on CIFAR-10, (-1, 1.6) on ImageNet-64 and (-0.8, 1.6) on latents.
        warmup: the step from which r is 1.
        limit: g, with zeros where masked, to the regression's target.
        uncertainty: u = -w, a module from ln(sigma / alpha) / 4 ``(b,)`` to ``(b,)``; without it w
            is 0.
        drop: label dropping.
        guidance: the law of scales ``(b, rng) -> (b,)`` that the student's network reads as
            ``cond["guidance"]`` and the guided teacher follows: U(1, 2) in the paper.
        derivative: ``(fn, primals, tangents) -> (value with gradient, tangent without)``.
    """

    capabilities = Capabilities(forward_mode=True)

    def __init__(
        self,
        student: AbstractDenoiser,
        teacher: AbstractDenoiser | None = None,
        *,
        times: Times,
        warmup: int = 10_000,
        limit: Callable[[Event], Event] = normalised,
        uncertainty: nn.Module | None = None,
        drop: ConditionDrop | None = None,
        guidance: Callable[[int, torch.Generator], Tensor] | None = None,
        derivative: Derivative = jvp,
    ) -> None:
        super().__init__()
        path = student.path
        if not isinstance(path, Trig):
            raise UsageError(
                f"sCM is derived on the Trig path, got {type(path).__name__}; read the student "
                "there with student.on(Trig(t_max=atan(80 / sigma_data), sigma_data=...))"
            )
        if student.two_time:
            raise UsageError("a consistency model goes to t = 0 only; take a one-time network")
        if path.t_min != 0:
            raise UsageError(f"f is the identity at t = 0: take Trig(t_min=0), got {path.t_min}")
        if warmup < 0:
            raise UsageError(f"warmup is a number of steps, 0 or more, got {warmup}")
        keys = (*student.cond_keys, *getattr(student, "optional_keys", ()))
        if guidance is not None and not (
            "guidance" in keys and isinstance(teacher, Guided | Autoguided)
        ):
            raise UsageError(
                "a law of guidance scales needs a guided teacher, Guided(teacher, null), and a "
                f"student whose network reads the condition 'guidance'; got {keys} and "
                f"{type(teacher).__name__}"
            )
        self.path = path
        self.student = student
        self.teacher = None if teacher is None else on_path_of(student, teacher)
        self.frozen = () if teacher is None else ("teacher",)
        self.times = law_on(path, times)
        self.warmup = warmup
        self.limit = limit
        self.uncertainty = uncertainty
        self.drop = drop
        self.guidance = guidance
        self.derivative = derivative

    def draw(self, batch: Batch, step: int, rng: Rng) -> Draws:
        """Draw times, noise, the samples to drop and guidance scales; set the warm-up r."""
        b = len(batch)
        t = self.times.draw(self.path, b, rng)
        t, noise, dropped = draw_noised(batch, t, self.drop, rng)
        r = torch.full_like(t, min(1.0, step / self.warmup) if self.warmup else 1.0)
        return Draws(t, noise, r, dropped, self.guidance(b, rng) if self.guidance else None)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Regress on g; ``tangent`` logs the root mean square of g before its limit."""
        t, r, x0 = draws.t, draws.r, batch.x0
        cond = conditions(batch.cond, self.drop, draws.dropped)
        if draws.guidance is not None:
            cond = {**cond, "guidance": draws.guidance.to(x0.dtype)}
        sigma_data = self.path.sigma_data
        x_t = self.path.perturb(x0, draws.noise, t)
        if self.teacher is None:
            _, _, d_alpha, d_sigma = self.path.coefficients(t)
            velocity = expand(d_alpha, x0) * x0 + expand(d_sigma, x0) * draws.noise
        else:
            with torch.no_grad():
                velocity = sigma_data * trig_flow(self.teacher, x_t, t, cond)
        speed = t.cos() * t.sin()
        value, rate = self.derivative(
            lambda x, at: trig_flow(self.student, x, at, cond),
            (x_t, t),
            (expand(speed, x_t) * velocity, speed),
        )
        gap = sigma_data * value.detach() - velocity
        g = trig_tangent(x_t, gap, sigma_data * rate, t, t.cos(), r, r)
        logs = {"tangent": per_sample(g**2, batch.mask).mean().sqrt()}
        g = self.limit(g if batch.mask is None else g * batch.mask)
        each = per_sample((value - value.detach() - g) ** 2, batch.mask)
        if self.uncertainty is None:
            return Loss({"consistency": each.mean()}, logs)
        logs["error"] = each.detach().mean()
        u = self.uncertainty((self.path.ratio(t).log() / 4).to(each.dtype))
        return Loss({"consistency": (each / u.exp() + u).mean()}, logs)

    def phases(self) -> Sequence[Phase]:
        """The student trains at every step, and its uncertainty with it."""
        module = self.student
        if self.uncertainty is not None:
            module = nn.ModuleList([self.student, self.uncertainty])
        return (Phase("student", module, self.draw, self.loss),)

    def contract(self, data: DataSpec) -> Contract:
        """Users may generate at any times, with fresh noise between; x keeps the data's scale."""
        start = Start(t=self.path.t_max, std=self.path.sigma_data)
        times = {1: (self.path.t_max,)}
        sampling = Sampling(
            start=start,
            kind="renoise",
            times=times,
            any_times=True,
            grid="uniform",
            guidance=None if self.guidance else guidance_of(self.drop, data),
        )
        return Contract(
            method="sct" if self.teacher is None else "scd", data=data, sampling=sampling
        )
