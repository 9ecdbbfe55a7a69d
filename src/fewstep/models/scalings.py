r"""Four scalars make a denoiser of a network: $D = c_{skip} x + c_{out} F(c_{in} x, c_{noise})$.

:meth:`Preconditioning.on` reads a network of one path on any other path.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fewstep.errors import UsageError
from fewstep.paths import Event, Path, Time


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
