"""Flow maps learn: one- and two-call samples of a two-mode mixture have its moments and modes."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fewstep
from fewstep.core import Cond
from fewstep.data import toy
from fewstep.data.toys import two_modes
from fewstep.models import EDM, Denoiser, Flow, TrigFlow
from fewstep.models.nets import ResidualMLP
from fewstep.models.nets.blocks import FourierEmbedding
from fewstep.objectives.base import Objective
from fewstep.objectives.ctm import ConsistencyTrajectory
from fewstep.objectives.flowmap import FlowMap
from fewstep.objectives.imm import InductiveMomentMatching
from fewstep.objectives.shared.weights import karras_weight
from fewstep.paths import Linear, Trig, VarianceExploding
from fewstep.recipes import TrainConfig
from fewstep.times import HalfHigh, karras
from fewstep.training.averages import constant
from fewstep.training.config import Run
from oracles import MixtureDenoiser
from test_learns import check


class TwoTimes(nn.Module):
    """A user's own network of points that reads both times: residual blocks shifted by them."""

    cond_keys: tuple[str, ...] = ()
    two_time = True

    def __init__(self, width: int = 128, blocks: int = 3) -> None:
        super().__init__()
        self.times = nn.ModuleList(
            nn.Sequential(FourierEmbedding(32, 1.0), nn.Linear(32, width)) for _ in range(2)
        )
        self.first, self.last = nn.Linear(2, width), nn.Linear(width, 2)
        self.shifts = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        nn.init.zeros_(self.last.weight)

    def forward(
        self, x: Tensor, c_noise: Tensor, s_noise: Tensor | None = None, cond: Cond | None = None
    ) -> Tensor:
        assert s_noise is not None
        when = F.silu(self.times[0](c_noise) + self.times[1](s_noise))
        h = self.first(x)
        for shift, block in zip(self.shifts, self.blocks, strict=True):
            h = h + block(F.silu(h + shift(when)))
        return self.last(F.silu(h))


def learnt(objective: Objective, out: Path, **train) -> fewstep.Model:
    settings = {"schedule": "linear", "warmup": 100, "sample_every": 0, **train}
    run = Run(
        recipe="own",
        arguments={},
        objective=objective,
        data=toy("two-modes"),
        config=TrainConfig(**settings),
        averages={"ema": constant(0.99)},
    )
    return fewstep.train(run, out)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["eulerian", "lagrangian"])
def test_flow_maps_have_the_moments_and_modes(kind, tmp_path):
    path = Linear(0.01, 0.99)
    torch.manual_seed(0)
    student = Denoiser(TwoTimes(), Flow(path=path))
    # The warm-up is also what teaches the network the teacher's velocity; c is on the scale of
    # tangents in two dimensions.
    teacher = MixtureDenoiser(path, two_modes())
    objective = FlowMap(student, teacher, kind=kind, warmup=600, c=1.0)
    model = learnt(objective, tmp_path / kind, steps=1200, lr=2e-3, batch=256)
    for steps in (1, 2, 4):
        check(model, steps, moment=0.05, share=0.03, inside=0.9)


@pytest.mark.slow
def test_inductive_moment_matching_has_the_moments_and_modes(tmp_path):
    path = Trig(0.01, 1.56)
    torch.manual_seed(0)
    student = Denoiser(TwoTimes(), TrigFlow(path=path))
    objective = InductiveMomentMatching(student, sigma_data=0.5)
    model = learnt(objective, tmp_path / "imm", steps=2500, lr=1e-3, batch=512)
    # The kernel's kink pushes the modes apart by a tenth, and their shares wander by some per cent.
    for steps in (1, 2, 4):
        check(model, steps, moment=0.1, share=0.1, inside=0.9)


@pytest.mark.slow
def test_consistency_trajectories_have_the_moments_and_modes(tmp_path):
    path = VarianceExploding()
    torch.manual_seed(0)
    net = ResidualMLP((2,), width=128, blocks=3, two_time=True)
    student = Denoiser(net, EDM(sigma_data=0.5, path=path))
    objective = ConsistencyTrajectory(
        student,
        MixtureDenoiser(path, two_modes()),
        grid=karras(18, path.t_min, path.t_max),
        solver_steps=17,
        times=HalfHigh(),
        weight=karras_weight(0.5),
        rate=0.99,
    )
    model = learnt(objective, tmp_path / "ctm", steps=3000, lr=1e-3)
    for steps in (1, 2, 4):
        check(model, steps, moment=0.05, share=0.03, inside=0.9)
