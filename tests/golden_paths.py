"""Paths of official code that are the library's at another pace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fewstep.paths import Coefficients, Path, Time


@dataclass(frozen=True)
class Retimed(Path):
    """A path of the library whose time is a function of this one's.

    Args:
        inner: the library's path.
        clock: a time to the inner time and its derivative.
        back: an inner time to the time.
    """

    inner: Path
    clock: Callable[[Time], tuple[Time, Time]]
    back: Callable[[Time], Time]

    def coefficients(self, t: Time) -> Coefficients:
        own, rate = self.clock(t)
        alpha, sigma, d_alpha, d_sigma = self.inner.coefficients(own)
        return Coefficients(alpha, sigma, rate * d_alpha, rate * d_sigma)

    def time(self, ratio: Time) -> Time:
        return self.back(self.inner.time(ratio))
