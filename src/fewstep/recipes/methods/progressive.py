"""Recipes of progressive distillation (Salimans & Ho 2022, algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start
from fewstep.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class ProgressiveDistillation(MethodOptions):
    """Progressive distillation: the number of steps is halved in equal stages, to one."""

    first: int = 16
    """Steps of the first student, a power of two."""

    def objective(self, start: Start) -> Objective:
        from fewstep.objectives.progressive import Halving
        from fewstep.objectives.progressive import ProgressiveDistillation as Objective

        student = start.student()
        return Objective(
            student,
            start.teacher_on(student.path),
            schedule=Halving(self.first, self.stage(start.train.steps), last=1),
        )

    def trainer(self, train: TrainConfig) -> TrainConfig:
        """The learning rate falls to 0 in each stage, unless its decay is given."""
        return train if train.decay_steps else replace(train, decay_steps=self.stage(train.steps))

    def stage(self, steps: int) -> int:
        """Updates of one stage."""
        return max(1, steps // self.first.bit_length())


SETTINGS = {
    "digits": Setting({"first": 8}, result="1 call: fd 0.541"),
    "small": Setting({"first": 8}),
    "cifar10": Setting(
        {"first": 4096, "rates": (0.0,)},
        # Thirteen stages.
        {"steps": 650_000, "accumulation": 8, "lr": 5e-5, "clip": 1.0, "schedule": "linear"},
        result="paper: FID 8.34, 5.58",
    ),
    "imagenet-64-adm": Setting(
        {"first": 1024, "rates": (0.0,)},
        # Eleven stages.
        {"steps": 550_000, "accumulation": 32, "lr": 1e-4, "clip": 1.0, "schedule": "linear"},
        result="not run",
    ),
}

METHODS = (
    Method(
        "progressive",
        "progressive distillation",
        2022,
        ProgressiveDistillation,
        SETTINGS,
        distils=True,
    ),
)
