r"""Four scalars make a denoiser of a network: $D = c_{skip} x + c_{out} F(c_{in} x, c_{noise})$.

Each class is one parametrisation on the path it was derived on; :meth:`Preconditioning.on` reads
the same network on any other path.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fewstep.core import expand
from fewstep.errors import UsageError
from fewstep.paths import (
    DiscreteVariancePreserving,
    Event,
    Linear,
    Path,
    Time,
    Trig,
    VarianceExploding,
    VariancePreserving,
)


class Scalings(NamedTuple):
    """The four scalars, each ``(b,)``."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


@dataclass(frozen=True, kw_only=True)
class Preconditioning(ABC):
    """What the network sees and what its output means, on ``path``.

    ``home`` is the kind of path that the parametrisation is derived on.
    """

    home: ClassVar[type[Path]] = Path
    path: Path

    def __post_init__(self) -> None:
        if not isinstance(self.path, self.home):
            raise UsageError(
                f"{type(self).__name__} is derived on {self.home.__name__}, got "
                f"{type(self.path).__name__}; read it there with .on(path)"
            )
        for field_ in fields(self):
            value = getattr(self, field_.name)
            if isinstance(value, int | float) and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{field_.name} must be finite and above 0, got {value}")

    @abstractmethod
    def coefficients(self, t: Time) -> Scalings:
        """The scalars at ``t``."""

    def floor(self, like: Time) -> Time:
        """The ``t_min`` of the network's own path, as a time on ``path``."""
        return torch.full_like(like, self.path.t_min)

    def end_noise(self, s: Time) -> Tensor:
        """c_noise of a second time, which is read no cleaner than :meth:`floor`.

        Jumps end at s = 0 on paths that reach clean data, where ln(s) is not finite. It is the time
        that is limited, not its logarithm, so that derivatives in s stay finite: they are 0 there.
        """
        floor = self.floor(s)
        return self.coefficients(torch.where(s < floor, floor, s)).c_noise

    def prediction(self, out: Tensor, t: Time) -> Event:
        """F, of a network's output: the output itself, unless the network has two heads."""
        return out

    def on(self, path: Path) -> Preconditioning:
        """The same network as a denoiser on another path."""
        return self if path == self.path else Reparametrised(path=path, inner=self)


@dataclass(frozen=True, kw_only=True)
class Reparametrised(Preconditioning):
    r"""``inner`` read at the time of equal log-SNR, its input rescaled by k = alpha_old/alpha_new.

    The sums below have the same quotient, and no 0/0 where both paths end on pure noise.

    Times noisier than ``inner`` was made for (pure noise on a linear path is infinitely noisy for
    EDM) are read at its noisiest.
    """

    inner: Preconditioning

    def coefficients(self, t: Time) -> Scalings:
        """(k c_skip, c_out, k c_in, c_noise) at the old time."""
        t_old, t_new = self._times(t)
        alpha_old, sigma_old, _, _ = self.inner.path.coefficients(t_old)
        alpha_new, sigma_new, _, _ = self.path.coefficients(t_new)
        k = (alpha_old + sigma_old) / (alpha_new + sigma_new)
        c_skip, c_out, c_in, c_noise = self.inner.coefficients(t_old)
        return Scalings(k * c_skip, c_out, k * c_in, c_noise)

    def floor(self, like: Time) -> Time:
        """The inner path's, at equal log-SNR."""
        return self.path.time(self.inner.path.ratio(self.inner.floor(like)))

    def prediction(self, out: Tensor, t: Time) -> Event:
        """As at the old time."""
        return self.inner.prediction(out, self._times(t)[0])

    def _times(self, t: Time) -> tuple[Time, Time]:
        """``t`` on the old path, and what it is then on this one."""
        old = self.inner.path
        ceiling = old.ratio(torch.full_like(t, old.t_max))
        ratio = torch.minimum(self.path.ratio(t), ceiling)
        return old.time(ratio), self.path.time(ratio)


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
class NoisePrediction(Preconditioning):
    """F predicts the noise (Ho et al. 2020); the network sees ``time_scale * t``."""

    time_scale: float = 999.0
    path: Path = field(default_factory=VariancePreserving)

    def coefficients(self, t: Time) -> Scalings:
        """x0 = (x - sigma F) / alpha."""
        alpha, sigma, _, _ = self.path.coefficients(t)
        return Scalings(1 / alpha, -sigma / alpha, torch.ones_like(t), self.time_scale * t)


