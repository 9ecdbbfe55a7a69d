"""Small diffusion models with random weights."""

from __future__ import annotations

import torch

from fewstep.contract import DataSpec
from fewstep.model import Model
from fewstep.models import EDM, Denoiser
from fewstep.models.nets import DDPMpp, ResidualMLP
from fewstep.objectives.denoising import Denoising
from fewstep.objectives.shared.drop import ConditionDrop
from fewstep.objectives.shared.weights import unweighted
from fewstep.times import LogNormal


def points(seed: int = 0) -> Model:
    """A diffusion model of points that knows no labels."""
    torch.manual_seed(seed)
    net = ResidualMLP((2,), 8, 1)
    torch.nn.init.normal_(net.last.weight)
    student = Denoiser(net, EDM(sigma_data=0.5))
    learnt = Denoising(student, times=LogNormal(), weight=unweighted)
    return Model(student, learnt.contract(DataSpec(shape=(2,), range=None)))


def pictures(seed: int = 0) -> Model:
    """One of pictures in three classes, which can be guided."""
    torch.manual_seed(seed)
    net = DDPMpp((1, 8, 8), 8, (1, 1), 1, (4,), classes=3)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    student = Denoiser(net, EDM(sigma_data=0.5))
    drop = ConditionDrop(0.1, {"label": 3})
    learnt = Denoising(student, times=LogNormal(), weight=unweighted, drop=drop)
    return Model(student, learnt.contract(DataSpec(shape=(1, 8, 8), labels=3)))
