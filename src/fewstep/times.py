"""Which times: step grids for samplers and discrete losses, and the laws training draws from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core import UsageError, widest
from fewstep.paths import Path

# Step grids: n descending times, float64, from t_max to t_min.


def karras(n: int, t_min: float, t_max: float, rho: float = 7.0) -> Tensor:
    """Uniform in t^(1/rho) (Karras et al. 2022, eq. 5); ``n`` points, the first is ``t_max``."""
    _at_least(n, 1)
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    high, low = t_max ** (1 / rho), t_min ** (1 / rho)
    grid = (high + ramp * (low - high)) ** rho
    # Rounding must not move the ends: t_min is where a consistency function is the identity.
    grid[-1], grid[0] = t_min, t_max
    return grid


def uniform(n: int, t_min: float, t_max: float) -> Tensor:
    """Equally spaced times."""
    return karras(n, t_min, t_max, rho=1.0)


def log_snr(n: int, path: Path) -> Tensor:
    """Equally spaced in the log signal-to-noise ratio (DPM-Solver); needs finite ends."""
    _at_least(n, 1)
    ends = path.logsnr(torch.tensor([path.t_max, path.t_min], dtype=torch.float64))
    if not bool(ends.isfinite().all()):
        raise UsageError(
            f"log_snr: {type(path).__name__} has an infinite log-SNR at {path.t_min} or "
            f"{path.t_max}; give it t_min and t_max inside its range"
        )
    logsnr = torch.linspace(float(ends[0]), float(ends[1]), n, dtype=torch.float64)
    grid = path.time((-0.5 * logsnr).exp())
    grid[-1], grid[0] = path.t_min, path.t_max
    return grid


def shift(t: Tensor, by: float) -> Tensor:
    """s t / (1 + (s - 1) t): SD3's resolution shift of flow times; shifts multiply."""
    return by * t / (1 + (by - 1) * t)


def shifted_flow(n: int, by: float, t_min: float = 0.0, t_max: float = 1.0) -> Tensor:
    """Uniform flow times, then :func:`shift`."""
    return shift(uniform(n, t_min, t_max), by)


def to_zero(times: Tensor) -> Tensor:
    """The grid with a final 0, where samplers end on clean data."""
    return torch.cat([times, times.new_zeros(1)])


def _at_least(n: int, least: int) -> None:
    if n < least:
        raise UsageError(f"a step grid needs at least {least} point(s), got {n}")


# Time samplers: (b,) times of one batch, float64 where the device has it.


@dataclass(frozen=True)
class Uniform:
    """U(low, high)."""

    low: float = 0.0
    high: float = 1.0

    def __call__(self, b: int, rng: torch.Generator) -> Tensor:
        """Times ``(b,)``."""
        return self.low + (self.high - self.low) * _rand(b, rng)


@dataclass(frozen=True)
class LogUniform:
    """Uniform in log t: the variance-exploding SDE's training times."""

    low: float = 0.02
    high: float = 100.0

    def __call__(self, b: int, rng: torch.Generator) -> Tensor:
        """Times ``(b,)``."""
        return self.low * (self.high / self.low) ** _rand(b, rng)


@dataclass(frozen=True)
class LogNormal:
    """log t ~ N(mean, std^2): EDM's noise levels."""

    mean: float = -1.2
    std: float = 1.2

    def __call__(self, b: int, rng: torch.Generator) -> Tensor:
        """Times ``(b,)``."""
        return (self.mean + self.std * _randn(b, rng)).exp()


@dataclass(frozen=True)
class LogitNormal:
    """logit t ~ N(mean, std^2), then shifted: flow matching's times (Esser et al. 2024)."""

    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __call__(self, b: int, rng: torch.Generator) -> Tensor:
        """Times ``(b,)`` in (0, 1)."""
        return shift((self.mean + self.std * _randn(b, rng)).sigmoid(), self.shift)


@dataclass(frozen=True)
class KarrasUniform:
    """t^(1/rho) uniform: continuous-time consistency training's times."""

    t_min: float = 0.002
    t_max: float = 80.0
    rho: float = 7.0

    def __call__(self, b: int, rng: torch.Generator) -> Tensor:
        """Times ``(b,)``."""
        return self.at(_rand(b, rng))

    def at(self, part: Tensor) -> Tensor:
        """The times that a share ``part`` of all times lies below."""
        low, high = self.t_min ** (1 / self.rho), self.t_max ** (1 / self.rho)
        return (low + (high - low) * part) ** self.rho


@dataclass(frozen=True)
class HalfHigh:
    """EDM's noise levels, and for the later half of a batch the upper 70 % of the path's times.

    Those are uniform in t^(1/7): the denoising term of consistency trajectory models (CTM).
    """

    path: Path

    def __call__(self, b: int, rng: torch.Generator) -> Tensor:
        """Times ``(b,)``."""
        low = self.path.time(LogNormal()(b // 2, rng))
        high = KarrasUniform(self.path.t_min, self.path.t_max)
        return torch.cat([low, high.at(Uniform(0.3, 1.0)(b - b // 2, rng))])


@dataclass(frozen=True)
class UniformIndex:
    """Index of an interval of an n-point grid, each as likely (Song et al. 2023)."""

    def __call__(self, b: int, grid: Tensor, rng: torch.Generator) -> Tensor:
        """Indices ``(b,)`` in [0, n - 2]; interval i of a descending grid is (t_i, t_{i+1})."""
        return torch.randint(len(grid) - 1, (b,), generator=rng, device=rng.device)


@dataclass(frozen=True)
class DiscreteLogNormal:
    """Index of an interval by its log-normal mass (Song & Dhariwal 2024, eq. 10)."""

    mean: float = -1.1
    std: float = 2.0

    def mass(self, grid: Tensor) -> Tensor:
        """Probability of each of the n - 1 intervals of a descending grid."""
        cdf = torch.erf((grid.log() - self.mean) / (math.sqrt(2) * self.std))
        mass = cdf[:-1] - cdf[1:]
        return mass / mass.sum()

    def __call__(self, b: int, grid: Tensor, rng: torch.Generator) -> Tensor:
        """Indices ``(b,)`` in [0, n - 2]."""
        mass = self.mass(grid).to(rng.device, widest(rng.device))
        return torch.multinomial(mass, b, replacement=True, generator=rng)


def _rand(b: int, rng: torch.Generator) -> Tensor:
    return torch.rand(b, generator=rng, device=rng.device, dtype=widest(rng.device))


def _randn(b: int, rng: torch.Generator) -> Tensor:
    return torch.randn(b, generator=rng, device=rng.device, dtype=widest(rng.device))
