"""The parametrisations by name, and those whose times are noise levels.

Each class is one parametrisation on the path it was derived on. :mod:`fewstep.models.scalings` has
what all of them share, and :mod:`fewstep.models.predictions` those that are named by what the
network predicts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.errors import UsageError
from fewstep.models.predictions import (
    DataAndNoisePrediction,
    DataPrediction,
    Flow,
    NoisePrediction,
    ReversedFlow,
    TrigFlow,
    VPrediction,
)
from fewstep.models.scalings import Preconditioning, Reparametrised, Scalings
from fewstep.paths import DiscreteVariancePreserving, Event, Path, Time, VarianceExploding

__all__ = [
    "EDM",
    "PRECONDITIONINGS",
    "Bounded",
    "ConsistencyBoundary",
    "DataAndNoisePrediction",
    "DataPrediction",
    "Flow",
    "LatentBoundary",
    "NearestStep",
    "NoisePrediction",
    "Preconditioning",
    "Reparametrised",
    "ReversedFlow",
    "Scalings",
    "ScoreMatching",
    "TrigFlow",
    "VPrediction",
    "cosine_levels",
]


@dataclass(frozen=True, kw_only=True)
class EDM(Preconditioning):
    """Karras et al. 2022, table 1.

    Args:
        sigma_data: standard deviation of the data.
        time_scale: the network sees ``time_scale * ln(t)``; 0.25 in EDM, 250 in OpenAI's networks.
        path: where times are noise levels.
    """

    home = VarianceExploding
    sigma_data: float
    time_scale: float = 0.25
    path: Path = field(default_factory=VarianceExploding)

    def coefficients(self, t: Time) -> Scalings:
        """Unit-variance input, target and, with F = 0, weighted error."""
        var = t**2 + self.sigma_data**2
        return Scalings(
            self.sigma_data**2 / var,
            t * self.sigma_data / var.sqrt(),
            var.rsqrt(),
            self.time_scale * t.log(),
        )


@dataclass(frozen=True, kw_only=True)
class ConsistencyBoundary(Preconditioning):
    """EDM scalings moved so that f(x, t_min) = x exactly (Song et al. 2023, app. C).

    c_out has ``t``, not ``t - t_min``, in the root, as in the paper and its code.

    Args:
        sigma_data: standard deviation of the data.
        time_scale: the network sees ``time_scale * ln(t)``: 0.25 in the JAX code (CIFAR-10), 250 in
            the PyTorch code (ImageNet-64, LSUN).
        path: times are noise levels; its ``t_min`` is the boundary.
    """

    home = VarianceExploding
    sigma_data: float
    time_scale: float = 0.25
    path: Path = field(default_factory=VarianceExploding)

    def coefficients(self, t: Time) -> Scalings:
        """c_skip(t_min) = 1, c_out(t_min) = 0."""
        since = t - self.path.t_min
        root = (t**2 + self.sigma_data**2).sqrt()
        return Scalings(
            self.sigma_data**2 / (since**2 + self.sigma_data**2),
            since * self.sigma_data / root,
            1 / root,
            self.time_scale * t.log(),
        )


@dataclass(frozen=True, kw_only=True)
class Bounded(Preconditioning):
    """Any parametrisation, moved as :class:`ConsistencyBoundary` moves EDM's: f(x, t_min) = x.

    With D the inner answer and k = 1 - t_min/t it is f = e x + k D, where e = s(t - t_min) - k s(t)
    and s(t) = sigma_data^2 / (t^2 + sigma_data^2) is EDM's c_skip.

    Args:
        inner: the network's own parametrisation, read on ``path``.
        sigma_data: standard deviation of the data.
        path: times are noise levels; its ``t_min`` is the boundary.
    """

    home = VarianceExploding
    inner: Preconditioning
    sigma_data: float
    path: Path = field(default_factory=VarianceExploding)

    def coefficients(self, t: Time) -> Scalings:
        """c_skip(t_min) = 1, c_out(t_min) = 0."""
        c_skip, c_out, c_in, c_noise = self.inner.on(self.path).coefficients(t)
        since, var = t - self.path.t_min, self.sigma_data**2
        part = since / t
        edge = var / (since**2 + var) - part * var / (t**2 + var)
        return Scalings(edge + part * c_skip, part * c_out, c_in, c_noise)

    def prediction(self, out: Tensor, t: Time) -> Event:
        """As the inner parametrisation reads it."""
        return self.inner.on(self.path).prediction(out, t)


@dataclass(frozen=True, kw_only=True)
class LatentBoundary(Preconditioning):
    r"""Any parametrisation, moved as latent consistency models move it: f(x, 0) = x.

    With D the inner answer, $\tau$ = ``timestep_scaling`` t and $p = \tau^2 + \sigma_d^2$ it is

    $$f = \frac{\sigma_d^2}{p}\, x + \frac{\tau}{\sqrt{p}}\, D.$$

    Consistency models have a factor $\sigma_d$ in c_out, because a network's raw output stands
    there. Here D stands there, which estimates x0 itself, and the official code has no such factor.
    From t = 1 on, f is almost D: c_skip is 0.0025 there, and c_out is 0.9988.

    Args:
        inner: the network's own parametrisation, read on ``path``.
        sigma_data: $\sigma_d$, in units of tau.
        timestep_scaling: factor from the time to tau, above 0.
        path: times are indices of a table; its ``t_min``, which must be 0, is the boundary.
    """

    home = DiscreteVariancePreserving
    inner: Preconditioning
    sigma_data: float = 0.5
    timestep_scaling: float = 10.0
    path: Path = field(default_factory=DiscreteVariancePreserving)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path.t_min != 0:
            raise UsageError(
                f"LatentBoundary is the identity at t = 0; take a path of t_min 0, got "
                f"{self.path.t_min}"
            )

    def coefficients(self, t: Time) -> Scalings:
        """c_skip(0) = 1, c_out(0) = 0."""
        c_skip, c_out, c_in, c_noise = self.inner.on(self.path).coefficients(t)
        tau = self.timestep_scaling * t
        power = tau**2 + self.sigma_data**2
        skip, out = self.sigma_data**2 / power, tau / power.sqrt()
        return Scalings(skip + out * c_skip, out * c_out, c_in, c_noise)

    def prediction(self, out: Tensor, t: Time) -> Event:
        """As the inner parametrisation reads it."""
        return self.inner.on(self.path).prediction(out, t)


@dataclass(frozen=True, kw_only=True)
class ScoreMatching(Preconditioning):
    """The variance-exploding score network of Song et al. 2021 in EDM's reading: D = x + t F."""

    home = VarianceExploding
    path: Path = field(default_factory=lambda: VarianceExploding(0.02, 100.0))

    def coefficients(self, t: Time) -> Scalings:
        """F estimates -noise; the network sees ln(t / 2)."""
        one = torch.ones_like(t)
        return Scalings(one, t, one, t.log() - math.log(2))


