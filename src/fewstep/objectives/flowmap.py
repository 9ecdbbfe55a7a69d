r"""Flow-map distillation: Align Your Flow (Sabour, Fidler & Kreis 2025).

A flow map takes any point of a trajectory of the teacher's ODE to any other. On the linear path it
is one step of average velocity F,

$$f(x_t, t, s) = x_t + (s - t) F(x_t, t, s), \qquad F = (x_t - D(x_t, t, s)) / t.$$

It is exact if its result is the same from any point of the trajectory (Eulerian,
$\tfrac{d}{dt} f(x_t, t, s) = 0$ along the teacher's velocity v), or if its end moves along the
trajectory (Lagrangian, $\partial_s f(x_t, t, s) = v(f, s)$). Solved for F, the remainder is

$$g = v(x_t, t) - F + \rho (s - t) \tfrac{dF}{dt} \quad\text{or}\quad
  g = v(f, s) - F + \rho (t - s) \partial_s F,$$

and the loss is $\|F - \mathrm{sg}[F + g / (\|g\| + c)]\|^2$, with the norm over the whole sample.
Its gradient is that of AYF-EMD, $\mathrm{sign}(t - s) f^T \tfrac{df}{dt}$, or of AYF-LMD,
$\mathrm{sign}(s - t) f^T (\partial_s f - v(f, s))$, up to a positive factor. At s = 0 the Eulerian
one is the continuous-time consistency loss, at s = t flow matching, and $F + g$ is
MeanFlow's target with the teacher's velocity.

$\rho$ rises with the steps to ``ratio_max``. Below 1 it adds $(1 - \rho)(v - F)$, a pull towards
straight trajectories; the paper stops at 0.99.

The paper sums the squares over the sample, and ours is their mean. The Lagrangian loss is as good
in the plane and too smooth on images, says the paper. Its adversarial fine-tuning is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.core import Batch, Rng, UsageError, expand, per_sample
from fewstep.derivatives import Derivative, jvp
from fewstep.models import AbstractDenoiser
from fewstep.objectives.base import Capabilities, Loss, Objective, Phase
from fewstep.objectives.shared.copies import on_path_of
from fewstep.objectives.shared.drop import draw_noised
from fewstep.paths import Event, Linear, Time
from fewstep.times import LogitNormal, Uniform

Kind = Literal["eulerian", "lagrangian"]

GAP = LogitNormal(-0.8, 1.0)


class Draws(NamedTuple):
    """``t`` >= ``s`` and the warm-up factor ``rho`` are ``(b,)``; ``noise`` is as the data."""

    t: Tensor
    s: Tensor
    rho: Tensor
    noise: Tensor


class FlowMap(Objective):
    """Distil a teacher into a flow map, which should start from the teacher's weights.

    Args:
        student: a two-time denoiser on Linear.
        teacher: a denoiser on the same path, guided or autoguided if its guided samples are wanted.
        kind: which condition; the Lagrangian one evaluates the teacher at the student's own points.
        gap: the law of (t - s) as a share of the path, ``(b, rng) -> (b,)`` in (0, 1); s is uniform
            in the rest of the path.
        c: of the normalisation, above 0.
        ratio_max: the largest rho, in [0, 1].
        warmup: steps in which rho would rise from 0 to 1.
        derivative: computes the directional derivative.
    """

    frozen = ("teacher",)
    capabilities = Capabilities(forward_mode=True)

    def __init__(
        self,
        student: AbstractDenoiser,
        teacher: AbstractDenoiser,
        *,
        kind: Kind = "eulerian",
        gap: Callable[[int, torch.Generator], Tensor] = GAP,
        c: float = 0.1,
        ratio_max: float = 0.99,
        warmup: int = 10_000,
        derivative: Derivative = jvp,
    ) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise UsageError(f"kind must be one of {get_args(Kind)}, got {kind!r}")
        if not student.two_time:
            raise UsageError("a flow map goes from any time to any other; take a two-time network")
        if not isinstance(student.path, Linear):
            raise UsageError(
                f"flow maps are derived on Linear, got {student.path}; read the student there with "
                "student.on(Linear())"
            )
        if not (c > 0 and 0 <= ratio_max <= 1 and warmup >= 0):
            raise UsageError(
                "expected c > 0, ratio_max in [0, 1] and warmup of at least 0 steps, got "
                f"{c}, {ratio_max}, {warmup}"
            )
        self.student = student
        self.teacher = on_path_of(student, teacher)
        self.kind = kind
        self.gap = gap
        self.c = c
        self.ratio_max = ratio_max
        self.warmup = warmup
        self.derivative = derivative

    def draw(self, batch: Batch, step: int, rng: Rng) -> Draws:
        """Draw intervals inside the path and noise, and set the warm-up factor."""
        path, b = self.student.path, len(batch)
        gap, place = self.gap(b, rng), Uniform()(b, rng)
        s = path.t_min + (path.t_max - path.t_min) * (1 - gap) * place
        t = s + (path.t_max - path.t_min) * gap
        rho = min(self.ratio_max, step / self.warmup if self.warmup else 1.0)
        return Draws(t, s, torch.full_like(t, rho), draw_noised(batch, t, None, rng).noise)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Regress on the normalised tangent; ``tangent`` logs its norm before normalisation."""
        path, (t, s, rho, noise) = self.student.path, draws
        x_t = path.perturb(batch.x0, noise, t)

        def mean_velocity(x: Event, at: Time, to: Time) -> Event:
            return path.velocity(x, self.student(x, at, to, batch.cond), at)

        def velocity(x: Event, at: Time) -> Event:
            with torch.no_grad():
                return path.velocity(x, self.teacher(x, at, None, batch.cond), at)

        one, zero = torch.ones_like(t), torch.zeros_like(t)
        if self.kind == "eulerian":
            v = velocity(x_t, t)
            mean, slope = self.derivative(mean_velocity, (x_t, t, s), (v, one, zero))
            span = s - t
        else:
            still = torch.zeros_like(x_t)
            mean, slope = self.derivative(mean_velocity, (x_t, t, s), (still, zero, one))
            v = velocity(x_t + expand(s - t, x_t) * mean.detach(), s)
            span = t - s
        g = v - mean.detach() + expand(rho * span, x_t) * slope
        g = g if batch.mask is None else g * batch.mask
        norm = g.flatten(1).norm(dim=1)
        target = mean.detach() + g / expand(norm + self.c, g)
        each = per_sample((mean - target) ** 2, batch.mask)
        return Loss({"flowmap": each.mean()}, {"tangent": norm.mean()})

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
            grid="uniform",
        )
        return Contract(method="flowmap", data=data, sampling=sampling)
