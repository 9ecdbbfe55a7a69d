"""Distribution matching as recipes see it: options, and the objective made of a start.

A function's keyword options are the command line's; nothing here imports torch before it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from fewstep.objectives.base import Objective

from fewstep.recipes.trajectories import DistanceName

Features = Literal["fake", "teacher"]


def dmd(
    start: Any,
    *,
    pairs: str = "",
    regression: float = 0.25,
    distance: DistanceName = "l2",
    critic_updates: int = 1,
) -> Objective:
    """DMD: samples move from where they are dense to where the teacher's are, in one step.

    Args:
        pairs: a folder of noise and what the teacher makes of it, by fewstep data pairs; needed
            unless regression is 0.
        regression: weight of the distance to those pairs.
        distance: of the pairs; lpips is for images and needs the extra of that name.
        critic_updates: of the score of generated samples, for each update of the generator.
    """
    from fewstep.objectives.dmd import DMD
    from fewstep.recipes import parts

    student, generate = _generator(start, 1)
    return DMD(
        student,
        start.teacher_on(student.path),
        start.student(student.path),
        generate=generate,
        **_levels(start),
        distance=parts.distance(distance),
        regression=regression,
        critic_updates=critic_updates,
    )


def dmd2(
    start: Any,
    *,
    steps: int = 1,
    critic_updates: int = 5,
    adversarial: float = 3e-3,
    adversarial_critic: float = 1e-2,
    features: Features = "fake",
    lora: int = 0,
) -> Objective:
    """DMD2: distribution matching with a discriminator, and a critic that keeps up.

    Args:
        steps: network calls of a sample, at most.
        critic_updates: of the critic, for each update of the generator.
        adversarial: weight of the discriminator in the generator's loss; 0 leaves it out.
        adversarial_critic: weight of the discriminator in the critic's loss.
        features: the discriminator judges those of the score of generated samples, or the
            teacher's.
        lora: rank of the difference of that score's weights to the teacher's; 0 has weights of its
            own.
    """
    from fewstep.objectives.dmd2 import DMD2

    student, generate = _generator(start, steps)
    fake = start.fake(student.path, lora)
    return DMD2(
        student,
        start.teacher_on(student.path),
        fake,
        generate=generate,
        **_levels(start),
        critic_updates=critic_updates,
        judge=start.judge(fake) if adversarial else None,
        adversarial=adversarial,
        adversarial_critic=adversarial_critic,
        judged=features,
    )
