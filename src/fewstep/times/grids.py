"""Step grids of samplers and discrete losses, and the laws of the intervals of a grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core import UsageError, widest
from fewstep.paths import Path


def karras(n: int, t_min: float, t_max: float, rho: float = 7.0) -> Tensor:
    """Make ``n`` times, from ``t_max``, uniform in t^(1/rho) (Karras et al. 2022, eq. 5)."""
    _at_least(n, 1)
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    high, low = t_max ** (1 / rho), t_min ** (1 / rho)
    grid = (high + ramp * (low - high)) ** rho
    # Rounding must not move the ends: t_min is where a consistency function is the identity.
    grid[-1], grid[0] = t_min, t_max
    return grid


def uniform(n: int, t_min: float, t_max: float) -> Tensor:
    """Make ``n`` equally spaced times from ``t_max`` to ``t_min``."""
    return karras(n, t_min, t_max, rho=1.0)


def log_snr(n: int, path: Path) -> Tensor:
    """Make ``n`` times that are equally spaced in the log signal-to-noise ratio (DPM-Solver).

    Raises:
        UsageError: the ratio is infinite at an end of the path.
    """
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
    """Compute s t / (1 + (s - 1) t): SD3's resolution shift of flow times; shifts multiply."""
    return by * t / (1 + (by - 1) * t)


def shifted_flow(n: int, by: float, t_min: float = 0.0, t_max: float = 1.0) -> Tensor:
    """Make ``n`` uniform flow times, then :func:`shift` them."""
    return shift(uniform(n, t_min, t_max), by)


def strided(n: int, entries: int = 1000) -> Tensor:
    """Make ``n`` DDIM steps of a table (LCM, PCM): each (entries // n)-th entry, and a last 0."""
    _at_least(n, 1)
    if 2 * n > entries:
        raise UsageError(f"a table of {entries} entries has at most {entries // 2} steps, got {n}")
    return to_zero(torch.arange(n, 0, -1, dtype=torch.float64) * (entries // n) - 1)


def thinned(times: Tensor, n: int) -> Tensor:
    """Choose ``n`` of N descending times: those at the places floor(i N / n) (LCM's scheduler).

    Of the 50 DDIM times of a table of 1000 these are 999, 759, 499 and 259 for n = 4.

    Args:
        times: ``(N,)``, all of them times at which a model may be called.
        n: from 1 to N.

    Raises:
        UsageError: there are fewer times than ``n``.
    """
    _at_least(n, 1)
    if n > len(times):
        raise UsageError(f"{len(times)} times cannot be thinned to {n}; take at most as many")
    # In floating point, as numpy's linspace: N/n is rounded before it is multiplied.
    places = torch.floor(torch.arange(n, dtype=torch.float64) * (len(times) / n)).long()
    return times[places.to(times.device)]


def to_zero(times: Tensor) -> Tensor:
    """Append a 0, with which samplers end on clean data."""
    return torch.cat([times, times.new_zeros(1)])


@dataclass(frozen=True)
class Phases:
    """A grid that is cut into phases of equally many intervals, but for rounding (PCM).

    Intervals are counted from the data; each phase ends on its edge, the lower end of its first.

    Args:
        grid: n descending times.
        count: number of phases, 1 to n - 1.
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
        """The number of intervals of the grid, one less than its points."""
        return len(self.grid) - 1

    def firsts(self) -> Tensor:
        """Return the first interval of each phase, ascending."""
        # In floating point, as the official code: n/m is rounded before it is multiplied.
        share = self.intervals / self.count
        return torch.floor(torch.arange(self.count, dtype=torch.float64) * share).long()

    def edges(self) -> Tensor:
        """Return the times at which phases end, descending; the last is the grid's."""
        return self.grid.flip(0)[self.firsts()].flip(0)

    def of(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(t, r, edge)`` of intervals ``(b,)``: both ends, and the end of the phase."""
        grid, (low, _) = self._ascending(index.device), self._bounds(index)
        return grid[index + 1], grid[index], grid[low]

    def within(self, index: Tensor, share: Tensor) -> Tensor:
        """Return times at ``share`` in [0, 1) of the way up an interval's phase, in grid points."""
        low, high = (end.to(share) for end in self._bounds(index))
        place = torch.lerp(low, high, share)
        grid, low = self._ascending(index.device), place.long().clamp(max=self.intervals - 1)
        return torch.lerp(grid[low], grid[low + 1], place - low)

    def _ascending(self, device: torch.device) -> Tensor:
        return self.grid.flip(0).to(device, widest(device))

    def _bounds(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return where in the ascending grid the phase of an interval begins and ends."""
        bounds = torch.cat([self.firsts(), torch.tensor([self.intervals])]).to(index.device)
        phase = torch.searchsorted(bounds, index, right=True)
        return bounds[phase - 1], bounds[phase]


def _at_least(n: int, least: int) -> None:
    if n < least:
        raise UsageError(f"a step grid needs at least {least} point(s), got {n}")


@dataclass(frozen=True)
class UniformIndex:
    """A uniform law of the intervals of an n-point grid (Song et al. 2023)."""

    def __call__(self, b: int, grid: Tensor, rng: torch.Generator) -> Tensor:
        """Draw indices ``(b,)`` in [0, n - 2]; interval i of the grid is (t_i, t_{i+1})."""
        return torch.randint(len(grid) - 1, (b,), generator=rng, device=rng.device)


@dataclass(frozen=True)
class DiscreteLogNormal:
    """The law of the intervals of a grid by their log-normal mass (Song & Dhariwal 2024, eq. 10).

    Args:
        mean, std: of log t.
    """

    mean: float = -1.1
    std: float = 2.0

    def mass(self, grid: Tensor) -> Tensor:
        """Compute the probability of each of the n - 1 intervals of a descending grid."""
        cdf = torch.erf((grid.log() - self.mean) / (math.sqrt(2) * self.std))
        mass = cdf[:-1] - cdf[1:]
        return mass / mass.sum()

    def __call__(self, b: int, grid: Tensor, rng: torch.Generator) -> Tensor:
        """Draw indices ``(b,)`` in [0, n - 2]."""
        mass = self.mass(grid).to(rng.device, widest(rng.device))
        return torch.multinomial(mass, b, replacement=True, generator=rng)
