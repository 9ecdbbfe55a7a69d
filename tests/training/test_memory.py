"""The plan of a dry run: parts that add up, and a sum that comes true."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import memory_runs
import ranks
from fewstep.contract import DataSpec
from fewstep.data import Dataset, toy
from fewstep.models import LowRank
from fewstep.objectives.base import Loss, Objective, Phase
from fewstep.training.averages import constant
from fewstep.training.config import Run, TrainConfig
from fewstep.training.memory import MIB, Watched, estimate, most_resident, table
from fewstep.training.trainer import Trainer
from generators import Matching

CPU = torch.device("cpu")
IMAGES = ranks.objective("consistency")[1]


def test_what_lives_is_counted_and_what_is_gone_is_not():
    outside = torch.zeros(1000)
    with Watched() as watched:
        a = torch.zeros(100)
        view = a[10:].reshape(9, 10)
        b = outside[:5] + 1
        del a
        view.add_(1)
        del view
        outside.neg()
    assert watched.line[0] == 400
    assert max(watched.line[:5]) == 420
    assert watched.live == 20
    assert len(b) == 5


class Chain(Objective):
    """Layers of ``width``; the phase's losses each keep an activation a layer."""

    def __init__(self, width: int, layers: int, losses: int = 1) -> None:
        super().__init__()
        self.width, self.losses = width, losses
        self.student = nn.Sequential(
            *[m for _ in range(layers) for m in (nn.Linear(width, width, bias=False), nn.Tanh())]
        )

    def draw(self, batch, step, rng) -> torch.Tensor:
        return torch.randn(len(batch), self.width, generator=rng)

    def loss(self, batch, draws) -> Loss:
        return Loss({"x": self.student(draws).square().mean()})

    def phases(self):
        more = [self.loss] * (self.losses - 1)
        return [Phase("student", self.student, self.draw, self.loss, more=more)]

    def contract(self, data: DataSpec):
        raise NotImplementedError


def planned(objective: Objective, size: int = 1, data: Dataset = IMAGES, **settings):
    config = TrainConfig(**{"steps": 4, "batch": 64, **settings})
    run = Run(recipe="", arguments={}, objective=objective, data=data, config=config)
    trainer = Trainer(objective, data, config, {"ema": constant(0.9)}, CPU)
    return estimate(run, trainer, size), trainer


@pytest.mark.parametrize("batch", [2, 64, 4096])
def test_the_peak_is_where_it_is_for_this_batch(batch):
    width, layers = 64, 4
    found, trainer = planned(Chain(width, layers), batch=batch)
    weights = 4 * layers * width**2
    assert found.held["weights: student"] == weights
    assert found.held["averages"] == weights
    assert found.held["optimiser"] == 2 * weights
    (only,) = found.passes
    assert only.gradients == weights
    with Watched() as watched:
        trainer.objective.loss([0] * batch, torch.randn(batch, width)).total().backward()
    # Beside what the loss makes there are its draws, which are as large as an activation.
    assert only.gradients + only.beside == pytest.approx(max(watched.line), rel=0.02)
    trainer.objective.zero_grad()


def test_what_more_losses_and_microbatches_find_there():
    once = planned(Chain(64, 4))[0].passes
    twice = planned(Chain(64, 4, losses=2))[0].passes
    again = planned(Chain(64, 4), accumulation=2)[0].passes
    assert [p.name for p in (*once, *twice)] == ["student", "student, loss 1", "student, loss 2"]
    assert twice[0].beside == once[0].beside < twice[1].beside == again[0].beside


def test_of_several_processes():
    alone = planned(Chain(64, 4), accumulation=4)[0]
    replicated = planned(Chain(64, 4), 4, accumulation=4)[0]
    sharded = planned(Chain(64, 4), 4, accumulation=4, parallel="fsdp")[0]
    for name in ("weights: student", "averages", "optimiser"):
        assert sharded.held[name] * 4 == replicated.held[name] == alone.held[name]
    assert sharded.passes[0].gradients * 4 == alone.passes[0].gradients
    assert sharded.held["blocks that are whole at once"] == 4 * 4 * 64**2
    assert replicated.held["batches"] * 4 == alone.held["batches"] > 0


def test_checkpointed_blocks_and_adapters_need_less():
    def matching(lora: bool) -> Matching:
        student, teacher = ranks.mlp(0), ranks.mlp(1)
        return Matching(student, teacher, LowRank(teacher, 1) if lora else ranks.mlp(2))

    points = toy("two-modes", 64)
    plain = planned(matching(False), data=points)[0]
    lora = planned(matching(True), data=points)[0]
    again = planned(matching(False), data=points, checkpointing=True)[0]
    assert lora.held["weights: critic"] < plain.held["weights: critic"] / 2
    assert lora.held["optimiser"] < plain.held["optimiser"]
    assert sum(p.beside for p in again.passes) < sum(p.beside for p in plain.passes)


def test_the_run_is_as_it_was():
    found, trainer = planned(ranks.objective("consistency")[0])
    assert found.peak > 0
    assert all(p.grad is None for p in trainer.objective.parameters())
    assert trainer.step == 0


def test_the_table_adds_up():
    found, _ = planned(Chain(256, 8), batch=2048)
    lines = [line.rsplit(maxsplit=2) for line in table(found, 2048).splitlines()]
    numbers = [int(line[1].replace(",", "")) for line in lines]
    assert lines[-1][0].strip() == "in all, at the peak (student)"
    assert sum(numbers[:-1]) == pytest.approx(numbers[-1], abs=len(lines))
    assert numbers[-1] == pytest.approx(found.peak / MIB, abs=1)
    assert replace(found, cpu=False).peak < found.peak


def fresh(case: str, kind: str) -> float:
    command = [sys.executable, memory_runs.__file__, case, kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1]) / MIB


@pytest.mark.slow
@pytest.mark.parametrize("case", memory_runs.CASES)
def test_the_plan_comes_true(case):
    planned, measured = (fresh(case, kind) for kind in ("planned", "measured"))
    print(f"\n{case}: planned {planned:.0f} MiB, measured {measured:.0f}", end="")
    assert planned == pytest.approx(measured, rel=0.15)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
def test_a_process_does_not_count_what_its_starter_held():
    held = np.ones(2**27)
    started = subprocess.run(
        [sys.executable, "-c", "from fewstep.training.memory import *; print(most_resident())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(started.stdout) < held.nbytes < most_resident()
