"""Recipes of distribution matching distillation (DMD, Yin et al. 2024a, algorithms 1, 2)."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start
from fewstep.recipes.options import DistanceName, Real
from fewstep.recipes.shared import ADAMW, CHASED, ITSELF, LEVELS, distance, generator


@dataclass(frozen=True, kw_only=True)
class DistributionMatching(MethodOptions):
    """DMD: samples move from where they crowd to where the teacher's are, in one step."""

    pairs: str = ""
    """Folder of noise and the teacher's samples, made by fewstep data pairs; needed unless
    --regression is 0. Noise of standard deviation 1 is scaled to the generator's level."""
    level: Real = None
    """Noise level that the generator starts from; None is the teacher's highest."""
    highest: Real = None
    """Noise level up to which scores are compared and learned; None is the teacher's highest."""
    regression: float = 0.25
    """Weight of the distance to those pairs."""
    distance: DistanceName = "l2"
    """Distance of the pairs; lpips is for images and needs the extra of that name."""
    critic_updates: int = 1
    """Updates of the score of generated samples for each update of the generator."""

    def objective(self, start: Start) -> Objective:
        from fewstep.objectives.dmd import DMD

        if self.needs_pairs():
            start.paired()
        student, common = generator(start, 1, self.level, self.highest)
        return DMD(
            student,
            fake=start.fake(student.path),
            **common,
            distance=distance(self.distance),
            regression=self.regression,
            critic_updates=self.critic_updates,
        )

    def needs_pairs(self) -> bool:
        """Unless nothing is regressed."""
        return bool(self.regression)


_PUBLISHED = {**ITSELF, "distance": "lpips"}

SETTINGS = {
    "digits": Setting(LEVELS, CHASED, "1 call: fd 0.429"),
    "small": Setting(LEVELS, CHASED),
    "pusht": Setting({**LEVELS, "regression": 0.0}, CHASED),
    "cifar10-labels": Setting(
        _PUBLISHED,
        {"steps": 300_000, "batch": 49, "accumulation": 8, "lr": 5e-5, "warmup": 500, **ADAMW},
        result="paper: FID 2.66 (labels)",
    ),
    "imagenet-64-adm": Setting(
        _PUBLISHED,
        {"steps": 350_000, "batch": 42, "accumulation": 8, "lr": 2e-6, "warmup": 500}
        | {"precision": "bf16", **ADAMW},
        result="paper: FID 2.62",
    ),
}

METHODS = (Method("dmd", "DMD", 2023, DistributionMatching, SETTINGS, distils=True),)
