"""With a mask, every method's losses are those of what the mask leaves, however it is cut off.

Denoisers here answer elementwise, so what is masked could enter by a loss alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.core import Batch, Rng, expand
from fewstep.models import AbstractDenoiser
from fewstep.objectives import ect, tcm
from fewstep.objectives.base import Objective
from fewstep.objectives.consistency import Consistency, Fixed, SameNoise, TeacherStep
from fewstep.objectives.consistency_continuous import ContinuousConsistency
from fewstep.objectives.ctm import ConsistencyTrajectory
from fewstep.objectives.denoising import Denoising
from fewstep.objectives.diff_instruct import DiffInstruct
from fewstep.objectives.dmd import DMD
from fewstep.objectives.dmd2 import DMD2
from fewstep.objectives.ect import EasyConsistency
from fewstep.objectives.f_distill import FDistill
from fewstep.objectives.flow_matching import FlowMatching
from fewstep.objectives.flowmap import FlowMap
from fewstep.objectives.ict import ImprovedConsistency
from fewstep.objectives.ladd import LADD
from fewstep.objectives.lcm import LatentConsistency
from fewstep.objectives.meanflow import AdaptiveWeight, MeanFlow
from fewstep.objectives.pcm import PhasedConsistency
from fewstep.objectives.progressive import ProgressiveDistillation
from fewstep.objectives.rcm import RCM
from fewstep.objectives.scm import SCM
from fewstep.objectives.shared.distances import Huber, PseudoHuber, l1, l2
from fewstep.objectives.shared.matching import FewSteps
from fewstep.objectives.shared.weights import karras_weight
from fewstep.objectives.shortcut import Shortcut
from fewstep.objectives.sid import SiD
from fewstep.objectives.tcm import TruncatedConsistency
from fewstep.paths import DiscreteVariancePreserving, Linear, Trig, VarianceExploding
from fewstep.times import KarrasUniform, LogNormal, Phases, TwoTimes, Uniform, karras, strided
from oracles import GaussianConsistency, GaussianDenoiser, Offset, normal

VE, CLEAN, FLOW, TRIG = VarianceExploding(), VarianceExploding(0.0), Linear(), Trig(0.0, 1.4)
TABLE = DiscreteVariancePreserving()
B, LONG, SHORT = 8, 5, 2
SHAPE = (B, 1, LONG)
WEIGHT, ONE_CALL = karras_weight(0.5), FewSteps((2.5,))


class Elementwise(Offset):
    """A wrong denoiser, at whose offset terms can be weighed."""

    @property
    def last_weight(self) -> Tensor:
        return self.offset


class Blind(nn.Module):
    """A judge that sees the first, unmasked, elements alone."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, *given: Any) -> list[Tensor]:
        x, t = (given[1], given[2]) if isinstance(given[0], AbstractDenoiser) else given[:2]
        return [self.gain * x[:, 0, :1] + t[:, None].to(x.dtype)]


def f(path, offset: float = 0.3) -> Elementwise:
    return Elementwise(GaussianConsistency(path), offset, 1.1)


def d(path, offset: float = 0.3) -> Elementwise:
    return Elementwise(GaussianDenoiser(path), offset, 0.9)


class Smooth(GaussianDenoiser):
    """Of two times, which may be equal; any function of x, t and s will do."""

    two_time = True

    def forward(self, x, t, s=None, cond=None):
        return super().forward(x, t) + 0.2 * expand(t if s is None else s, x) * x.sin()


def jumps(path, offset: float = 0.3) -> Elementwise:
    return Elementwise(Smooth(path), offset, 1.1)


def three(path) -> dict[str, Elementwise]:
    return {"student": d(path), "teacher": d(path, -0.2), "fake": d(path, 0.1)}


