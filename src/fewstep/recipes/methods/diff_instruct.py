"""Recipes of Diff-Instruct (Luo et al. 2023)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start
from fewstep.recipes.shared import HALF_LIFE, NO_MOMENTUM, generator


@dataclass(frozen=True, kw_only=True)
class DiffInstruct(MethodOptions):
    """Diff-Instruct: distribution matching without a normaliser."""

    level: float = 1.0
    """Noise level that the generator starts from."""
    mean: float = -1.2
    """Mean of log sigma where scores are compared and learned."""
    std: float = 1.2
    """Standard deviation of log sigma where scores are compared and learned."""
    critic_updates: int = 1
    """Updates of the score of generated samples for each update of the generator."""

    def objective(self, start: Start) -> Objective:
        from fewstep.objectives.diff_instruct import DiffInstruct as Objective
        from fewstep.times import LogNormal

        student, common = generator(start, 1, self.level, None)
        law = LogNormal(self.mean, self.std)
        fake = copy.deepcopy(start.source.on(student.path)).requires_grad_(True)
        return Objective(
            student,
            fake=fake,
            **{**common, "times": law, "critic_times": law},
            critic_updates=self.critic_updates,
        )


_TRAIN = {"steps": 1_562_500, "accumulation": 2, "lr": 1e-5, **NO_MOMENTUM}

SETTINGS = {
    "digits": Setting(
        {"level": 1.5, "critic_updates": 5}, {"batch": 64, "lr": 5e-4}, "1 call: fd 0.429"
    ),
    "small": Setting({"critic_updates": 5}, {"batch": 64}),
    "cifar10-labels": Setting(HALF_LIFE, _TRAIN, result="paper: FID 4.19 (labels)"),
    "imagenet-64-adm": Setting({**HALF_LIFE, "dropout": 0.1}, _TRAIN, result="paper: FID 5.57"),
}

METHODS = (Method("diff-instruct", "Diff-Instruct", 2023, DiffInstruct, SETTINGS, distils=True),)
