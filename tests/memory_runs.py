"""What a training of a few steps needs: ``python tests/memory_runs.py CASE planned|measured``."""

from __future__ import annotations

import copy
import sys

import numpy as np
import torch

from fewstep import bench
from fewstep.data import Arrays
from fewstep.models import EDM, Denoiser, Judge, LowRank
from fewstep.models.nets import DDPMpp, ResidualMLP
from fewstep.objectives.base import Objective
from fewstep.objectives.denoising import Denoising
from fewstep.objectives.shared.weights import karras_weight
from fewstep.times import LogNormal
from fewstep.training.averages import constant
from fewstep.training.config import Run, TrainConfig
from fewstep.training.memory import estimate, most_resident
from fewstep.training.trainer import Trainer
from generators import Matching

STEPS = 4
BATCH = {"mlp": 1024}
CHECKPOINTED = ("matching-lora-checkpointed",)
CASES = ("mlp", "ct", "matching", "matching-judge", *CHECKPOINTED)


def pixels(*shape: int, samples: int = 64) -> Arrays:
    drawn = np.random.default_rng(0).integers(0, 256, (samples, *shape), dtype=np.uint8)
    return Arrays(drawn)


def subject(case: str) -> tuple[Objective, Arrays]:
    torch.manual_seed(0)
    if case == "ct":
        made = bench.Subjects()
        return made.objective, made.data
    if case == "mlp":
        student = Denoiser(ResidualMLP((3, 8, 8), 1024, 4), EDM(sigma_data=0.5))
        data = pixels(3, 8, 8)
        return Denoising(student, times=LogNormal(), weight=karras_weight(0.5)), data
    data = pixels(*bench.SHAPE)
    net = DDPMpp(bench.SHAPE, bench.CHANNELS, (1, 2, 2), blocks=2, attention=(16,), dropout=0.0)
    teacher = Denoiser(net, EDM(sigma_data=0.5))
    student = copy.deepcopy(teacher)
    fake = LowRank(teacher) if "lora" in case else copy.deepcopy(teacher)
    judge = Judge(fake, data.batch(range(2)), at=(8,)) if "judge" in case else None
    return Matching(student, teacher, fake, judge), data


def trainer(case: str) -> tuple[Run, Trainer]:
    objective, data = subject(case)
    config = TrainConfig(steps=9, batch=BATCH.get(case, 8), checkpointing=case in CHECKPOINTED)
    run = Run(recipe=case, arguments={}, objective=objective, data=data, config=config)
    rules = {"ema": constant(0.999)}
    return run, Trainer(objective, data, config, rules, torch.device("cpu"))


def main(case: str, kind: str) -> None:
    torch.set_num_threads(1)
    run, made = trainer(case)
    if kind == "planned":
        print(estimate(run, made).peak)
        return
    for _ in range(STEPS):
        made.advance()
    print(most_resident())


if __name__ == "__main__":
    main(*sys.argv[1:])
