"""How much the library costs beside the bare network's passes, in one run on this machine.

Ratios are medians over interleaved pairs, so that a busy moment falls on both sides. The network is
DDPM++ of 64 channels, multipliers (1, 2, 2), 32 x 32 pixels, in batches of 8; memory is the largest
resident size of a fresh process, imports included. That of DMD2 is with blocks computed again,
whose cost in time stands beside it: a student, a teacher, a fake denoiser with a judge.
"""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.contract import data_spec
from fewstep.core import Rng
from fewstep.data import Arrays
from fewstep.derivatives import jvp
from fewstep.model import Model
from fewstep.models import EDM, ConsistencyBoundary, Denoiser, Flow, Judge, LowRank
from fewstep.models.nets import DDPMpp
from fewstep.objectives.base import Objective
from fewstep.objectives.consistency import Consistency, Progressive, SameNoise
from fewstep.objectives.dmd2 import DMD2
from fewstep.objectives.meanflow import AdaptiveWeight, MeanFlow
from fewstep.objectives.scm import SCM
from fewstep.objectives.shared.distances import PseudoHuber
from fewstep.objectives.shared.matching import FewSteps
from fewstep.objectives.shared.weights import karras_weight
from fewstep.paths import Linear, Trig
from fewstep.times import LogNormal, TwoTimes
from fewstep.training.averages import Rule, constant
from fewstep.training.config import TrainConfig
from fewstep.training.memory import MIB, most_resident
from fewstep.training.trainer import Trainer

BATCH = 8
CHANNELS = 64
SHAPE = (3, 32, 32)
MIDDLE = 9
"""The unit that DMD2's judge looks at, after the encoder's eight."""
TARGETS = {
    "overhead": (0.05, "at most"),
    "ct_over_passes": (1.02, "at most"),
    "sample_over_forward": (1.02, "at most"),
    "ct_peak_mib": (780.0, "at most"),
    "dmd2_peak_mib": (783.0, "at most"),
    "dmd2_lora_peak_mib": (599.0, "at most"),
    "sct_peak_mib": (853.0, "at most"),
    "meanflow_peak_mib": (833.0, "at most"),
    "bf16_forward_speedup": (1.4, "at least"),
    "jvp_over_forward": (3.5, "at most"),
    "jvp_backward_over_passes": (2.6, "at most"),
}
"""What each figure should be on two cores."""

SLOW = 4.0
"""Where bf16 takes so many times as long as float32, two calls in it tell enough."""

Work = Callable[[], Any]


def run(threads: int, pairs: int) -> dict[str, Any]:
    """All figures.

    Args:
        threads: of torch.
        pairs: measurements of each side of a ratio.

    Returns:
        The ratios and the peak; ``milliseconds``, the raw times of both sides of each ratio;
        ``threads``.
    """
    torch.set_num_threads(threads)
    made = Subjects()
    raw: dict[str, tuple[list[float], list[float]]] = {}

    def paired(
        name: str, ours: Work, bare: Work, hopeless: float = math.inf
    ) -> tuple[list[float], list[float]]:
        raw[name] = interleaved(ours, bare, pairs, hopeless)
        return raw[name]

    step, passes = paired("overhead", made.step("adam"), made.passes)
    radam, radam_passes = paired("overhead_radam", made.step("radam"), made.passes)
    return {
        "overhead": _median((a - b) / a for a, b in zip(step, passes, strict=True)),
        "overhead_radam": _median((a - b) / a for a, b in zip(radam, radam_passes, strict=True)),
        "ct_over_passes": _ratio(*paired("ct_over_passes", made.loss, made.passes)),
        "sample_over_forward": _ratio(*paired("sample_over_forward", made.sample, made.forward)),
        "ct_step_over_forward": _ratio(
            *paired("ct_step_over_forward", made.step("adam"), made.forward)
        ),
        "bf16_forward_speedup": _ratio(
            *reversed(paired("bf16_forward_speedup", made.forward_bf16, made.forward, SLOW))
        ),
        "jvp_over_forward": _ratio(*paired("jvp_over_forward", made.jvp, made.forward)),
        "jvp_backward_over_passes": _ratio(
            *paired("jvp_backward_over_passes", made.jvp_backward, made.forward_backward)
        ),
        "checkpointing_cost": _ratio(*paired("checkpointing_cost", dmd2(True), dmd2(False))),
        "ct_peak_mib": _in_a_fresh_process(threads, "consistency"),
        "dmd2_peak_mib": _in_a_fresh_process(threads, "dmd2"),
        "dmd2_lora_peak_mib": _in_a_fresh_process(threads, "dmd2_lora"),
        "sct_peak_mib": _in_a_fresh_process(threads, "sct"),
        "meanflow_peak_mib": _in_a_fresh_process(threads, "meanflow"),
        "threads": threads,
        "pairs": pairs,
        "torch": torch.__version__,
        "milliseconds": {
            name: {"ours": [round(x * 1e3, 2) for x in a], "bare": [round(x * 1e3, 2) for x in b]}
            for name, (a, b) in raw.items()
        },
    }


