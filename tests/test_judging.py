"""Processes that share a judgement find what one process finds."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.core import Batch
from fewstep.evaluation import METRICS, Protocol
from fewstep.metrics import flatten
from fewstep.model import Model
from fewstep.models import EDM, Denoiser
from fewstep.models.nets import ResidualMLP
from fewstep.system.processes import World
from oracles import normal
from small_nets import shaken
from survive import born


@dataclass(frozen=True)
class Piped(World):
    """A process that reaches the first one by a pipe, and as the first one all others."""

    pipes: Sequence[Connection] = ()

    def exchanged(self, value: Any) -> list[Any]:
        if not self.first:
            self.pipes[0].send(value)
            return self.pipes[0].recv()
        values = [value, *(pipe.recv() for pipe in self.pipes)]
        for pipe in self.pipes:
            pipe.send(values)
        return values

    def together(self, own: torch.Tensor) -> torch.Tensor:
        rows = self.exchanged(own.numpy())
        return torch.cat([torch.from_numpy(part) for part in rows])

    def agreed(self, value: Any) -> Any:
        return self.exchanged(value)[0]


def shared_by(size: int, work: Callable[[World], Any]) -> list[Any]:
    """What each of ``size`` processes returns; this one is the first."""
    pairs = [Pipe() for _ in range(size - 1)]
    children = [
        born(lambda i=i, end=end: end.send(work(Piped(i + 1, size, 0, [end]))))
        for i, (_, end) in enumerate(pairs)
    ]
    found = [work(Piped(0, size, 0, [mine for mine, _ in pairs]))]
    found += [mine.recv() for mine, _ in pairs]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)
    return found


def model() -> Model:
    network = shaken(ResidualMLP((2,), width=8, blocks=1, classes=3), 0)
    sampling = Sampling(start=Start(t=80.0, std=80.0), kind="renoise", times={1: (80.0,)})
    contract = Contract(method="cd", data=DataSpec(shape=(2,), labels=3), sampling=sampling)
    return Model(Denoiser(network, EDM(sigma_data=0.5)), contract)


@pytest.mark.parametrize("size", [2, 3])
def test_many_processes_judge_as_one(size):
    # 17 samples, which no number here divides; classes that do not take turns.
    label = torch.tensor([0, 0, 1, 2, 2, 2, 1, 0, 2, 1, 1, 0, 0, 0, 2, 1, 2])
    held_out = Batch(normal(17, 2).float(), {"label": label})
    train = Batch(normal(51, 2, seed=1).float(), {"label": label.repeat(3)})
    alone = Protocol(train, held_out, flatten, draws=2, metrics=METRICS)
    made = model()
    expected = alone.judge(made, 1)
    found = shared_by(size, lambda world: replace(alone, world=world).judge(made, 1))
    expected.pop("images_per_second")
    assert len(set(expected.values())) == len(expected)
    for row in found:
        row.pop("images_per_second")
        assert row == pytest.approx(expected, rel=1e-5)
