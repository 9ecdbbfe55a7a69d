"""Microbatches have randomness of their own, and what scales a loss is undone before clipping."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.core import Batch, Rng, entropy
from fewstep.data import toy
from fewstep.models import AbstractDenoiser
from fewstep.objectives.base import Loss, Objective, Phase
from fewstep.paths import VarianceExploding
from fewstep.training.trainer import Trainer
from tiny import settings

CPU = torch.device("cpu")


class Gains(AbstractDenoiser):
    """A gain of each coordinate, without a product of matrices, which autocast would round."""

    def __init__(self) -> None:
        super().__init__()
        self.path, self.cond_keys, self.two_time = VarianceExploding(), (), False
        self.gain = nn.Parameter(torch.tensor([0.3, -0.2]))

    def forward(self, x, t, s=None, cond=None):
        return self.gain * x


class Dropped(Objective):
    """Two phases; each keeps the masks that its dropout drew.

    Args:
        parts: losses of a phase.
    """

    def __init__(self, parts: int = 1) -> None:
        super().__init__()
        self.student, self.other, self.parts = Gains(), Gains(), parts
        self.masks: dict[str, list[Tensor]] = {"student": [], "other": []}

    def phases(self) -> Sequence[Phase]:
        return [self._phase("student"), self._phase("other")]

    def _phase(self, name: str) -> Phase:
        module = self.get_submodule(name)

        def draw(batch: Batch, step: int, rng: Rng) -> None:
            return None

        def loss(batch: Batch, draws: None) -> Loss:
            mask = nn.functional.dropout(torch.ones(8, 6), 0.5)
            self.masks[name].append(mask)
            x = batch.x0 * mask[: len(batch), :2]
            return Loss({name: ((module(x, torch.ones(len(x))) - 0.9 * x) ** 2).mean()})

        return Phase(name, module, draw, loss, more=[loss] * (self.parts - 1))

    def contract(self, data: DataSpec) -> Contract:
        sampling = Sampling(start=Start(t=80.0, std=80.0), kind="renoise", any_times=True)
        return Contract(method="dropped", data=data, sampling=sampling)


def trainer(objective: Objective, **changed) -> Trainer:
    return Trainer(objective, toy("two-modes", 64), settings(batch=8, **changed), {}, CPU)


def advance(t: Trainer, steps: int) -> list[dict[str, float]]:
    return [{k: float(v) for k, v in t.advance().items()} for _ in range(steps)]


def test_every_microbatch_has_a_dropout_of_its_own():
    objective = Dropped()
    t = trainer(objective, accumulation=3, seed=5)
    advance(t, 2)
    masks = [mask for name in ("student", "other") for mask in objective.masks[name]]
    assert len(masks) == 2 * 2 * 3
    assert len({mask.numpy().tobytes() for mask in masks}) == len(masks)
    # Of (seed, step, phase, shard), and of nothing else.
    expected = []
    for step in range(2):
        for shard in range(3):
            torch.manual_seed(entropy(5, step, "student", shard))
            expected.append(nn.functional.dropout(torch.ones(8, 6), 0.5))
    for found, wanted in zip(objective.masks["student"], expected, strict=True):
        assert found.equal(wanted)


def test_losses_of_one_microbatch_go_on_with_its_dropout():
    objective = Dropped(parts=2)
    advance(trainer(objective, accumulation=2, seed=5), 1)
    torch.manual_seed(entropy(5, 0, "student", 1))
    wanted = [nn.functional.dropout(torch.ones(8, 6), 0.5) for _ in range(2)]
    assert all(a.equal(b) for a, b in zip(objective.masks["student"][2:], wanted, strict=True))


@pytest.mark.parametrize("clip", [0.0, 0.01, 1e9])
@pytest.mark.parametrize("optimizer", ["adam", "radam"])
def test_a_loss_scale_is_no_part_of_what_is_clipped(clip, optimizer):
    # A power of 2 scales without rounding, so nothing may differ. Adam forgets the size of its
    # gradients, were it not for a large eps.
    rows, weights = {}, {}
    for precision in ("fp32", "fp16"):
        objective = Dropped()
        given = {"precision": precision, "clip": clip, "eps": 0.1, "optimizer": optimizer}
        rows[precision] = advance(trainer(objective, accumulation=2, lr=0.1, **given), 8)
        weights[precision] = objective.student.gain.detach()
    assert rows["fp32"] == rows["fp16"]
    assert weights["fp32"].equal(weights["fp16"])
    if 0 < clip < 1:
        assert all(row["grad_norm/student"] > clip for row in rows["fp32"])
