"""What settings ask of networks and methods, and which of them go together."""

from __future__ import annotations

import pytest
import torch

import ranks
from fewstep.errors import UsageError
from fewstep.models import ConsistencyBoundary, Denoiser, Judge, LowRank
from fewstep.models.nets import EDM2, DDPMpp
from fewstep.objectives.consistency import Consistency, Fixed, SameNoise
from fewstep.objectives.consistency_continuous import ContinuousConsistency
from fewstep.system.processes import World
from fewstep.times import KarrasUniform
from fewstep.training.config import TrainConfig
from fewstep.training.trainer import Trainer
from generators import Matching


def made(objective, world=None, **settings) -> Trainer:
    _, data = ranks.objective("consistency")
    config = TrainConfig(**{"steps": 4, "batch": 4, **settings})
    return Trainer(objective, data, config, {}, torch.device("cpu"), world or ranks.ALONE)


def continuous():
    return ContinuousConsistency(ranks.unet(0), times=KarrasUniform(0.002, 80.0))


def test_forward_mode_is_not_compiled():
    with pytest.raises(
        UsageError, match=r"ContinuousConsistency takes forward-mode.*--train.compile"
    ):
        made(continuous(), compile=True)


def test_shards_are_not_compiled():
    objective, _ = ranks.objective("critic")
    with pytest.raises(UsageError, match=r"take --train.parallel ddp"):
        made(objective, World(0, 2), compile=True, parallel="fsdp", accumulation=2)


def test_networks_without_units_are_not_checkpointed():
    class Bare(DDPMpp):
        units = ()

    student = Denoiser(
        Bare((1, 8, 8), 8, (1, 1), 1, (), classes=3), ConsistencyBoundary(sigma_data=0.5)
    )
    objective = Consistency(student, SameNoise(student.path), schedule=Fixed(6))
    with pytest.raises(UsageError, match="Bare names no units"):
        made(objective, checkpointing=True)


def test_a_judges_heads_are_left_out_of_it():
    teacher = ranks.unet(0)
    judge = Judge(teacher, made(continuous()).data.batch(range(2)))
    objective = Matching(ranks.unet(1), teacher, LowRank(teacher), judge)
    trainer = made(objective, checkpointing=True)
    assert all(torch.isfinite(torch.as_tensor(v)) for v in trainer.advance().values())


def test_edm2s_weights_are_back_on_their_spheres_after_every_update():
    torch.manual_seed(0)
    net = EDM2((1, 8, 8), channels=8, multipliers=(1, 2), blocks=1, attention=(), classes=3)
    student = Denoiser(net, ConsistencyBoundary(sigma_data=0.5))
    trainer = made(Consistency(student, SameNoise(student.path), schedule=Fixed(6)), lr=0.1)
    before = [p.detach().clone() for p in net.parameters()]
    trainer.advance()
    weights = [(p, q) for p, q in zip(net.parameters(), before, strict=True) if p.ndim >= 2]
    assert any(not torch.equal(p, q) for p, q in weights)
    for weight, _ in weights:
        norms = weight.flatten(1).square().mean(1).sqrt()
        torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-3, atol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own
def test_compiled_networks_learn_the_same():
    found = [ranks.trained("consistency", compile=on)[1] for on in (False, True)]
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-3, atol=1e-4)
