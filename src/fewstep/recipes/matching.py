"""Distribution matching as recipes see it: options, and the objective made of a start.

A function's keyword options are the command line's; nothing here imports torch before it is called.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, Literal

from fewstep.errors import UsageError
from fewstep.recipes.trajectories import DistanceName

if TYPE_CHECKING:
    from fewstep.objectives.base import Objective

Features = Literal["fake", "teacher"]
Divergence = Literal[
    "reverse-kl", "kl", "js", "softened-rkl", "squared-hellinger", "jeffreys", "neyman"
]


def dmd(
    start: Any,
    *,
    pairs: str = "",
    level: float | None = None,
    highest: float | None = None,
    regression: float = 0.25,
    distance: DistanceName = "l2",
    critic_updates: int = 1,
) -> Objective:
    """DMD: samples move from where they crowd to where the teacher's are, in one step.

    Args:
        pairs: a folder of noise and what the teacher makes of it, of fewstep data pairs; needed
            unless regression is 0. Their noise is of std 1, and of the generator's level here.
        level: of the noise that the generator starts from; by default the teacher's highest.
        highest: noise level up to which scores are compared and learnt; by default the teacher's.
        regression: weight of the distance to those pairs.
        distance: of the pairs; lpips is for images and needs the extra of that name.
        critic_updates: of the score of generated samples, for each update of the generator.
    """
    from fewstep.objectives.dmd import DMD
    from fewstep.recipes import parts

    if regression:
        start.paired()
    student, common = _matching(start, 1, level, highest)
    return DMD(
        student,
        fake=start.fake(student.path),
        **common,
        distance=parts.distance(distance),
        regression=regression,
        critic_updates=critic_updates,
    )


def dmd2(
    start: Any,
    *,
    steps: int = 1,
    level: float | None = None,
    highest: float | None = None,
    critic_updates: int = 5,
    adversarial: float = 3e-3,
    adversarial_critic: float = 1e-2,
    features: Features = "fake",
    lora: int = 0,
) -> Objective:
    """DMD2: distribution matching with a discriminator, and a critic that keeps up.

    Args:
        steps: network calls of a sample, at most: 1, 2 or 4.
        level: of the noise that the generator starts from; by default the teacher's highest.
        highest: noise level up to which scores are compared and learnt; by default the teacher's.
        critic_updates: of the critic, for each update of the generator.
        adversarial: weight of the discriminator in the generator's loss; 0 leaves it out.
        adversarial_critic: weight of the discriminator in the critic's loss.
        features: it judges those of the score of generated samples, or of the teacher.
        lora: rank of the difference of that score's weights to the teacher's; 0 for weights of its
            own.
    """
    from fewstep.objectives.dmd2 import DMD2

    student, common = _matching(start, steps, level, highest)
    fake = start.fake(student.path, lora)
    return DMD2(
        student,
        fake=fake,
        **common,
        critic_updates=critic_updates,
        judge=start.judge(fake) if adversarial else None,
        adversarial=adversarial,
        adversarial_critic=adversarial_critic,
        adversarial_times=common["critic_times"],
        judged=features,
    )


def f_distill(
    start: Any,
    *,
    steps: int = 1,
    level: float | None = None,
    highest: float | None = None,
    divergence: Divergence = "js",
    critic_updates: int = 5,
    adversarial: float = 3e-3,
    adversarial_critic: float = 1e-2,
    features: Features = "fake",
) -> Objective:
    """f-distill: DMD2 for other divergences than the reverse KL, by the discriminator's ratio.

    Args:
        steps: network calls of a sample, at most: 1, 2 or 4.
        level: of the noise that the generator starts from; by default the teacher's highest.
        highest: noise level up to which scores are compared and learnt; by default the teacher's.
        divergence: which.
        critic_updates: of the critic, for each update of the generator.
        adversarial: weight of the discriminator in the generator's loss.
        adversarial_critic: weight of the discriminator in the critic's loss.
        features: it judges those of the score of generated samples, or of the teacher.
    """
    from fewstep.objectives.f_distill import FDistill

    student, common = _matching(start, steps, level, highest)
    fake = start.fake(student.path)
    return FDistill(
        student,
        fake=fake,
        judge=start.judge(fake),
        **common,
        divergence=divergence,
        critic_updates=critic_updates,
        adversarial=adversarial,
        adversarial_critic=adversarial_critic,
        judged=features,
    )


def diff_instruct(
    start: Any, *, level: float = 1.0, mean: float = -1.2, std: float = 1.2, critic_updates: int = 1
) -> Objective:
    """Diff-Instruct: distribution matching without a normaliser.

    Args:
        level: of the noise that the generator starts from.
        mean: of log sigma, where scores are compared and learnt.
        std: of log sigma.
        critic_updates: of the score of generated samples, for each update of the generator.
    """
    from fewstep.objectives.diff_instruct import DiffInstruct
    from fewstep.times import LogNormal

    student, common = _matching(start, 1, level, None)
    common |= {
        "times": LogNormal(mean, std),
        "critic_times": LogNormal(mean, std),
    }
    # Both of the networks that are compared have the teacher's dropout, with the same masks.
    fake = copy.deepcopy(start.source.on(student.path)).requires_grad_(True)
    return DiffInstruct(student, fake=fake, **common, critic_updates=critic_updates)


def sid(
    start: Any,
    *,
    level: float = 2.5,
    highest: float = 24.4,
    a: float = 1.2,
    critic_updates: int = 1,
) -> Objective:
    """SiD: the Fisher divergence of samples to a teacher's, by gradients through both scores.

    Args:
        level: of the noise that the generator starts from.
        highest: noise level at which scores are compared.
        a: share of the second term.
        critic_updates: of the score of generated samples, for each update of the generator.
    """
    return _sid(start, level, highest, a, critic_updates, 0.0)


def sida(
    start: Any,
    *,
    level: float = 2.5,
    highest: float = 24.4,
    a: float = 1.0,
    critic_updates: int = 1,
    adversarial: float = 1e-4,
) -> Objective:
    """SiDA: SiD and a discriminator.

    Args:
        level: of the noise that the generator starts from.
        highest: noise level at which scores are compared.
        a: share of the second term.
        critic_updates: of the critic, for each update of the generator.
        adversarial: weight of the discriminator in the generator's loss.
    """
    return _sid(start, level, highest, a, critic_updates, adversarial)


def _sid(
    start: Any, level: float, highest: float, a: float, critic_updates: int, adversarial: float
) -> Objective:
    from fewstep.objectives.sid import SiD
    from fewstep.times import KarrasUniform, LogNormal

    student, common = _matching(start, 1, level, highest)
    common |= {
        "times": KarrasUniform(start.source.path.t_min, highest),
        "critic_times": LogNormal(),
    }
    fake = start.fake(student.path)
    judge = start.judge(fake) if adversarial else None
    return SiD(
        student,
        fake=fake,
        **common,
        a=a,
        critic_updates=critic_updates,
        judge=judge,
        adversarial=adversarial,
    )


def ladd(
    start: Any,
    *,
    steps: int = 1,
    level: float | None = None,
    mean: float = 1.0,
    std: float = 1.0,
    distillation: float = 0.0,
    penalty: float = 1e-5,
    heads_rate: float = 2.0,
) -> Objective:
    """LADD: a discriminator on the features of the frozen teacher, and little else.

    Args:
        steps: network calls of a sample, at most: 1, 2 or 4.
        level: of the noise that the generator starts from; by default the teacher's highest.
        mean: of log sigma, over the data's standard deviation, where answers are judged.
        std: of log sigma.
        distillation: weight of the distance to the teacher's answers (ADD), which needs it.
        penalty: of the heads' gradient (R1).
        heads_rate: learning rate of the heads, as a multiple of the generator's.
    """
    from fewstep.objectives.ladd import LADD
    from fewstep.objectives.matching import FewSteps
    from fewstep.times import LogNormal

    if start.guidance != 1.0 and not distillation:
        raise UsageError(
            "without --distillation no answer of the teacher counts; leave out --guidance"
        )
    student, common = _matching(start, steps, level, None)
    return LADD(
        student,
        start.discriminator(student.path),
        generate=FewSteps(common["generate"].times, inputs="noised"),
        times=LogNormal(mean + math.log(start.sigma_data), std),
        teacher=common["teacher"] if distillation else None,
        teacher_times=common["times"] if distillation else None,
        distillation=distillation,
        penalty=penalty,
        heads_rate=heads_rate,
    )


def kd(start: Any, *, pairs: str = "", steps: int = 1, distance: DistanceName = "l2") -> Objective:
    """Knowledge distillation: what the teacher makes of noise, learnt by heart.

    Args:
        pairs: a folder of noise and what the teacher makes of it, of fewstep data pairs.
        steps: network calls of a sample: 1, or one more than the states that the pairs have.
        distance: of answer and sample; lpips is for images and needs the extra of that name.
    """
    from fewstep.objectives.kd import KnowledgeDistillation
    from fewstep.recipes import parts

    states = start.paired().times
    if steps not in {1, len(states)}:
        served = "1" if len(states) == 1 else f"1 or {len(states)}"
        raise UsageError(
            f"--steps must be {served} with the states of these pairs, got {steps}; make others "
            "with fewstep data pairs --paths STEPS-1"
        )
    return KnowledgeDistillation(
        start.student(), states=states, times=states[:steps], distance=parts.distance(distance)
    )


def rcm(
    start: Any,
    *,
    mean: float = -1.0,
    std: float = 1.4,
    warmup: float = 0.1,
    weight: float = 0.01,
    critic_updates: int = 4,
    rate: float = 0.2,
) -> Objective:
    """rCM: continuous-time consistency distillation (sCD), and distribution matching beside it.

    Args:
        mean: of log sigma, in the consistency loss.
        std: of log sigma.
        warmup: share of the steps in which the derivative's part grows.
        weight: of the distribution matching.
        critic_updates: of the critic, between two of the generator; a step is the one or the other.
        rate: learning rate of the critic, as a multiple of the generator's.
    """
    from fewstep.objectives.rcm import RCM
    from fewstep.paths import Trig
    from fewstep.times import KarrasIndex, LogNormal

    if not (0 <= warmup <= 1 and weight >= 0 and critic_updates >= 1 and rate > 0):
        raise UsageError(
            "expected --warmup in [0, 1], --weight of 0 or more, --critic-updates of 1 or more and "
            f"--rate above 0, got {warmup}, {weight}, {critic_updates} and {rate}"
        )
    own, sigma_data = start.source.path, start.sigma_data
    path = Trig(t_max=math.atan(own.t_max / sigma_data), sigma_data=sigma_data)
    return RCM(
        start.student(path),
        start.teacher_on(path),
        start.fake(path),
        times=LogNormal(mean, std),
        matching_times=KarrasIndex(t_min=own.t_min, t_max=own.t_max),
        weight=weight,
        warmup=round(warmup * start.train.steps),
        every=critic_updates + 1,
        rate=rate,
    )


def drifting(
    start: Any, *, group: int = 64, temperatures: tuple[float, ...] = (0.02, 0.05, 0.2)
) -> Objective:
    """Drifting: samples are drawn to the data and driven from each other, without a teacher.

    Args:
        group: samples that meet.
        temperatures: of the kernel, in mean distances.
    """
    from fewstep.objectives.drifting import Drifting
    from fewstep.objectives.matching import FewSteps
    from fewstep.paths import VarianceExploding

    path = VarianceExploding(0.0, start.source.path.t_max)
    student = start.student(path)
    generate = FewSteps((path.t_max,))
    return Drifting(student, generate=generate, group=group, temperatures=temperatures)


def _matching(
    start: Any, steps: int, level: float | None, highest: float | None
) -> tuple[Any, dict[str, Any]]:
    """The generator, and what a method of distribution matching needs beside it and the fake."""
    from fewstep.objectives.matching import FewSteps
    from fewstep.objectives.terms import karras_weight
    from fewstep.paths import VarianceExploding
    from fewstep.times import KarrasIndex

    own = start.source.path
    first: float = own.t_max if level is None else level
    top: float = own.t_max if highest is None else highest
    if not own.t_min < min(first, top) <= max(first, top) <= own.t_max:
        raise UsageError(
            f"noise levels must lie above {own.t_min} and be {own.t_max} at most, got "
            f"{first} and {top}"
        )
    # Noised again, an answer counts as clean data, in training as in sampling.
    path = VarianceExploding(0.0, own.t_max)
    levels = {"t_min": own.t_min, "t_max": top}
    # From a lower level on, the later times keep their places on a logarithmic scale.
    low, share = own.t_min, math.log(first / own.t_min) / math.log(own.t_max / own.t_min)
    times = (first, *(low * (t / low) ** share for t in start.times(path, steps)[1:]))
    return start.student(path), {
        "teacher": start.teacher_on(path),
        "generate": FewSteps(times),
        "weight": karras_weight(start.sigma_data),
        "times": KarrasIndex(**levels),
        "critic_times": KarrasIndex(0, 999, **levels),
    }
