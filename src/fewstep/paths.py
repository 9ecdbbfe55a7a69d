r"""Noise processes $x_t = \alpha_t x_0 + \sigma_t \epsilon$.

A path knows its two coefficients and their time derivatives; perturbing, converting between
predictions and moving along the path follow. Time is ``(b,)``, runs from data (0) to noise
(``t_max``), and conversions hold wherever they do not divide by zero: ``t > 0`` for the noise and
the score, and ``alpha > 0`` for what divides by the signal.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core import UsageError, expand

Time: TypeAlias = Float[Tensor, " b"]
Event: TypeAlias = Float[Tensor, " b *event"]


class Coefficients(NamedTuple):
    r"""$\alpha_t$, $\sigma_t$ and their time derivatives, each ``(b,)``."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


@dataclass(frozen=True)
class Path(ABC):
    """A Gaussian noise process with times in ``[t_min, t_max]``."""

    t_min: float
    t_max: float

    def __post_init__(self) -> None:
        if not 0 <= self.t_min < self.t_max:
            raise UsageError(
                f"{type(self).__name__}: expected 0 <= t_min < t_max, "
                f"got t_min={self.t_min}, t_max={self.t_max}"
            )

    @abstractmethod
    def coefficients(self, t: Time) -> Coefficients:
        """The four coefficients at ``t``."""

    @abstractmethod
    def time(self, ratio: Time) -> Time:
        """The time at which sigma/alpha equals ``ratio``: the inverse of :meth:`ratio`."""

    def ratio(self, t: Time) -> Time:
        """sigma/alpha, what an EDM-style model would call sigma; inf where alpha is 0."""
        alpha, sigma, _, _ = self.coefficients(t)
        return sigma / alpha

    def snr(self, t: Time) -> Time:
        """(alpha/sigma)^2."""
        return self.ratio(t) ** -2

    def logsnr(self, t: Time) -> Time:
        """2 log(alpha/sigma), decreasing in ``t``."""
        return -2 * self.ratio(t).log()

    def start_std(self, sigma_data: float = 0.0) -> float:
        """Standard deviation of ``x`` at ``t_max``; official samplers leave the data out of it."""
        alpha, sigma, _, _ = self.coefficients(torch.tensor([self.t_max], dtype=torch.float64))
        return math.hypot(float(alpha) * sigma_data, float(sigma))

    # Moving along the path.

    def perturb(self, x0: Event, noise: Event, t: Time) -> Event:
        """alpha x0 + sigma noise."""
        alpha, sigma, _, _ = self.coefficients(t)
        return expand(alpha, x0) * x0 + expand(sigma, x0) * noise

    def renoise(self, x: Event, noise: Event, t: Time, s: Time | None = None) -> Event:
        """From a sample at ``s`` (``t_min``) to one at ``t``; on VE, x + sqrt(t^2 - s^2) noise.

        Noising with ``sigma`` alone, as if ``x`` were clean, leaves too much variance.
        """
        alpha, sigma, _, _ = self.coefficients(t)
        alpha_s, sigma_s, _, _ = self.coefficients(
            torch.full_like(t, self.t_min) if s is None else s
        )
        scale = alpha / alpha_s
        std = (sigma**2 - (scale * sigma_s) ** 2).clamp(min=0).sqrt()
        return expand(scale, x) * x + expand(std, x) * noise

    def transport(self, x_t: Event, x0: Event, t: Time, s: Time) -> Event:
        """Keep the noise implied by ``(x_t, x0)`` and move it to ``s``: one DDIM step."""
        alpha_s, sigma_s, _, _ = self.coefficients(s)
        alpha_t, sigma_t, _, _ = self.coefficients(t)
        keep = sigma_s / sigma_t
        return expand(keep, x_t) * x_t + expand(alpha_s - keep * alpha_t, x_t) * x0

    # What a denoiser's answer is in other words.

    def noise(self, x_t: Event, x0: Event, t: Time) -> Event:
        """(x_t - alpha x0) / sigma."""
        alpha, sigma, _, _ = self.coefficients(t)
        return (x_t - expand(alpha, x_t) * x0) / expand(sigma, x_t)

    def score(self, x_t: Event, x0: Event, t: Time) -> Event:
        """-noise / sigma."""
        _, sigma, _, _ = self.coefficients(t)
        return -self.noise(x_t, x0, t) / expand(sigma, x_t)

    def v(self, x_t: Event, x0: Event, t: Time) -> Event:
        """alpha noise - sigma x0 (Salimans & Ho 2022)."""
        alpha, sigma, _, _ = self.coefficients(t)
        return expand(alpha, x_t) * self.noise(x_t, x0, t) - expand(sigma, x_t) * x0

    def velocity(self, x_t: Event, x0: Event, t: Time) -> Event:
        """dx/dt of the probability-flow ODE: d_alpha x0 + d_sigma noise."""
        alpha, sigma, d_alpha, d_sigma = self.coefficients(t)
        rate = d_sigma / sigma
        return expand(rate, x_t) * x_t + expand(d_alpha - rate * alpha, x_t) * x0

    def x0_from_noise(self, x_t: Event, noise: Event, t: Time) -> Event:
        """Inverse of :meth:`noise`."""
        alpha, sigma, _, _ = self.coefficients(t)
        return (x_t - expand(sigma, x_t) * noise) / expand(alpha, x_t)

    def x0_from_score(self, x_t: Event, score: Event, t: Time) -> Event:
        """Inverse of :meth:`score` (Tweedie)."""
        alpha, sigma, _, _ = self.coefficients(t)
        return (x_t + expand(sigma**2, x_t) * score) / expand(alpha, x_t)

    def x0_from_v(self, x_t: Event, v: Event, t: Time) -> Event:
        """Inverse of :meth:`v`, also where alpha^2 + sigma^2 is not 1."""
        alpha, sigma, _, _ = self.coefficients(t)
        power = alpha**2 + sigma**2
        return expand(alpha / power, x_t) * x_t - expand(sigma / power, x_t) * v

    def x0_from_velocity(self, x_t: Event, velocity: Event, t: Time) -> Event:
        """Inverse of :meth:`velocity`: (d_sigma x - sigma u) / (alpha d_sigma - d_alpha sigma)."""
        alpha, sigma, d_alpha, d_sigma = self.coefficients(t)
        wronskian = alpha * d_sigma - d_alpha * sigma
        return expand(d_sigma / wronskian, x_t) * x_t - expand(sigma / wronskian, x_t) * velocity


