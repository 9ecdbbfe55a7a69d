"""What cannot train together is refused before anything is computed."""

from __future__ import annotations

import pytest
from torch import nn

from fewstep.core import UsageError
from fewstep.data import toy
from fewstep.models import EDM, Denoiser
from fewstep.models.nets import ResidualMLP
from fewstep.objectives.base import Capabilities, Objective
from fewstep.objectives.denoising import Denoising
from fewstep.objectives.shared.weights import unweighted
from fewstep.system.processes import ALONE, World
from fewstep.times import LogNormal
from fewstep.training.check import check
from fewstep.training.config import TrainConfig

DATA = toy("two-modes")
FORWARD = Capabilities(forward_mode=True)
SECOND = Capabilities(forward_mode=True, second_order=True)
WHOLE = Capabilities(shardable=False)
TWO = World(size=2)


def objective(capabilities: Capabilities, classes: int = 0) -> Objective:
    network = ResidualMLP((2,), 8, 1, classes=classes)
    made = Denoising(Denoiser(network, EDM(sigma_data=0.5)), times=LogNormal(), weight=unweighted)
    made.capabilities = capabilities
    return made


def settings(**given) -> TrainConfig:
    return TrainConfig(**{"steps": 1, "batch": 8, "accumulation": 2, **given})


@pytest.mark.parametrize(
    ("capabilities", "given", "world"),
    [
        (Capabilities(), {}, ALONE),
        (Capabilities(batch_multiple=4, batch_least=8), {}, TWO),
        (FORWARD, {"derivative": "difference", "checkpointing": True}, ALONE),
        (SECOND, {"offload": True}, TWO),
        (WHOLE, {"parallel": "ddp", "compile": True}, TWO),
        (WHOLE, {"parallel": "fsdp"}, ALONE),
        (Capabilities(), {"parallel": "fsdp"}, TWO),
    ],
)
def test_these_train_together(capabilities, given, world):
    check(objective(capabilities), DATA, settings(**given), world)


@pytest.mark.parametrize(
    ("capabilities", "given", "world", "says"),
    [
        (Capabilities(batch_multiple=3), {}, ALONE, r"multiple of 3 samples, got .* 8"),
        (Capabilities(batch_least=9), {}, ALONE, r"at least 9 samples, got .* 8"),
        (Capabilities(), {}, World(size=3), r"3 processes cannot share 2 microbatch"),
        (SECOND, {"checkpointing": True}, ALONE, "gradient of a derivative"),
        (SECOND, {"derivative": "difference"}, ALONE, "gradient of a derivative"),
        (FORWARD, {"compile": True}, ALONE, "leave out --train.compile"),
        (WHOLE, {"parallel": "fsdp"}, TWO, "weights cannot be sharded"),
        (
            Capabilities(),
            {"parallel": "fsdp", "compile": True},
            TWO,
            "compiled networks and shards",
        ),
        (Capabilities(), {"parallel": "fsdp", "optimizer": "adam8bit"}, TWO, "averages of 8 bits"),
        (Capabilities(), {"parallel": "fsdp", "offload": True}, TWO, "leave out --train.offload"),
        (Capabilities(), {"compile": True, "offload": True}, ALONE, "leave out --train.offload"),
    ],
)
def test_these_do_not(capabilities, given, world, says):
    with pytest.raises(UsageError, match=says):
        check(objective(capabilities), DATA, settings(**given), world)


def test_networks_know_all_labels():
    labelled = toy("two-modes")
    assert labelled.labels == 0
    labelled.labels = 3
    check(objective(Capabilities(), classes=3), labelled, settings(), ALONE)
    with pytest.raises(UsageError, match=r"knows 2 label\(s\), the data has 3"):
        check(objective(Capabilities(), classes=2), labelled, settings(), ALONE)


def test_phases_train_weights_that_are_not_frozen():
    held = objective(Capabilities())
    held.frozen = ("student",)
    with pytest.raises(UsageError, match="student is to stay as it is"):
        check(held, DATA, settings(), ALONE)
    empty = objective(Capabilities())
    empty.student = nn.Identity()
    with pytest.raises(UsageError, match="nothing to learn"):
        check(empty, DATA, settings(), ALONE)
