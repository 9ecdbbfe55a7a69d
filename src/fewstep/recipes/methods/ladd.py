"""Recipes of latent adversarial diffusion distillation (LADD; ADD: Sauer et al. 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fewstep.errors import UsageError
from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start
from fewstep.recipes.options import Real
from fewstep.recipes.shared import generator


@dataclass(frozen=True, kw_only=True)
class AdversarialDistillation(MethodOptions):
    """LADD: a discriminator on the features of the frozen teacher, and little else."""

    steps: int = 1
    """Network calls of a sample, at most: 1, 2 or 4."""
    level: Real = None
    """Noise level that the generator starts from; None is the teacher's highest."""
    mean: float = 1.0
    """Mean of log(sigma / sigma_data) where answers are judged."""
    std: float = 1.0
    """Standard deviation of log sigma where answers are judged."""
    distillation: float = 0.0
    """Weight of the distance to the teacher's answers, which ADD needs."""
    penalty: float = 1e-5
    """Weight of the heads' gradient penalty (R1)."""
    heads_rate: float = 2.0
    """Learning rate of the heads, as a multiple of the generator's."""

    def objective(self, start: Start) -> Objective:
        from fewstep.objectives.ladd import LADD
        from fewstep.objectives.shared.matching import FewSteps
        from fewstep.times import LogNormal

        if start.guidance != 1.0 and not self.distillation:
            raise UsageError(
                "without --distillation no answer of the teacher counts; leave out --guidance"
            )
        student, common = generator(start, self.steps, self.level, None)
        return LADD(
            student,
            start.discriminator(student.path),
            generate=FewSteps(common["generate"].times, inputs="noised"),
            times=LogNormal(self.mean + math.log(start.sigma_data), self.std),
            teacher=common["teacher"] if self.distillation else None,
            teacher_times=common["times"] if self.distillation else None,
            distillation=self.distillation,
            penalty=self.penalty,
            heads_rate=self.heads_rate,
        )


_TRAIN = {"clip": 10.0, "betas": (0.0, 0.99)}
"""With momentum LADD stays far from the digits."""

SETTINGS = {
    "digits": Setting(
        {"level": 1.5, "mean": -0.5, "std": 1.2, "penalty": 10.0, "heads_rate": 4.0},
        {**_TRAIN, "lr": 5e-4},
        "1 call: fd 0.355",
    ),
    "plane": Setting(
        {"mean": -1.2, "penalty": 10.0, "heads_rate": 10.0},
        {**_TRAIN, "steps": 9000, "batch": 512, "lr": 2e-4},
    ),
    "small": Setting({"level": 1.5, "penalty": 10.0}, {**_TRAIN, "lr": 5e-4}),
}

METHODS = (Method("ladd", "LADD", 2024, AdversarialDistillation, SETTINGS, distils=True),)