class Subjects:
    """What is timed: consistency training and its parts."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = network()
        student = Denoiser(self.net, ConsistencyBoundary(sigma_data=0.5))
        self.objective = Consistency(
            student,
            SameNoise(student.path),
            schedule=Progressive(10, 80, 1000, rate=0.0, adaptive=False),
            distance=PseudoHuber(),
            weight=lambda t, r: 1 / (t - r),
        )
        self.data = pixels()
        self.batch = self.data.batch(range(BATCH))
        self.x, self.c_noise = torch.randn(BATCH, *SHAPE), torch.randn(BATCH)
        self.gradient = torch.randn(BATCH, *SHAPE)
        contract = self.objective.contract(data_spec(SHAPE, 0, True))
        self.model = Model(Denoiser(self.net, student.preconditioning), contract)
        self.net.requires_grad_(True).train()

    def step(self, optimizer: Any) -> Work:
        """Whole steps of the trainer, with one average."""
        return stepping(self.objective, {"ema": constant(0.999)}, optimizer=optimizer)

    def loss(self) -> None:
        """The method's loss and its backward pass."""
        draws = self.objective.draw(self.batch, 0, Rng(0, 0, "student"))
        self.objective.loss(self.batch, draws).total().backward()
        self.net.zero_grad()

    def passes(self) -> None:
        """What consistency training cannot do without: two forward passes and one backward."""
        with torch.no_grad():
            self.net(self.x, self.c_noise)
        out: Tensor = self.net(self.x, self.c_noise)
        out.backward(self.gradient)
        self.net.zero_grad()

    def forward_backward(self) -> None:
        """A forward pass and its backward pass."""
        out: Tensor = self.net(self.x, self.c_noise)
        out.backward(self.gradient)
        self.net.zero_grad()

    @torch.no_grad()
    def jvp(self) -> None:
        """The network and its derivative along a direction."""
        jvp(self.net, (self.x, self.c_noise), (self.gradient, torch.ones_like(self.c_noise)))

    def jvp_backward(self) -> None:
        """The same, and a backward pass of the value: the network's part of an sCM step."""
        tangents = (self.gradient, torch.ones_like(self.c_noise))
        value, tangent = jvp(self.net, (self.x, self.c_noise), tangents)
        value.backward(tangent)
        self.net.zero_grad()

    @torch.no_grad()
    def forward(self) -> None:
        """The bare network."""
        self.net(self.x, self.c_noise)

    @torch.no_grad()
    def forward_bf16(self) -> None:
        """The bare network in bf16."""
        with torch.autocast("cpu", torch.bfloat16):
            self.net(self.x, self.c_noise)

    def sample(self) -> None:
        """One-step samples."""
        self.model.sample(BATCH, steps=1, seed=0)


def dmd2(checkpointing: bool, lora: bool = False) -> Work:
    """Whole steps of DMD2, of the generator at every second one; no average, as in its code."""
    torch.manual_seed(0)
    teacher = Denoiser(network(), EDM(sigma_data=0.5))
    student = copy.deepcopy(teacher)
    fake = LowRank(teacher) if lora else copy.deepcopy(teacher)
    objective = DMD2(
        student,
        teacher,
        fake,
        generate=FewSteps((80.0,)),
        weight=karras_weight(0.5),
        critic_updates=2,
        judge=Judge(fake, pixels().batch(range(2)), at=(MIDDLE,)),
    )
    return stepping(objective, {}, checkpointing=checkpointing)


