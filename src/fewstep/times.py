"""Which times: step grids for samplers and discrete losses, and the laws training draws from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.core import UsageError, widest
from fewstep.paths import Path, VarianceExploding

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


def strided(n: int, entries: int = 1000) -> Tensor:
    """``n`` DDIM steps of a table (LCM, PCM): each (entries // n)-th entry, and a last 0."""
    _at_least(n, 1)
    if 2 * n > entries:
        raise UsageError(f"a table of {entries} entries has at most {entries // 2} steps, got {n}")
    return to_zero(torch.arange(n, 0, -1, dtype=torch.float64) * (entries // n) - 1)


def to_zero(times: Tensor) -> Tensor:
    """The grid with a final 0, where samplers end on clean data."""
    return torch.cat([times, times.new_zeros(1)])


@dataclass(frozen=True)
class Phases:
    """A grid cut into phases of equally many intervals, but for rounding (PCM).

    Intervals are counted from the data; each phase ends on its edge, the lower end of its first.

    Args:
        grid: n descending times.
        count: of phases, 1 to n - 1.
    """

    grid: Tensor
    count: int

    def __post_init__(self) -> None:
        if self.grid.ndim != 1 or not bool((self.grid.diff() < 0).all()):
            raise UsageError(f"phases need a grid of descending times, got {self.grid}")
        if not 1 <= self.count <= self.intervals:
            raise UsageError(
                f"{len(self.grid)} times can be cut into 1 to {self.intervals} phases, got "
                f"{self.count}"
            )

    @property
    def intervals(self) -> int:
        """Of the grid: one less than its points."""
        return len(self.grid) - 1

    def firsts(self) -> Tensor:
        """The first interval of each phase, ascending."""
        # In floating point, as the official code: n/m is rounded before it is multiplied.
        share = self.intervals / self.count
        return torch.floor(torch.arange(self.count, dtype=torch.float64) * share).long()

    def edges(self) -> Tensor:
        """The times at which phases end, descending; the last is the grid's."""
        return self.grid.flip(0)[self.firsts()].flip(0)

    def of(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(t, r, edge)`` of intervals ``(b,)``: both ends, and the end of its phase."""
        grid, (low, _) = self._ascending(index.device), self._bounds(index)
        return grid[index + 1], grid[index], grid[low]

    def within(self, index: Tensor, share: Tensor) -> Tensor:
        """Times at ``share`` in [0, 1) of the way up an interval's phase, on the grid's scale."""
        low, high = (end.to(share) for end in self._bounds(index))
        place = torch.lerp(low, high, share)
        grid, low = self._ascending(index.device), place.long().clamp(max=self.intervals - 1)
        return torch.lerp(grid[low], grid[low + 1], place - low)

    def _ascending(self, device: torch.device) -> Tensor:
        return self.grid.flip(0).to(device, widest(device))

    def _bounds(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Where in the ascending grid the phase of an interval begins and ends."""
        bounds = torch.cat([self.firsts(), torch.tensor([self.intervals])]).to(index.device)
        phase = torch.searchsorted(bounds, index, right=True)
        return bounds[phase - 1], bounds[phase]


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

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 <= self.std < math.inf):
            raise UsageError(f"expected a finite mean and a std of 0 or more, got {self}")

    def __call__(self, b: int, rng: torch.Generator) -> Tensor:
        """Times ``(b,)``."""
        return (self.mean + self.std * _randn(b, rng)).exp()


@dataclass(frozen=True)
class TruncatedLogStudent:
    r"""log t ~ Student's t in [low, high]: truncated consistency models' times.

    With log t = mean + scale sqrt(df) sinh(u) the density of u is cosh(u)^-df, smooth however heavy
    the tails are (0.01 degrees of freedom in the paper), so a table inverts its integral.
    """

    low: float = 1.0
    high: float = 80.0
    mean: float = 0.0
    scale: float = 0.2
    df: float = 0.01

    def __call__(self, b: int, rng: torch.Generator) -> Tensor:
        """Times ``(b,)``."""
        width = self.scale * math.sqrt(self.df)
        low, high = (math.asinh((math.log(t) - self.mean) / width) for t in (self.low, self.high))
        draw = _rand(b, rng)
        u = torch.linspace(low, high, 4097, dtype=draw.dtype, device=draw.device)
        mass = F.pad(torch.cumulative_trapezoid(u.cosh() ** -self.df, u), (1, 0))
        wanted = draw * mass[-1]
        i = torch.searchsorted(mass, wanted, right=True).clamp(1, len(u) - 1)
        part = (wanted - mass[i - 1]) / (mass[i] - mass[i - 1])
        log_t = self.mean + width * torch.lerp(u[i - 1], u[i], part).sinh()
        return log_t.exp().clamp(self.low, self.high)


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
class TwoTimes:
    """Two times r <= t; the defaults are MeanFlow's on ImageNet.

    Each sample has r = t by a draw of its own; the JAX code gives r = t to the first rows instead.

    Args:
        t, r: laws of two times. On CIFAR-10: logit-normal (-2, 2) for both in the paper,
            (-0.6, 1.6) and (-4, 1.6) later.
        equal: share of samples with r = t. ``data_proportion`` of the JAX code; the PyTorch code's
            ``ratio`` is 1 less this.
        swap: the later of the two is t, the earlier r; else r is cut off at t (CIFAR-10, later).
    """

    t: Callable[[int, torch.Generator], Tensor] = LogitNormal(-0.4, 1.0)
    r: Callable[[int, torch.Generator], Tensor] = LogitNormal(-0.4, 1.0)
    equal: float = 0.75
    swap: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.equal <= 1:
            raise UsageError(f"equal is the share of samples with r = t, in [0, 1]: {self.equal}")

    def __call__(self, b: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """``(t, r)``, each ``(b,)``."""
        t, r = self.t(b, rng), self.r(b, rng)
        if self.swap:
            t, r = torch.maximum(t, r), torch.minimum(t, r)
        equal = torch.rand(b, generator=rng, device=rng.device) < self.equal
        return t, torch.where(equal, t, torch.minimum(t, r))


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
class KarrasIndex:
    """A point of Karras's grid, each between two indices as likely; counted from the data.

    The defaults are the noise levels at which distribution matching compares scores (DMD); a score
    of generated samples is learnt at all of them, ``KarrasIndex(0, 999)``.
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
        """All points, ascending."""
        return karras(self.points, self.t_min, self.t_max).flip(0)

    def __call__(self, b: int, rng: torch.Generator) -> Tensor:
        """Times ``(b,)``."""
        index = torch.randint(self.first, self.last + 1, (b,), generator=rng, device=rng.device)
        return self.grid().to(rng.device, widest(rng.device))[index]


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
class OnPath:
    """sigma/alpha by ``law``, as a time of ``path``: sCM's times are a log-normal's on Trig."""

    path: Path
    law: Callable[[int, torch.Generator], Tensor]

    def __call__(self, b: int, rng: torch.Generator) -> Tensor:
        """Times ``(b,)``."""
        return self.path.time(self.law(b, rng))


@dataclass(frozen=True)
class ShiftedFlow:
    """sigma/alpha at uniform times of rectified flow, shifted: rCM's noise levels of samples."""

    by: float = 5.0

    def __call__(self, b: int, rng: torch.Generator) -> Tensor:
        """Noise levels ``(b,)``."""
        t = _rand(b, rng)
        return self.by * t / (1 - t)


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


LEVELS = LogUniform, LogNormal, TruncatedLogStudent, KarrasUniform, KarrasIndex, ShiftedFlow
"""Laws of noise levels, which are times of the variance-exploding path alone."""


def check_laws(path: Path, *laws: object) -> None:
    """That laws draw times of a path; a callable that is none of these is taken at its word.

    Raises:
        UsageError: one draws noise levels where these are no times, or is another path's.
    """
    for law in laws:
        if isinstance(law, LEVELS) and not isinstance(path, VarianceExploding):
            raise UsageError(
                f"{law} draws noise levels, which are no times of {path}; give all laws of times "
                f"for it, e.g. fewstep.times.OnPath(path, {type(law).__name__}())"
            )
        ends = _ends(law)
        outside = ends and (ends[0] < path.t_min * (1 - 1e-9) or ends[1] > path.t_max * (1 + 1e-9))
        if outside or (isinstance(law, OnPath | HalfHigh) and law.path != path):
            drawn = "times" if ends is None else "times of {:.4g} to {:.4g}".format(*ends)
            raise UsageError(f"{law} draws {drawn}, and not of {path}; give one for this path")


def _ends(law: object) -> tuple[float, float] | None:
    """The first and last time of a law that has them."""
    match law:
        case Uniform() | LogUniform() | TruncatedLogStudent():
            return law.low, law.high
        case KarrasUniform():
            return law.t_min, law.t_max
        case KarrasIndex():
            grid = law.grid()
            return float(grid[law.first]), float(grid[law.last])
        case OnPath() if levels := _ends(law.law):
            low, high = law.path.time(torch.tensor(levels, dtype=torch.float64)).tolist()
            return low, high
    return None


def _rand(b: int, rng: torch.Generator) -> Tensor:
    return torch.rand(b, generator=rng, device=rng.device, dtype=widest(rng.device))


def _randn(b: int, rng: torch.Generator) -> Tensor:
    return torch.randn(b, generator=rng, device=rng.device, dtype=widest(rng.device))
