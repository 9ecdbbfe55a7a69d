"""What a network predicts on its path: noise, clean data, v, both, or a velocity."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.core import expand
from fewstep.models.scalings import Preconditioning, Scalings
from fewstep.paths import Event, Linear, Path, Time, Trig, VariancePreserving


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
