"""Recipes of DMD2 (Yin et al. 2024b, sections 4.2, 4.3, 4.5)."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start
from fewstep.recipes.options import Real
from fewstep.recipes.shared import ADAMW, CHASED, ITSELF, LEVELS, Features, generator


@dataclass(frozen=True, kw_only=True)
class ImprovedDistributionMatching(MethodOptions):
    """DMD2: distribution matching with a discriminator, and a critic that keeps up."""

    steps: int = 1
    """Network calls of a sample, at most: 1, 2 or 4."""
    level: Real = None
    """Noise level that the generator starts from; None is the teacher's highest."""
    highest: Real = None
    """Noise level up to which scores are compared and learned; None is the teacher's highest."""
    critic_updates: int = 5
    """Updates of the critic for each update of the generator."""
    adversarial: float = 3e-3
    """Weight of the discriminator in the generator's loss; 0 leaves it out."""
    adversarial_critic: float = 1e-2
    """Weight of the discriminator in the critic's loss."""
    features: Features = "fake"
    """Whose features the discriminator reads: those of the score of generated samples, or the
    teacher's."""
    fake_lora: int = 0
    """Rank of the difference of that score's weights to the teacher's; 0 gives it weights of its
    own."""

    def objective(self, start: Start) -> Objective:
        from fewstep.objectives.dmd2 import DMD2

        student, common = generator(start, self.steps, self.level, self.highest)
        fake = start.fake(student.path, self.fake_lora)
        return DMD2(
            student,
            fake=fake,
            **common,
            critic_updates=self.critic_updates,
            judge=start.judge(fake) if self.adversarial else None,
            adversarial=self.adversarial,
            adversarial_critic=self.adversarial_critic,
            adversarial_times=common["critic_times"],
            judged=self.features,
        )


SETTINGS = {
    "digits": Setting(LEVELS, CHASED, "1 call: fd 0.470"),
    "small": Setting(LEVELS, CHASED),
    "imagenet-64-adm": Setting(
        ITSELF,
        {"steps": 200_000, "batch": 35, "accumulation": 8, "lr": 2e-6, "warmup": 500}
        | {"precision": "bf16", **ADAMW},
        result="paper: FID 1.51",
    ),
}

METHODS = (Method("dmd2", "DMD2", 2024, ImprovedDistributionMatching, SETTINGS, distils=True),)
