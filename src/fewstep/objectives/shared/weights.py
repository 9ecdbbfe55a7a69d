"""Weights of losses, as functions of the signal-to-noise ratio (1/sigma^2 on VE) or of times."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SnrWeight = Callable[[Tensor], Tensor]


"""A function from (alpha/sigma)^2 to weights, each ``(b,)``."""


def unweighted(snr: Tensor) -> Tensor:
    """Return 1."""
    return torch.ones_like(snr)


def snr_weight(snr: Tensor) -> Tensor:
    """Return the ratio itself, the weight of noise prediction."""
    return snr


def snr_plus_one(snr: Tensor) -> Tensor:
    """Return snr + 1, the weight of v-prediction."""
    return snr + 1


def truncated_snr(snr: Tensor) -> Tensor:
    """Return max(snr, 1) (Salimans & Ho 2022)."""
    return snr.clamp(min=1)


def karras_weight(sigma_data: float) -> SnrWeight:
    """Make snr + 1/sigma_data^2: EDM's (sigma^2 + sigma_data^2)/(sigma sigma_data)^2."""
    return lambda snr: snr + sigma_data**-2


def min_snr(gamma: float = 5.0) -> SnrWeight:
    """Make min(snr, gamma) (Hang et al. 2023)."""
    return lambda snr: snr.clamp(max=gamma)


def equal_weight(t: Tensor, r: Tensor) -> Tensor:
    """1 for every pair of times."""
    return torch.ones_like(t)