STAGES = ect.Curriculum(10)
METHODS: dict[str, Callable[[], Objective]] = {
    "denoising": lambda: Denoising(d(VE), times=LogNormal(), weight=WEIGHT),
    "flow matching": lambda: FlowMatching(d(FLOW), times=Uniform(0.1, 0.9)),
    "cd": lambda: Consistency(f(VE), TeacherStep(d(VE)), schedule=Fixed(18), distance=l1),
    "ct": lambda: Consistency(f(VE), SameNoise(VE), schedule=Fixed(18, 0.9), distance=Huber(0.1)),
    "ict": lambda: ImprovedConsistency(f(VE), schedule=lambda step: 18, distance=PseudoHuber(0.03)),
    "ect": lambda: EasyConsistency(f(CLEAN), SameNoise(CLEAN), curriculum=STAGES, boundary=0.0),
    "tcm": lambda: TruncatedConsistency(
        f(CLEAN), f(CLEAN, 0.1), SameNoise(CLEAN), curriculum=tcm.Curriculum(10)
    ),
    "continuous cd": lambda: ContinuousConsistency(f(VE), d(VE), times=KarrasUniform()),
    "continuous ct": lambda: ContinuousConsistency(f(VE), times=KarrasUniform()),
    "penalised cd": lambda: ContinuousConsistency(f(VE), d(VE), times=KarrasUniform(), penalty=l2),
    "pcm": lambda: PhasedConsistency(
        jumps(VE), TeacherStep(d(VE)), phases=Phases(karras(18, VE.t_min, VE.t_max), 3)
    ),
    "lcm": lambda: LatentConsistency(f(TABLE), TeacherStep(d(TABLE)), grid=strided(10)),
    "ctm": lambda: ConsistencyTrajectory(
        jumps(VE),
        d(VE),
        grid=karras(10, VE.t_min, VE.t_max),
        solver_steps=3,
        times=LogNormal(),
        weight=WEIGHT,
    ),
    "progressive": lambda: ProgressiveDistillation(d(VE), d(VE, -0.2), schedule=lambda step: 4),
    "meanflow": lambda: MeanFlow(jumps(FLOW), times=TwoTimes(), weight=AdaptiveWeight()),
    "flowmap": lambda: FlowMap(jumps(FLOW), d(FLOW)),
    "lagrangian flowmap": lambda: FlowMap(jumps(FLOW), d(FLOW), kind="lagrangian", warmup=0),
    "shortcut": lambda: Shortcut(jumps(FLOW), every=2),
    "sct": lambda: SCM(f(TRIG), times=LogNormal(), warmup=0),
    "scd": lambda: SCM(f(TRIG), d(TRIG), times=LogNormal(), warmup=0),
    "rcm": lambda: RCM(**three(TRIG), times=LogNormal(), matching_times=LogNormal(), warmup=0),
    "dmd": lambda: DMD(**three(VE), generate=ONE_CALL, weight=WEIGHT, regression=0.0),
    "dmd2": lambda: DMD2(**three(VE), generate=ONE_CALL, weight=WEIGHT, judge=Blind()),
    "diff-instruct": lambda: DiffInstruct(**three(VE), generate=ONE_CALL, weight=WEIGHT),
    "sid": lambda: SiD(**three(VE), generate=ONE_CALL),
    "f-distill": lambda: FDistill(
        **three(VE), judge=Blind(), generate=ONE_CALL, weight=WEIGHT, bins=2
    ),
    "ladd": lambda: LADD(
        d(FLOW),
        Blind(),
        generate=FewSteps((1.0,)),
        times=Uniform(0.1, 0.9),
        teacher=d(FLOW, -0.2),
        teacher_times=Uniform(0.1, 0.9),
        penalty=0.0,
    ),
}
# Losses of other batches than the masked one, or that see whole samples, are none of these: IMM and
# drifting refuse masks, KD has its pairs.
each_method = pytest.mark.parametrize("name", METHODS)


def changed(draws: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Draws with a change in all tensors that are shaped as the data."""
    if isinstance(draws, tuple):
        return type(draws)(*(changed(part, change) for part in draws))
    if isinstance(draws, Tensor) and draws.shape[-3:] == SHAPE:
        return change(draws)
    return draws


def results(
    name: str, batch: Batch, change: Callable[[Tensor], Tensor] = lambda x: x
) -> dict[str, Tensor]:
    """Terms, logs and gradients of all phases, for draws of the long batch that are changed."""
    found, drawn_for = {}, Batch(normal(*SHAPE))
    objective = METHODS[name]()
    for phase in objective.phases():
        draws = changed(phase.draw(drawn_for, 6, Rng(0, 6, phase.name)), change)
        for i, part in enumerate(phase.losses):
            loss = part(batch, draws)
            if not loss.terms:
                continue
            objective.zero_grad()
            loss.total().backward()
            found |= {f"{phase.name} {k}": v.detach() for k, v in loss.terms.items()}
            found |= {f"{phase.name} {k} log": v.detach() for k, v in loss.logs.items()}
            for key, p in phase.module.named_parameters():
                if p.grad is not None:
                    found[f"{phase.name} {i} {key}"] = p.grad.clone()
    assert found
    return found


@each_method
def test_what_is_masked_counts_for_nothing(name):
    x0, mask = normal(*SHAPE, seed=1), torch.ones(SHAPE, dtype=torch.float64)
    mask[::2, :, SHORT:] = 0
    mask[1, :, 3:] = 0

    def garbage(x: Tensor) -> Tensor:
        return x + 7 * (1 - mask)

    found = results(name, Batch(garbage(x0), mask=mask), garbage)
    torch.testing.assert_close(found, results(name, Batch(x0, mask=mask)))
    # Else the mask says nothing.
    other = results(name, Batch(garbage(x0)), garbage)
    assert any(not torch.isclose(found[k], other[k]).all() for k in found)


@each_method
def test_masked_samples_are_the_samples_cut_off(name):
    x0, mask = normal(*SHAPE, seed=1), torch.ones(SHAPE, dtype=torch.float64)
    mask[..., SHORT:] = 0

    def cut(x: Tensor) -> Tensor:
        return x[..., :SHORT]

    found, wanted = results(name, Batch(x0, mask=mask)), results(name, Batch(cut(x0)), cut)
    torch.testing.assert_close(found, wanted)
