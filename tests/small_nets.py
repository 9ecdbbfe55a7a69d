"""A small network of each kind, and how to ask it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewstep.models.nets import ADM, DDPMpp, NCSNpp, ResidualMLP
from oracles import normal

SMALL = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "classes": 3}
NETWORKS = {
    "mlp": lambda **o: ResidualMLP((2,), **{"width": 16, "blocks": 2, "classes": 3, **o}),
    "mlp-image": lambda **o: ResidualMLP((1, 4, 4), **{"width": 16, "classes": 3, **o}),
    "ddpmpp": lambda **o: DDPMpp((2, 8, 8), **{**SMALL, **o}),
    "ddpmpp-wide": lambda **o: DDPMpp((1, 4, 8), **{**SMALL, "classes": 0, "augment": 5, **o}),
    "ncsnpp": lambda **o: NCSNpp((2, 8, 8), **{**SMALL, "multipliers": (1, 2, 1), **o}),
    "ncsnpp-wide": lambda **o: NCSNpp((1, 4, 8), **{**SMALL, "classes": 0, "augment": 5, **o}),
    "adm": lambda **o: ADM((2, 8, 8), **{**SMALL, "channels": 64, "multipliers": (1, 1), **o}),
    "adm-wide": lambda **o: ADM(
        (1, 4, 8),
        **{**SMALL, "channels": 32, "attention": (2,), "classes": 0, "scale_shift": False, **o},
    ),
}


def shaken(network: nn.Module, seed: int = 0) -> nn.Module:
    """With no zero among its weights: fresh networks answer nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / max(1, p[0].numel()) ** 0.5)
    return network


def ask(network: Any, seed: int = 0, labels=(0, 1, 2), time: float = 0.3, **cond: Tensor) -> Tensor:
    x = normal(3, *network.options["shape"], seed=seed).float()
    if network.cond_keys:
        cond["label"] = torch.tensor(labels)
    return network(x, torch.full((3,), time), None, cond)
