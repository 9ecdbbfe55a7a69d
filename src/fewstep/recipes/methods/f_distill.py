"""Recipes of f-distill (Xu et al. 2025): DMD2's matching term times h(r) = f''(r) r^2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start
from fewstep.recipes.options import Real
from fewstep.recipes.shared import ADAMW, CHASED, LEVELS, Features, generator

Divergence = Literal[
    "reverse-kl", "kl", "js", "softened-rkl", "squared-hellinger", "jeffreys", "neyman"
]


@dataclass(frozen=True, kw_only=True)
class DivergenceDistillation(MethodOptions):
    """f-distill: DMD2 for other divergences than the reverse KL, by the discriminator's ratio."""

    steps: int = 1
    """Network calls of a sample, at most: 1, 2 or 4."""
    level: Real = None
    """Noise level that the generator starts from; None is the teacher's highest."""
    highest: Real = None
    """Noise level up to which scores are compared and learned; None is the teacher's highest."""
    divergence: Divergence = "js"
    """Divergence that is lowered."""
    critic_updates: int = 5
    """Updates of the critic for each update of the generator."""
    adversarial: float = 3e-3
    """Weight of the discriminator in the generator's loss."""
    adversarial_critic: float = 1e-2
    """Weight of the discriminator in the critic's loss."""
    features: Features = "fake"
    """Whose features the discriminator reads: those of the score of generated samples, or the
    teacher's."""

    def objective(self, start: Start) -> Objective:
        from fewstep.objectives.f_distill import FDistill

        student, common = generator(start, self.steps, self.level, self.highest)
        fake = start.fake(student.path)
        return FDistill(
            student,
            fake=fake,
            judge=start.judge(fake),
            **common,
            divergence=self.divergence,
            critic_updates=self.critic_updates,
            adversarial=self.adversarial,
            adversarial_critic=self.adversarial_critic,
            judged=self.features,
        )


_PUBLISHED = {
    "flip": False,
    # 0.9999, 0.99995 and 0.9996 at every step, of which one in five is the student's.
    "rates": (0.9995, 0.99975, 0.998),
    "features": "teacher",
    "adversarial_critic": 1.0,
}

SETTINGS = {
    "digits": Setting(LEVELS, CHASED, "1 call: fd 0.436"),
    "small": Setting(LEVELS, CHASED),
    "cifar10-labels": Setting(
        {**_PUBLISHED, "divergence": "kl", "adversarial": 1e-3},
        {"steps": 100_000, "batch": 256, "accumulation": 8, "lr": 1e-4, **ADAMW},
        result="paper: FID 1.92 (labels)",
    ),
    "imagenet-64-adm": Setting(
        _PUBLISHED,
        {"steps": 600_000, "batch": 64, "accumulation": 8, "lr": 2e-6, "precision": "fp32"}
        | dict(ADAMW),
        result="paper: FID 1.16",
    ),
}

METHODS = (Method("f-distill", "f-distill", 2025, DivergenceDistillation, SETTINGS, distils=True),)