@dataclass(frozen=True)
class VarianceExploding(Path):
    """x0 + t noise; time is the noise level (Karras et al. 2022)."""

    t_min: float = 0.002
    t_max: float = 80.0

    def coefficients(self, t: Time) -> Coefficients:
        """1, t."""
        one = torch.ones_like(t)
        return Coefficients(one, t, torch.zeros_like(t), one)

    def time(self, ratio: Time) -> Time:
        """The ratio itself."""
        return ratio


@dataclass(frozen=True)
class VariancePreserving(Path):
    """Continuous VP with beta(t) = beta_min + beta_d t (Song et al. 2021)."""

    t_min: float = 1e-5
    t_max: float = 1.0
    beta_d: float = 19.9
    beta_min: float = 0.1

    def coefficients(self, t: Time) -> Coefficients:
        """Alpha = exp(-b/2) with b the integral of beta; sigma by expm1, exact near data."""
        integral = 0.5 * self.beta_d * t**2 + self.beta_min * t
        alpha, sigma = (-0.5 * integral).exp(), (-torch.expm1(-integral)).sqrt()
        d_alpha = -0.5 * (self.beta_d * t + self.beta_min) * alpha
        return Coefficients(alpha, sigma, d_alpha, -alpha * d_alpha / sigma)

    def time(self, ratio: Time) -> Time:
        """Root of the quadratic integral(t) = log(1 + ratio^2)."""
        integral = torch.log1p(ratio**2)
        return (
            (self.beta_min**2 + 2 * self.beta_d * integral).sqrt() - self.beta_min
        ) / self.beta_d