@dataclass(frozen=True, kw_only=True)
class DataPrediction(Preconditioning):
    """F predicts the clean data; the network sees ``time_scale * t``."""

    time_scale: float = 999.0
    path: Path = field(default_factory=VariancePreserving)

    def coefficients(self, t: Time) -> Scalings:
        """x0 = F."""
        one = torch.ones_like(t)
        return Scalings(torch.zeros_like(t), one, one, self.time_scale * t)


@dataclass(frozen=True, kw_only=True)
class VPrediction(Preconditioning):
    """F predicts v = alpha noise - sigma x0 (Salimans & Ho 2022); sees ``time_scale * t``."""

    time_scale: float = 999.0
    path: Path = field(default_factory=VariancePreserving)

    def coefficients(self, t: Time) -> Scalings:
        """x0 = (alpha x - sigma F) / (alpha^2 + sigma^2)."""
        alpha, sigma, _, _ = self.path.coefficients(t)
        power = alpha**2 + sigma**2
        return Scalings(alpha / power, -sigma / power, torch.ones_like(t), self.time_scale * t)


@dataclass(frozen=True, kw_only=True)
class DataAndNoisePrediction(Preconditioning):
    """Both, for a network with twice the channels: clean data, then noise (Salimans & Ho 2022).

    The answer is their mean x0 = w F_data + (1 - w) (x - sigma F_noise) / alpha, the weight
    w = sigma^2 / (alpha^2 + sigma^2). It is that of v-prediction with
    v = alpha F_noise - sigma F_data, and divides by alpha nowhere.
    """

    time_scale: float = 999.0
    path: Path = field(default_factory=VariancePreserving)

    def coefficients(self, t: Time) -> Scalings:
        """Those of v-prediction."""
        return VPrediction(time_scale=self.time_scale, path=self.path).coefficients(t)

    def prediction(self, out: Tensor, t: Time) -> Event:
        """The v of the two halves."""
        x0, noise = out.chunk(2, dim=1)
        alpha, sigma, _, _ = self.path.coefficients(t)
        return expand(alpha, x0) * noise - expand(sigma, x0) * x0


@dataclass(frozen=True, kw_only=True)
class Flow(Preconditioning):
    """F predicts the velocity dx/dt of the path (flow matching); sees ``time_scale * t``."""

    time_scale: float = 1.0
    path: Path

    def coefficients(self, t: Time) -> Scalings:
        """x0 = (d_sigma x - sigma F) / (alpha d_sigma - d_alpha sigma)."""
        alpha, sigma, d_alpha, d_sigma = self.path.coefficients(t)
        wronskian = alpha * d_sigma - d_alpha * sigma
        return Scalings(
            d_sigma / wronskian, -sigma / wronskian, torch.ones_like(t), self.time_scale * t
        )


@dataclass(frozen=True, kw_only=True)
class ReversedFlow(Preconditioning):
    """F predicts -dx/dt, and the network sees 1 - t: published SiT, whose time runs to the data."""

    path: Path = field(default_factory=Linear)

    def coefficients(self, t: Time) -> Scalings:
        """Those of the flow with the sign of F changed."""
        c_skip, c_out, c_in, _ = Flow(path=self.path).coefficients(t)
        return Scalings(c_skip, -c_out, c_in, 1 - t)


@dataclass(frozen=True, kw_only=True)
class TrigFlow(Preconditioning):
    """dx/dt = sigma_data F(x / sigma_data, t) on the trigonometric path (Lu & Song 2025, eq. 3)."""

    home = Trig
    path: Trig = field(default_factory=Trig)

    def coefficients(self, t: Time) -> Scalings:
        """x0 = cos(t) x - sin(t) sigma_data F."""
        sigma_data = self.path.sigma_data
        return Scalings(
            t.cos(), -t.sin() * sigma_data, torch.full_like(t, 1 / sigma_data), t.clone()
        )


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
