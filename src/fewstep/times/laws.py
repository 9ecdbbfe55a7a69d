"""Laws of training times: what objectives take as ``times``, and the laws of a path's own times.

A law is either one of noise levels, which every path converts to its times, or one of times in the
unit of a path.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fewstep.core import UsageError, widest
from fewstep.paths import Path
from fewstep.times.grids import shift


class Law(ABC):
    """A law from which an objective draws the times at which it trains."""

    @abstractmethod
    def draw(self, path: Path, b: int, rng: torch.Generator) -> Tensor:
        """Draw times ``(b,)`` of the path, in its own unit."""

    @abstractmethod
    def check(self, path: Path) -> None:
        """Check that the path has all times of the law.

        Raises:
            UsageError: the law reaches beyond the path.
        """


class NoiseLevels(Law):
    """A law of noise levels sigma/alpha, which every path converts to its own times."""

    @abstractmethod
    def levels(self, b: int, rng: torch.Generator) -> Tensor:
        """Draw noise levels ``(b,)``."""

    def ends(self) -> tuple[float, float] | None:
        """Return the lowest and the highest level, or None if there are none."""
        return None

    def draw(self, path: Path, b: int, rng: torch.Generator) -> Tensor:
        """Draw the times ``(b,)`` at which the path has such levels."""
        return path.time(self.levels(b, rng))

    def check(self, path: Path) -> None:
        """Check that the path has all levels of the law."""
        if (ends := self.ends()) is not None:
            low, high = path.time(torch.tensor(ends, dtype=torch.float64)).tolist()
            _check_ends(self, path, low, high)


class PathTimes(Law):
    """A law of times in a path's own unit, such as uniform or logit-normal times of a flow.

    It is a function ``(b, rng) -> (b,)`` itself, which also draws guidance scales and other
    numbers.
    """

    @abstractmethod
    def __call__(self, b: int, rng: torch.Generator) -> Tensor:
        """Draw times ``(b,)``."""

    def ends(self) -> tuple[float, float] | None:
        """Return the first and the last time, or None if there are none."""
        return None

    def draw(self, path: Path, b: int, rng: torch.Generator) -> Tensor:
        """Draw times ``(b,)``, which the path takes as they are."""
        return self(b, rng)

    def check(self, path: Path) -> None:
        """Check that the path has all times of the law."""
        if (ends := self.ends()) is not None:
            _check_ends(self, path, *ends)


@dataclass(frozen=True)
class FromFunction(PathTimes):
    """A user's function as a law.

    Args:
        function: takes ``(b, rng)`` and returns times ``(b,)`` in the path's own unit; nothing
            checks them.
    """

    function: Callable[[int, torch.Generator], Tensor]

    def __call__(self, b: int, rng: torch.Generator) -> Tensor:
        """Draw times ``(b,)``."""
        return self.function(b, rng)


Times: TypeAlias = Law | Callable[[int, torch.Generator], Tensor]
"""What objectives take as ``times``: a law, or a function ``(b, rng)`` to times of the path."""


def law_on(path: Path, times: Times) -> Law:
    """Make the law of an objective's times, and check that its path has them.

    Raises:
        UsageError: the law reaches beyond the path, or draws two times.
    """
    if isinstance(times, TwoTimes):
        raise UsageError(f"{times} draws two times, and one is needed; give a law of one")
    law = times if isinstance(times, Law) else FromFunction(times)
    law.check(path)
    return law


def _check_ends(law: Law, path: Path, low: float, high: float) -> None:
    # Rounding may move the ends of a path that are converted from noise levels.
    if low < path.t_min * (1 - 1e-9) or high > path.t_max * (1 + 1e-9):
        raise UsageError(
            f"{law} draws times from {low:.4g} to {high:.4g}, and {path} has those from "
            f"{path.t_min:.4g} to {path.t_max:.4g}; give a law within them"
        )


@dataclass(frozen=True)
class Uniform(PathTimes):
    """The uniform law between ``low`` and ``high``."""

    low: float = 0.0
    high: float = 1.0

    def __call__(self, b: int, rng: torch.Generator) -> Tensor:
        """Draw times ``(b,)``."""
        return self.low + (self.high - self.low) * unit_uniform(b, rng)

    def ends(self) -> tuple[float, float]:
        """Return both arguments."""
        return self.low, self.high


@dataclass(frozen=True)
class LogitNormal(PathTimes):
    """The law logit t ~ N(mean, std^2), then shifted: flow matching's times (Esser et al. 2024).

    Args:
        mean, std: of logit t.
        shift: factor on t / (1 - t), see :func:`fewstep.times.shift`.
    """

    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __call__(self, b: int, rng: torch.Generator) -> Tensor:
        """Draw times ``(b,)`` in (0, 1)."""
        return shift((self.mean + self.std * unit_normal(b, rng)).sigmoid(), self.shift)


@dataclass(frozen=True)
class TwoTimes:
    """The law of two times r <= t of a path; the defaults are MeanFlow's on ImageNet.

    Each sample has r = t by a draw of its own; the JAX code gives r = t to the first rows instead.

    Args:
        t, r: laws of the two times. On CIFAR-10: logit-normal (-2, 2) for both in the paper,
            (-0.6, 1.6) and (-4, 1.6) later.
        equal: share of samples with r = t, in [0, 1]. It is ``data_proportion`` of the JAX code;
            the PyTorch code's ``ratio`` is 1 less this.
        swap: the later of the two is t, the earlier r; otherwise t limits r (CIFAR-10, later).
    """

    t: PathTimes | Callable[[int, torch.Generator], Tensor] = LogitNormal(-0.4, 1.0)
    r: PathTimes | Callable[[int, torch.Generator], Tensor] = LogitNormal(-0.4, 1.0)
    equal: float = 0.75
    swap: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.equal <= 1:
            raise UsageError(f"equal is the share of samples with r = t, in [0, 1]: {self.equal}")
        for law in (self.t, self.r):
            if not callable(law):
                raise UsageError(
                    f"TwoTimes draws times in the path's own unit, and {law} draws noise levels; "
                    "give a law of times, e.g. LogitNormal()"
                )

    def __call__(self, b: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw ``(t, r)``, each ``(b,)``."""
        t, r = self.t(b, rng), self.r(b, rng)
        if self.swap:
            t, r = torch.maximum(t, r), torch.minimum(t, r)
        equal = torch.rand(b, generator=rng, device=rng.device) < self.equal
        return t, torch.where(equal, t, torch.minimum(t, r))

    def check(self, path: Path) -> None:
        """Check that the path has all times of both laws."""
        law_on(path, self.t)
        law_on(path, self.r)


def unit_uniform(b: int, rng: torch.Generator) -> Tensor:
    """Draw numbers ``(b,)`` of U(0, 1), float64 where the device has it."""
    return torch.rand(b, generator=rng, device=rng.device, dtype=widest(rng.device))


def unit_normal(b: int, rng: torch.Generator) -> Tensor:
    """Draw numbers ``(b,)`` of N(0, 1), float64 where the device has it."""
    return torch.randn(b, generator=rng, device=rng.device, dtype=widest(rng.device))