@dataclass(frozen=True, kw_only=True)
class NearestStep(Preconditioning):
    """Improved DDPM (Nichol & Dhariwal 2021) in EDM's reading: D = x - t F at the nearest step.

    The network predicts the noise on a cosine schedule of ``steps`` and sees the number of the step
    whose noise level is nearest to ``t``, counted from data to noise.

    Args:
        steps: of the schedule.
        ratio: the lowest ratio of signal between neighbouring steps (EDM's C_1).
        offset: of the cosine (EDM's C_2).
        path: times are noise levels.
    """

    home = VarianceExploding
    steps: int = 1000
    ratio: float = 0.001
    offset: float = 0.008
    path: Path = field(default_factory=lambda: VarianceExploding(0.0065, 20_000.0))

    def coefficients(self, t: Time) -> Scalings:
        """F predicts the noise; the network sees a whole number."""
        one = torch.ones_like(t)
        levels = cosine_levels(self.steps, self.ratio, self.offset).to(t)
        step = (t[:, None] - levels).abs().argmin(1).to(t.dtype)
        return Scalings(one, -t, (t**2 + 1).rsqrt(), self.steps - 1 - step)


def cosine_levels(steps: int, ratio: float, offset: float) -> Tensor:
    """The noise levels of a cosine schedule from noise to data, the last of which is 0.

    Args:
        steps: of the schedule.
        ratio: the lowest ratio of signal between neighbouring steps.
        offset: of the cosine.
    """
    angle = torch.arange(steps + 1, dtype=torch.float64) / steps / (1 + offset)
    power = (angle * (math.pi / 2)).sin() ** 2
    growth = -(power[:-1] / power[1:]).clamp(min=ratio).log()
    # log(1 + level^2) grows from step to step by the logarithm of the ratio.
    total = growth.flip(0).cumsum(0).flip(0)
    return torch.cat([torch.expm1(total).sqrt(), torch.zeros(1, dtype=torch.float64)])


PRECONDITIONINGS: dict[str, type[Preconditioning]] = {
    "edm": EDM,
    "consistency_boundary": ConsistencyBoundary,
    "bounded": Bounded,
    "latent_boundary": LatentBoundary,
    "noise": NoisePrediction,
    "data": DataPrediction,
    "v": VPrediction,
    "data_and_noise": DataAndNoisePrediction,
    "flow": Flow,
    "reversed_flow": ReversedFlow,
    "trigflow": TrigFlow,
    "score": ScoreMatching,
    "nearest_step": NearestStep,
    "reparametrised": Reparametrised,
}