@dataclass(frozen=True)
class CosineVariancePreserving(Path):
    """VP with alpha = cos(pi t / 2): the cosine schedule as Salimans & Ho (2022) use it."""

    t_min: float = 1e-4
    t_max: float = 1 - 1e-4

    def coefficients(self, t: Time) -> Coefficients:
        """cos, sin of the angle pi t / 2."""
        angle = t * (math.pi / 2)
        alpha, sigma = angle.cos(), angle.sin()
        return Coefficients(alpha, sigma, -math.pi / 2 * sigma, math.pi / 2 * alpha)

    def time(self, ratio: Time) -> Time:
        """Angle over pi / 2."""
        return ratio.atan() / (math.pi / 2)


@dataclass(frozen=True)
class DiscreteVariancePreserving(Path):
    """A table of betas (DDPM; Stable Diffusion's "scaled-linear"); time is the table's index.

    Between entries the log signal-to-noise ratio is linear, so that samplers may stop anywhere.

    Args:
        t_min: first index.
        t_max: last index used; defaults to the last entry.
        steps: entries of the table.
        beta_start, beta_end: first and last beta.
        scaled_linear: sqrt(beta) is linear in the index instead of beta.
    """

    t_min: float = 0.0
    t_max: float = 999.0
    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    scaled_linear: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.t_max <= self.steps - 1 and 0 < self.beta_start <= self.beta_end < 1):
            raise UsageError(
                f"DiscreteVariancePreserving: expected t_max <= steps - 1 and "
                f"0 < beta_start <= beta_end < 1, got {self}"
            )

    def _half_logsnr(self, like: Tensor) -> Tensor:
        """log(alpha/sigma) of every entry, computed in float64, on the device of ``like``."""
        power = 0.5 if self.scaled_linear else 1.0
        ends = (self.beta_start**power, self.beta_end**power)
        betas = torch.linspace(*ends, self.steps, dtype=torch.float64) ** (1 / power)
        log_alpha_bar = torch.log1p(-betas).cumsum(0)
        return (0.5 * (log_alpha_bar - (-torch.expm1(log_alpha_bar)).log())).to(like)

    def coefficients(self, t: Time) -> Coefficients:
        """By interpolation in the log ratio; one-sided derivatives at the entries."""
        table = self._half_logsnr(t)
        low = t.floor().clamp(0, self.steps - 2).long()
        slope = table[low + 1] - table[low]
        half = table[low] + slope * (t - low)
        alpha, sigma = torch.sigmoid(2 * half).sqrt(), torch.sigmoid(-2 * half).sqrt()
        return Coefficients(alpha, sigma, alpha * sigma**2 * slope, -sigma * alpha**2 * slope)

    def time(self, ratio: Time) -> Time:
        """By the place in the decreasing table."""
        table = self._half_logsnr(ratio)
        half = -ratio.log()
        # Counted, because ONNX has no search in a sorted table.
        low = ((table > half[..., None]).sum(-1) - 1).clamp(0, self.steps - 2)
        return low + (half - table[low]) / (table[low + 1] - table[low])


@dataclass(frozen=True)
class Linear(Path):
    """(1 - t) x0 + t noise: rectified flow, with noise at 1 (SD3, Flux)."""

    t_min: float = 0.0
    t_max: float = 1.0

    def coefficients(self, t: Time) -> Coefficients:
        """1 - t, t."""
        one = torch.ones_like(t)
        return Coefficients(1 - t, t, -one, one)

    def time(self, ratio: Time) -> Time:
        """r / (1 + r), and 1 at r = inf."""
        return 1 / (1 + 1 / ratio)


@dataclass(frozen=True)
class Trig(Path):
    """cos(t) x0 + sin(t) sigma_data noise (TrigFlow, Lu & Song 2025)."""

    t_min: float = 0.0
    t_max: float = math.pi / 2
    sigma_data: float = 0.5

    def coefficients(self, t: Time) -> Coefficients:
        """cos t, sigma_data sin t."""
        cos, sin = t.cos(), t.sin()
        return Coefficients(cos, self.sigma_data * sin, -sin, self.sigma_data * cos)

    def time(self, ratio: Time) -> Time:
        """atan(r / sigma_data)."""
        return (ratio / self.sigma_data).atan()


PATHS: dict[str, type[Path]] = {
    "ve": VarianceExploding,
    "vp": VariancePreserving,
    "vp_cosine": CosineVariancePreserving,
    "vp_discrete": DiscreteVariancePreserving,
    "linear": Linear,
    "trig": Trig,
}
