"""Laws of noise levels sigma/alpha, at which methods train on any path."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.core import UsageError, widest
from fewstep.paths import Path
from fewstep.times.grids import karras
from fewstep.times.laws import Law, NoiseLevels, Uniform, unit_normal, unit_uniform


@dataclass(frozen=True)
class LogNormal(NoiseLevels):
    """The law log(sigma/alpha) ~ N(mean, std^2): the noise levels of EDM.

    Args:
        mean, std: of log(sigma/alpha).
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 <= self.std < math.inf):
            raise UsageError(f"expected a finite mean and a std of 0 or more, got {self}")

    def levels(self, b: int, rng: torch.Generator) -> Tensor:
        """Draw noise levels ``(b,)``."""
        return (self.mean + self.std * unit_normal(b, rng)).exp()


@dataclass(frozen=True)
class LogUniform(NoiseLevels):
    """The law of levels that are uniform in their logarithm: the variance-exploding SDE's."""

    low: float = 0.02
    high: float = 100.0

    def levels(self, b: int, rng: torch.Generator) -> Tensor:
        """Draw noise levels ``(b,)``."""
        return self.low * (self.high / self.low) ** unit_uniform(b, rng)

    def ends(self) -> tuple[float, float]:
        """Return both arguments."""
        return self.low, self.high


@dataclass(frozen=True)
class TruncatedLogStudent(NoiseLevels):
    """A truncated Student's t of log(sigma/alpha): the levels of truncated consistency models.

    With log(sigma/alpha) = mean + scale sqrt(df) sinh(u) the density of u is cosh(u)^-df, smooth
    however heavy the tails are (0.01 degrees of freedom in the paper), so a table inverts its
    integral.

    Args:
        low, high: the least and the largest level.
        mean, scale: location and scale of log(sigma/alpha).
        df: degrees of freedom, above 0.
    """

    low: float = 1.0
    high: float = 80.0
    mean: float = 0.0
    scale: float = 0.2
    df: float = 0.01

    def levels(self, b: int, rng: torch.Generator) -> Tensor:
        """Draw noise levels ``(b,)``."""
        width = self.scale * math.sqrt(self.df)
        low, high = (math.asinh((math.log(t) - self.mean) / width) for t in (self.low, self.high))
        part = unit_uniform(b, rng)
        u = torch.linspace(low, high, 4097, dtype=part.dtype, device=part.device)
        mass = F.pad(torch.cumulative_trapezoid(u.cosh() ** -self.df, u), (1, 0))
        wanted = part * mass[-1]
        i = torch.searchsorted(mass, wanted, right=True).clamp(1, len(u) - 1)
        place = (wanted - mass[i - 1]) / (mass[i] - mass[i - 1])
        log_level = self.mean + width * torch.lerp(u[i - 1], u[i], place).sinh()
        return log_level.exp().clamp(self.low, self.high)

    def ends(self) -> tuple[float, float]:
        """Return both arguments."""
        return self.low, self.high


@dataclass(frozen=True)
class KarrasUniform(NoiseLevels):
    """The law of levels whose rho-th root is uniform: consistency training's in continuous time.

    Args:
        t_min, t_max: the least and the largest level.
        rho: power of the grid (Karras et al. 2022, eq. 5).
    """

    t_min: float = 0.002
    t_max: float = 80.0
    rho: float = 7.0

    def levels(self, b: int, rng: torch.Generator) -> Tensor:
        """Draw noise levels ``(b,)``."""
        return self.at(unit_uniform(b, rng))

    def at(self, part: Tensor) -> Tensor:
        """Return the levels below which a share ``part`` of all levels lies."""
        low, high = self.t_min ** (1 / self.rho), self.t_max ** (1 / self.rho)
        return (low + (high - low) * part) ** self.rho

    def ends(self) -> tuple[float, float]:
        """Return both arguments."""
        return self.t_min, self.t_max


@dataclass(frozen=True)
class KarrasIndex(NoiseLevels):
    """The uniform law of a range of points of a Karras grid.

    The defaults are the noise levels at which distribution matching (DMD) compares scores. The
    score of generated samples trains at all points, ``KarrasIndex(0, 999)``.

    Args:
        first, last: the range of indices, both included, counted from the data.
        points: number of points of the grid.
        t_min, t_max: the least and the largest level of the grid.
    """

    first: int = 20
    last: int = 980
    points: int = 1000
    t_min: float = 0.002
    t_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last < self.points:
            raise UsageError(f"KarrasIndex: expected 0 <= first <= last < points, got {self}")

    def grid(self) -> Tensor:
        """Return all points, ascending."""
        return karras(self.points, self.t_min, self.t_max).flip(0)

    def levels(self, b: int, rng: torch.Generator) -> Tensor:
        """Draw noise levels ``(b,)``."""
        index = torch.randint(self.first, self.last + 1, (b,), generator=rng, device=rng.device)
        return self.grid().to(rng.device, widest(rng.device))[index]

    def ends(self) -> tuple[float, float]:
        """Return the levels at both ends of the range."""
        grid = self.grid()
        return float(grid[self.first]), float(grid[self.last])


@dataclass(frozen=True)
class ShiftedFlow(NoiseLevels):
    """The law of levels at uniform times of rectified flow, shifted: those of samples in rCM.

    Args:
        by: factor on the levels t / (1 - t).
    """

    by: float = 5.0

    def levels(self, b: int, rng: torch.Generator) -> Tensor:
        """Draw noise levels ``(b,)``."""
        t = unit_uniform(b, rng)
        return self.by * t / (1 - t)


@dataclass(frozen=True)
class HalfHigh(Law):
    """EDM's noise levels, and for the later half of a batch the upper 70 % of the path's times.

    The upper times are uniform in t^(1/7). Consistency trajectory models (CTM) have this law in
    their denoising term.
    """

    def draw(self, path: Path, b: int, rng: torch.Generator) -> Tensor:
        """Draw times ``(b,)`` of the path, in its own unit."""
        low = LogNormal().draw(path, b // 2, rng)
        high = KarrasUniform(path.t_min, path.t_max)
        return torch.cat([low, high.at(Uniform(0.3, 1.0)(b - b // 2, rng))])

    def check(self, path: Path) -> None:
        """Accept every path, as every path has these times."""
