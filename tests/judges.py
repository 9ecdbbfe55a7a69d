"""Pictures and random weights for the tests of networks that judge."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def images(n: int = 3, side: int = 32, channels: int = 3, seed: int = 0) -> Tensor:
    """8-bit noise in [-1, 1]."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, channels, side, side), generator=rng).float() / 127.5 - 1


def scrambled(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and statistics, so that no part of a forward pass is the identity."""
    rng = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            drawn = torch.randn(value.shape, generator=rng)
            spread = max(1, value[0].numel()) ** 0.5 if value.ndim > 1 else 4
            value.copy_(drawn.abs() + 0.5 if name.endswith("var") else drawn / spread)
    return network.eval()
