"""A run whose precision is ``auto`` measures it once, says what it is, and keeps it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fewstep.core import UsageError
from fewstep.data import Arrays, toy
from fewstep.models import EDM, ConsistencyBoundary, Denoiser
from fewstep.models.nets import DDPMpp, ResidualMLP
from fewstep.objectives.consistency_continuous import ContinuousConsistency
from fewstep.objectives.denoising import Denoising
from fewstep.objectives.shared.weights import karras_weight
from fewstep.recipes import NAMES, rebuild, recipe
from fewstep.system.processes import World
from fewstep.times import KarrasUniform, LogNormal
from fewstep.training import precision
from fewstep.training.config import Run
from fewstep.training.precision import Decision, Layer, decided, largest_layers, speedup
from fewstep.training.train import dry, train
from fewstep.training.trainer import Trainer
from survive import CPU
from tiny import settings

AS_FAST = 1.5
AS_SLOW = 0.02


def run(**config) -> Run:
    student = Denoiser(ResidualMLP((2,), width=8, blocks=1), EDM(sigma_data=0.5))
    objective = Denoising(student, times=LogNormal(), weight=karras_weight(0.5))
    whole = settings(**{"steps": 2, "precision": "auto", **config})
    return Run(
        recipe="mine", arguments={}, objective=objective, data=toy("two-modes"), config=whole
    )


@pytest.fixture
def device(monkeypatch) -> Iterator[dict[str, float]]:
    """A device on which half precision is as fast as ``ratio`` says; it counts measurements."""
    state = {"ratio": AS_FAST, "measured": 0}

    def measured(*_: object) -> float:
        state["measured"] += 1
        return state["ratio"]

    monkeypatch.setattr(precision, "SMALLEST", 0)
    monkeypatch.setattr(precision, "speedup", measured)
    return state


@pytest.mark.parametrize(("ratio", "fastest"), [(AS_FAST, "bf16"), (AS_SLOW, "fp32"), (1, "fp32")])
def test_the_faster_one_is_taken_said_and_recorded(ratio, fastest, device, tmp_path, capsys):
    device["ratio"] = ratio
    train(run(), tmp_path / "run")
    said = capsys.readouterr().err
    assert f"precision: {fastest}, because bf16 is {ratio:.2f} times as fast as fp32" in said
    assert f"constant; {fastest}" in said
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["run"]["train"]["precision"] == fastest
    assert (record["precision"]["asked"], record["precision"]["ratio"]) == ("auto", ratio)


def test_a_resumed_run_keeps_it(device, tmp_path, capsys):
    train(run(), tmp_path)
    device["ratio"] = AS_SLOW
    capsys.readouterr()
    train(run(steps=4), tmp_path)
    assert "precision: bf16, as the run began" in capsys.readouterr().err
    assert device["measured"] == 1
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["run"]["train"]["precision"] == "bf16"
    assert record["precision"]["ratio"] == AS_FAST
    with pytest.raises(UsageError, match=r"train.precision: was 'bf16', now 'fp32'"):
        train(run(steps=4, precision="fp32"), tmp_path)
    train(run(steps=4), tmp_path, fresh=True)
    assert json.loads((tmp_path / "run.json").read_text())["run"]["train"]["precision"] == "fp32"


@pytest.mark.parametrize("before", ["fp32", "bf16", "fp16"])
def test_what_an_older_run_recorded_stays(before, device):
    whole, decision = decided(run(), CPU, before={"run": {"train": {"precision": before}}})
    assert whole.config.precision == decision.precision == before
    assert decision.record() == {}
    assert device["measured"] == 0


def test_other_processes_take_the_first_ones_decision(device, monkeypatch):
    first = Decision("bf16", "auto", 1.2, "said")
    monkeypatch.setattr(World, "agreed", lambda world, value: first if value is None else value)
    whole, decision = decided(run(), CPU, World(rank=1, size=2))
    assert (whole.config.precision, decision) == ("bf16", first)
    assert device["measured"] == 0


def test_forward_mode_stays_in_full_precision(device):
    student = Denoiser(ResidualMLP((2,), width=8, blocks=1), ConsistencyBoundary(sigma_data=0.5))
    objective = ContinuousConsistency(student, times=KarrasUniform())
    whole, decision = decided(dataclasses.replace(run(), objective=objective), CPU)
    assert (whole.config.precision, device["measured"]) == ("fp32", 0)
    assert "derivative in forward mode" in decision.reason


def test_a_small_network_is_not_measured(monkeypatch):
    monkeypatch.setattr(precision, "speedup", None)
    whole, decision = decided(run(), CPU)
    assert whole.config.precision == "fp32"
    assert "too small" in decision.reason


@pytest.mark.parametrize("given", ["bf16", "fp16"])
def test_a_slow_precision_that_was_given_is_warned_of(given, device, tmp_path, capsys):
    device["ratio"] = AS_SLOW
    train(run(precision=given), tmp_path / "slow")
    said = capsys.readouterr().err
    assert f"warning: {given} is 0.02 times as fast as fp32" in said
    assert "--train.precision fp32" in said
    assert "precision" not in json.loads((tmp_path / "slow" / "run.json").read_text())
    device["ratio"] = AS_FAST
    train(run(precision=given), tmp_path / "fast")
    assert "warning" not in capsys.readouterr().err


def test_a_dry_run_says_it_and_records_the_setting(device, tmp_path):
    assert "precision: bf16, because" in dry(run(), tmp_path / "run")
    plan = json.loads(dry(run(), tmp_path / "run", as_json=True))
    assert plan["train"]["precision"] == "auto"


def test_a_trainer_alone_is_told_which():
    whole = run()
    with pytest.raises(UsageError, match=r"fp32, bf16 or fp16"):
        Trainer(whole.objective, whole.data, whole.config, {}, CPU)


def test_layers_are_the_largest_of_their_kind():
    torch.manual_seed(0)
    net = DDPMpp((3, 8, 8), 8, (1, 2), blocks=1, attention=(), dropout=0.5)
    student = Denoiser(net, EDM(sigma_data=0.5)).train()
    before = torch.get_rng_state()
    layers = largest_layers(student, Arrays(np.zeros((4, 3, 8, 8), np.uint8)))
    assert student.training
    assert torch.equal(before, torch.get_rng_state())
    convolution, product = layers
    # The decoder's block of 8 x 8 pixels, which reads the lower level's 16 channels beside its own.
    assert (convolution.call, convolution.input[1:]) == (F.conv2d, (8, 8))
    assert convolution.work == 8 * 8 * np.prod(convolution.weight)
    assert product.call is F.linear
    assert product.work == np.prod(product.weight)
    assert all(layer.total > layer.work for layer in layers)


class Clock:
    """Seconds that pass in layers only."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, 0

    def perf_counter(self) -> float:
        return self.now

    def layer(self, full: float, half: float, total: float = 1.0) -> Layer:
        def call(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            self.now += len(x) * (half if torch.is_autocast_enabled("cpu") else full)
            self.calls += 1
            return x @ weight.T

        return Layer(call, 1, (4,), (4, 4), {}, 1.0, total)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(precision, "time", clock)
    return clock


def test_the_ratio_is_of_the_layers_by_their_work(clock):
    slow, fast = clock.layer(0.001, 0.002), clock.layer(0.001, 0.0001, total=9.0)
    assert speedup([slow], 8, CPU, torch.bfloat16) == pytest.approx(0.5)
    assert speedup([slow, fast], 8, CPU, torch.bfloat16) == pytest.approx(10 / (2 + 0.9))


def test_it_takes_half_a_second_at_most_in_calls_that_a_clock_can_tell_apart(clock):
    speedup([clock.layer(0.0001, 0.0001)], 1000, CPU, torch.bfloat16)
    assert 0.02 < clock.now < precision.SECONDS
    clock.now = 0.0
    speedup([clock.layer(0.1, 0.1)] * 2, 1, CPU, torch.bfloat16)
    assert clock.now < precision.SECONDS + 12 * 0.1


def test_a_hopeless_precision_is_left_soon(clock):
    hopeless = clock.layer(0.001, 0.06)
    assert speedup([hopeless], 64, CPU, torch.bfloat16) == pytest.approx(1 / 60)
    assert clock.calls == 4


def test_recipes_of_small_standard_data_measure_it_and_no_others():
    of = {name: recipe(name).train.precision for name in NAMES}
    assert {name for name, kind in of.items() if kind == "auto"} == {
        name for name in NAMES if name.endswith("-small")
    }
    assert {of[name] for name in NAMES if name.startswith(("digits-", "toy-"))} == {"fp32"}


def test_a_run_again_has_the_precision_that_was_measured(device, tmp_path):
    small = {"width": 8, "blocks": 1}
    whole = recipe("toy-edm", **small, train={"steps": 1, "precision": "auto", "sample_every": 0})
    train(whole, tmp_path)
    assert rebuild(tmp_path).train.precision == "bf16"
