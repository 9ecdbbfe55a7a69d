"""Networks as users write them, and the small run that trains one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.data import Arrays
from fewstep.models import EDM, Denoiser
from fewstep.objectives.denoising import Denoising
from fewstep.objectives.shared.weights import karras_weight
from fewstep.times import LogNormal
from fewstep.training.averages import warmed
from fewstep.training.config import Run
from tiny import settings

POINTS = Arrays(np.random.default_rng(1).normal(size=(300, 2)).astype(np.float32))


class Net(nn.Module):
    """Two layers."""

    cond_keys = ()
    two_time = False

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

    def hidden(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return F.silu(self.a(torch.cat([x, c_noise[:, None]], 1)))

    def forward(self, x: Tensor, c_noise: Tensor, s_noise: Any = None, cond: Any = None) -> Tensor:
        return self.b(self.hidden(x, c_noise))


class Frozen(Net):
    """Its first layer is to stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a.requires_grad_(False)


class Fourier(Net):
    """A table of frequencies that is a parameter, and a whole number that is one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(8), requires_grad=False)
        self.count = nn.Parameter(torch.tensor([3, 4]), requires_grad=False)

    def forward(self, x: Tensor, c_noise: Tensor, s_noise: Any = None, cond: Any = None) -> Tensor:
        h = self.hidden(x, c_noise) + torch.cos(self.table * c_noise[:, None] + self.count[0])
        return self.b(h)


class Tied(Net):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.d = nn.Linear(8, 8), nn.Linear(8, 8)
        self.d.weight = self.c.weight

    def forward(self, x: Tensor, c_noise: Tensor, s_noise: Any = None, cond: Any = None) -> Tensor:
        return self.b(self.d(F.silu(self.c(self.hidden(x, c_noise)))))


class TwoNames(Tied):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.d = self.c


class Views(Net):
    """A buffer that is a part of another, and one of a single expanded number."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.arange(16.0))
        self.register_buffer("part", self.grid[:8])
        self.register_buffer("same", self.grid)
        self.register_buffer("scale", torch.tensor([0.5]).expand(8))

    def forward(self, x: Tensor, c_noise: Tensor, s_noise: Any = None, cond: Any = None) -> Tensor:
        if self.training:
            self.grid.add_(1.0)
        return self.b(self.hidden(x, c_noise) * self.scale + self.part / 100)


ALL = {"frozen": Frozen, "fourier": Fourier, "tied": Tied, "two names": TwoNames, "views": Views}


def made(kind: type[Net], seed: int = 0) -> Net:
    """The network, with the same weights for the same seed."""
    torch.manual_seed(seed)
    return kind()


def run_of(network: nn.Module, *, averages: bool = True, data: Any = POINTS, **train: Any) -> Run:
    """A few steps of a diffusion model on points."""
    student = Denoiser(network, EDM(sigma_data=0.5))
    return Run(
        recipe="own",
        arguments={},
        objective=Denoising(student, times=LogNormal(), weight=karras_weight(0.5)),
        data=data,
        config=settings(**{"steps": 4, "save_every": 2, **train}),
        averages={"ema": warmed(0.9)} if averages else {},
    )
