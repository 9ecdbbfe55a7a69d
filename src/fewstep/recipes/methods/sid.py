"""Recipes of score identity distillation: SiD and, with a discriminator, SiDA (Zhou et al.)."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start
from fewstep.recipes.shared import CHASED, HALF_LIFE, LEVELS, NO_MOMENTUM, generator


@dataclass(frozen=True, kw_only=True)
class ScoreIdentity(MethodOptions):
    """SiD: the Fisher divergence of samples to a teacher's, by gradients through both scores."""

    level: float = 2.5
    """Noise level that the generator starts from."""
    highest: float = 24.4
    """Highest noise level at which scores are compared."""
    a: float = 1.2
    """Share of the second term."""
    critic_updates: int = 1
    """Updates of the score of generated samples for each update of the generator."""

    def objective(self, start: Start) -> Objective:
        return _objective(self, start, 0.0)


@dataclass(frozen=True, kw_only=True)
class AdversarialScoreIdentity(MethodOptions):
    """SiDA: score identity distillation with a discriminator."""

    level: float = 2.5
    """Noise level that the generator starts from."""
    highest: float = 24.4
    """Highest noise level at which scores are compared."""
    a: float = 1.0
    """Share of the second term."""
    critic_updates: int = 1
    """Updates of the critic for each update of the generator."""
    adversarial: float = 1e-4
    """Weight of the discriminator in the generator's loss."""

    def objective(self, start: Start) -> Objective:
        return _objective(self, start, self.adversarial)


def _objective(
    options: ScoreIdentity | AdversarialScoreIdentity, start: Start, adversarial: float
) -> Objective:
    from fewstep.objectives.sid import SiD
    from fewstep.times import KarrasUniform, LogNormal

    student, common = generator(start, 1, options.level, options.highest)
    times = KarrasUniform(start.levels.t_min, options.highest)
    fake = start.fake(student.path)
    return SiD(
        student,
        fake=fake,
        **{**common, "times": times, "critic_times": LogNormal()},
        a=options.a,
        critic_updates=options.critic_updates,
        judge=start.judge(fake) if adversarial else None,
        adversarial=adversarial,
    )


_TRAIN = {**CHASED, "lr": 2e-4}
_CIFAR = {"accumulation": 4, "lr": 1e-5, **NO_MOMENTUM}
_ADM = {"accumulation": 128, "lr": 4e-6, "eps": 1e-6, **NO_MOMENTUM}
_ADM_AVERAGE = {**HALF_LIFE, "half_life": 2e6, "dropout": 0.1}

SID = {
    "digits": Setting(LEVELS, _TRAIN, "1 call: fd 0.365"),
    "small": Setting(train=_TRAIN),
    # 500 and 1000 million samples.
    "cifar10": Setting(HALF_LIFE, {**_CIFAR, "steps": 1_953_125}, "paper: FID 1.92"),
    "imagenet-64-adm": Setting(_ADM_AVERAGE, {**_ADM, "steps": 122_071}, "paper: FID 1.52"),
}
SIDA = {
    "digits": Setting(LEVELS, _TRAIN, "1 call: fd 0.471"),
    "plane": Setting({"critic_updates": 2}, {"lr": 5e-4, **NO_MOMENTUM}),
    "small": Setting(train=_TRAIN),
    # 300 million samples.
    "cifar10": Setting(HALF_LIFE, {**_CIFAR, "steps": 1_171_875}, "paper: FID 1.50 (best)"),
    "imagenet-64-adm": Setting(_ADM_AVERAGE, {**_ADM, "steps": 36_622}, "paper: FID 1.11 (best)"),
}

METHODS = (
    Method("sid", "SiD", 2024, ScoreIdentity, SID, distils=True),
    Method("sida", "SiDA", 2024, AdversarialScoreIdentity, SIDA, distils=True),
)