def sct(**settings: Any) -> Work:
    """Whole steps of consistency training in continuous time, without an average."""
    torch.manual_seed(0)
    student = Denoiser(network(), EDM(sigma_data=0.5)).on(
        Trig(t_max=math.atan(160), sigma_data=0.5)
    )
    objective = SCM(student, times=LogNormal(-1.0, 1.4))
    return stepping(objective, {}, optimizer="radam", **settings)


def meanflow(**settings: Any) -> Work:
    """Whole steps of MeanFlow from new weights, without an average."""
    torch.manual_seed(0)
    student = Denoiser(network(two_time=True), Flow(path=Linear()))
    objective = MeanFlow(student, times=TwoTimes(), weight=AdaptiveWeight())
    return stepping(objective, {}, **settings)


def network(two_time: bool = False) -> DDPMpp:
    """The one that everything is measured on."""
    sizes = {"blocks": 2, "attention": (16,), "dropout": 0.0}
    return DDPMpp(SHAPE, CHANNELS, (1, 2, 2), **sizes, two_time=two_time)


def pixels() -> Arrays:
    """Some data for it."""
    return Arrays(np.random.default_rng(0).integers(0, 256, (64, *SHAPE), dtype=np.uint8))


def stepping(objective: Objective, rules: Mapping[str, Rule], **settings: Any) -> Work:
    """Whole steps of the trainer, with these averages."""
    config = TrainConfig(steps=10**6, batch=BATCH, lr=1e-6, **settings)
    return Trainer(objective, pixels(), config, rules, torch.device("cpu")).advance


PEAKS: dict[str, Callable[[], Work]] = {
    "consistency": lambda: Subjects().step("adam"),
    "dmd2": lambda: dmd2(True),
    "dmd2_lora": lambda: dmd2(True, lora=True),
    "sct": sct,
    "meanflow": meanflow,
}
"""Trainings whose memory is measured."""


def peak(threads: int, kind: str = "consistency", steps: int = 4) -> float:
    """Largest resident size of this process in MiB after some steps of a training."""
    torch.set_num_threads(threads)
    advance = PEAKS[kind]()
    for _ in range(steps):
        advance()
    return most_resident() / MIB


def table(figures: Mapping[str, Any]) -> str:
    """The figures beside what they should be."""
    lines = []
    for name, value in figures.items():
        if isinstance(value, float):
            limit, kind = TARGETS.get(name, (None, ""))
            aim = "" if limit is None else f"{kind} {limit:g}"
            lines.append(f"{name:<22} {value:>9.3f}   {aim}".rstrip())
    return "\n".join(
        [*lines, f"{figures['threads']} thread(s), medians of {figures['pairs']} pairs"]
    )


def interleaved(
    ours: Work, bare: Work, pairs: int, hopeless: float = math.inf
) -> tuple[list[float], list[float]]:
    """Seconds of each side, in turn, after one call of each.

    Args:
        ours: one side.
        bare: the other.
        pairs: measurements of each.
        hopeless: a ratio of a pair beyond which no more pairs are measured.
    """
    for work in (ours, bare):
        work()
    times: tuple[list[float], list[float]] = [], []
    for i in range(pairs):
        # Each side goes first as often as the other.
        for side in (0, 1) if i % 2 else (1, 0):
            began = time.perf_counter()
            (ours, bare)[side]()
            times[side].append(time.perf_counter() - began)
        if times[0][-1] > hopeless * times[1][-1]:
            break
    return times


def _ratio(ours: list[float], bare: list[float]) -> float:
    return _median(a / b for a, b in zip(ours, bare, strict=True))


def _median(values: Any) -> float:
    return float(median(values))


def _in_a_fresh_process(threads: int, kind: str) -> float:
    code = f"from fewstep.bench import peak; print(peak({threads}, {kind!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
    )
    return float(done.stdout.splitlines()[-1])


def main(threads: int, pairs: int, as_json: bool) -> None:
    """Print the figures."""
    figures = run(threads, pairs)
    print(json.dumps(figures, indent=2) if as_json else table(figures))
