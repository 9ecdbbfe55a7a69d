"""The consistency family as recipes see it: options, and the objective made of a start.

A function's keyword options are the command line's; nothing here imports torch before it is called.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.objectives.base import Objective

DistanceName = Literal["lpips", "l2", "l1", "pseudo-huber"]


def cd(start: Any, *, points: int = 18) -> Objective:
    """Consistency distillation: adjacent points of the teacher's trajectories agree.

    Args:
        points: N of the Karras grid.
    """
    from fewstep.objectives.consistency import Consistency, TeacherStep
    from fewstep.objectives.distances import l2
    from fewstep.objectives.terms import karras_weight
    from fewstep.recipes import parts

    student = start.student(boundary=True)
    snr = karras_weight(start.sigma_data)
    return Consistency(
        student,
        TeacherStep(start.teacher_on(student.path)),
        schedule=parts.fixed(points),
        weight=lambda t, r: snr(student.path.snr(t)),
        distance=l2,
        drop=start.drop,
    )


def ct(start: Any, *, first: int = 10, last: int = 80, c: float = 0.00054) -> Objective:
    """Consistency training: adjacent points of a straight line from noise to data agree.

    Args:
        first: N at the first step.
        last: N at the last.
        c: of the pseudo-Huber distance of whole samples, over the root of their dimension.
    """
    from fewstep.objectives.consistency import Consistency, SameNoise
    from fewstep.objectives.distances import PseudoHuber
    from fewstep.recipes import parts
    from fewstep.times import DiscreteLogNormal

    student = start.student(boundary=True)
    return Consistency(
        student,
        SameNoise(student.path),
        schedule=parts.growing(first, last, start.train.steps),
        weight=lambda t, r: 1 / (t - r),
        distance=PseudoHuber(c * math.prod(start.data.shape) ** 0.5),
        index=DiscreteLogNormal(),
        drop=start.drop,
    )


def ict(start: Any, *, first: int = 10, last: int = 1280, c: float = 0.00054) -> Objective:
    """Improved consistency training: a grid that doubles in stages, pseudo-Huber, 1/(t - r).

    Args:
        first: intervals of the first stage.
        last: of the last stage.
        c: of the pseudo-Huber distance of whole samples, over the root of their dimension.
    """
    from fewstep.objectives.distances import PseudoHuber
    from fewstep.objectives.ict import Doubling, ImprovedConsistency

    student = start.student(boundary=True)
    return ImprovedConsistency(
        student,
        schedule=Doubling(start.train.steps, first, last),
        distance=PseudoHuber(c * math.prod(start.data.shape) ** 0.5),
        drop=start.drop,
    )


def ect(
    start: Any,
    *,
    q: float = 2.0,
    stages: int = 8,
    mean: float = -1.1,
    std: float = 2.0,
    c: float = 0.0,
    edm_weight: bool = False,
) -> Objective:
    """Easy consistency tuning of a diffusion model: the earlier time draws nearer in stages.

    Args:
        q: the gap shrinks to its q-th part from stage to stage.
        stages: of equal length; from 1.
        mean: of log sigma, in training.
        std: of log sigma.
        c: of the pseudo-Huber distance of whole samples; 0 is the norm.
        edm_weight: weigh by 1/t^2 + 1/sigma_data^2 (ImageNet-64) instead of 1/(t - r).
    """
    from fewstep.objectives.distances import PseudoHuber
    from fewstep.objectives.ect import Curriculum, EasyConsistency, SameNoise
    from fewstep.paths import VarianceExploding
    from fewstep.times import LogNormal

    student = start.student(VarianceExploding(0.0, start.source.path.t_max))
    return EasyConsistency(
        student,
        SameNoise(student.path),
        curriculum=Curriculum(_parts(start, stages), q),
        times=LogNormal(mean, std),
        distance=PseudoHuber(c),
        drop=start.drop,
        **_edm_weight(start, student.path, edm_weight),
    )


def tcm(
    start: Any,
    *,
    at: float = 1.0,
    q: float = 2.0,
    stage: int = 7,
    limit: float = 0.999,
    c: float = 1e-8,
    edm_weight: bool = False,
) -> Objective:
    """Truncated consistency training, the second stage: only the times above ``at`` are trained.

    Args:
        at: t'; below it the first stage's model stays.
        q: as in the first stage.
        stage: the first stage's last, from 0.
        limit: of r/t.
        c: of the pseudo-Huber distance of whole samples; 0 is the norm.
        edm_weight: weigh by 1/t^2 + 1/sigma_data^2 (ImageNet-64) instead of 1/(t - r).
    """
    from fewstep.objectives.distances import PseudoHuber
    from fewstep.objectives.tcm import Curriculum, SameNoise, TruncatedConsistency
    from fewstep.paths import VarianceExploding

    path = VarianceExploding(0.0, start.source.path.t_max)
    student = start.student(path)
    every = start.train.steps
    return TruncatedConsistency(
        student,
        start.student(path),
        SameNoise(path),
        curriculum=Curriculum(every, q, limit=limit, least=1e-6, start=stage * every),
        at=at,
        distance=PseudoHuber(c),
        drop=start.drop,
        **_edm_weight(start, path, edm_weight),
    )


def progressive(start: Any, *, first: int = 16) -> Objective:
    """Progressive distillation: the number of steps is halved in stages of equal length, to one.

    Args:
        first: steps of the first student, a power of two.
    """
    from fewstep.objectives.progressive import Halving, ProgressiveDistillation

    student = start.student()
    return ProgressiveDistillation(
        student,
        start.teacher_on(student.path),
        schedule=Halving(first, halving_stage(start.train.steps, first), last=1),
    )


def halving_stage(steps: int, first: int) -> int:
    """Steps of a stage of progressive distillation."""
    return max(1, steps // first.bit_length())


def sct(
    start: Any, *, mean: float = -1.0, std: float = 1.4, c: float = 0.1, warmup: float = 0.1
) -> Objective:
    """Consistency training in continuous time (sCT), on TrigFlow.

    Args:
        mean: of log sigma, in training.
        std: of log sigma.
        c: of the tangent's normalisation.
        warmup: share of the steps in which the derivative's part grows.
    """
    from fewstep.times import LogNormal

    return _scm(start, None, LogNormal(mean, std), c, warmup)


def scd(
    start: Any, *, mean: float = -1.0, std: float = 1.4, c: float = 0.1, warmup: float = 0.1
) -> Objective:
    """Consistency distillation in continuous time (sCD), on TrigFlow.

    Args:
        mean: of log sigma, in training.
        std: of log sigma.
        c: of the tangent's normalisation.
        warmup: share of the steps in which the derivative's part grows.
    """
    from fewstep.times import LogNormal

    return _scm(start, start.teacher_on, LogNormal(mean, std), c, warmup)


def _scm(start: Any, teacher_on: Any, sigmas: Any, c: float, warmup: float) -> Objective:
    from functools import partial

    from fewstep.models.nets.edm2 import Uncertainty
    from fewstep.objectives.scm import SCM
    from fewstep.objectives.terms import normalised
    from fewstep.paths import Trig

    sigma_data = start.sigma_data
    path = Trig(t_max=math.atan(start.source.path.t_max / sigma_data), sigma_data=sigma_data)
    return SCM(
        start.student(path),
        None if teacher_on is None else teacher_on(path),
        times=sigmas,
        limit=partial(normalised, c=c),
        warmup=round(warmup * start.train.steps),
        uncertainty=Uncertainty(),
        drop=start.drop,
    )


def ctm(
    start: Any,
    *,
    points: int = 18,
    solver_steps: int = 17,
    rate: float = 0.999,
    distance: DistanceName = "l2",
    adversarial: float = 0.0,
    adversarial_from: float = 0.0,
) -> Objective:
    """Consistency trajectory models: jumps between any two times of a teacher's trajectory.

    Args:
        points: of the Karras grid.
        solver_steps: of the teacher at most, in one update.
        rate: of the target's average.
        distance: lpips is for images and needs the extra of that name.
        adversarial: strength of a discriminator on the teacher's features, beside the weight by
            gradients, 1 as published; 0 leaves it out.
        adversarial_from: share of the steps after which it joins.
    """
    from fewstep.objectives.ctm import ConsistencyTrajectory
    from fewstep.objectives.terms import karras_weight
    from fewstep.recipes import parts
    from fewstep.times import HalfHigh, karras

    student = start.student(two_time=True)
    path = student.path
    return ConsistencyTrajectory(
        student,
        start.teacher_on(path),
        grid=karras(points, path.t_min, path.t_max),
        solver_steps=solver_steps,
        times=HalfHigh(),
        weight=karras_weight(start.sigma_data),
        rate=rate,
        distance=parts.distance(distance),
        discriminator=_discriminator(start, path, adversarial),
        adversarial=adversarial,
        adversarial_start=round(adversarial_from * start.train.steps),
    )


def pcm(start: Any, *, phases: int = 4, points: int = 41, adversarial: float = 0.0) -> Objective:
    """Phased consistency: consistency within each of so many phases, which is one step each.

    Args:
        phases: and steps of the sampler.
        points: of the Karras grid.
        adversarial: weight of a discriminator on the teacher's features, 0.1 as published; 0
            leaves it out.
    """
    from fewstep.objectives.pcm import PhasedConsistency, TeacherStep
    from fewstep.solvers import ddim
    from fewstep.times import Phases, karras

    student = start.student()
    path = student.path
    return PhasedConsistency(
        student,
        TeacherStep(start.teacher_on(path), ddim),
        phases=Phases(karras(points, path.t_min, path.t_max), phases),
        drop=start.drop,
        discriminator=_discriminator(start, path, adversarial),
        adversarial=adversarial,
    )


def meanflow(
    start: Any,
    *,
    mean: float = -0.4,
    std: float = 1.0,
    equal: float = 0.75,
    power: float = 1.0,
    c: float = 0.01,
    omega: float = 1.0,
    kappa: float = 0.0,
) -> Objective:
    """MeanFlow: the average velocity between any two times, by its derivative.

    Args:
        mean: of the logit of both times.
        std: of the logit.
        equal: share of samples whose two times are one.
        power: of the adaptive weight.
        c: of the adaptive weight.
        omega: share of the sample's own velocity in what is learnt; 1, with kappa 0, is no
            guidance.
        kappa: share of the model's velocity with the label; the rest, to 1, is the one without.
            The guidance so trained in has the scale omega / (1 - kappa).
    """
    from fewstep.objectives.meanflow import AdaptiveWeight, MeanFlow, TrainedGuidance
    from fewstep.paths import Linear
    from fewstep.times import LogitNormal, TwoTimes

    path = Linear()
    law = LogitNormal(mean, std)
    guided = (omega, kappa) != (1.0, 0.0)
    if guided and start.drop is None:
        raise UsageError(
            f"omega={omega:g} and kappa={kappa:g} guide towards labels, a share of which must be "
            "dropped; here there are none, or none are dropped; leave both out"
        )
    return MeanFlow(
        start.student(path, two_time=True),
        times=TwoTimes(law, law, equal),
        weight=AdaptiveWeight(power, c),
        drop=start.drop,
        guidance=TrainedGuidance(omega, kappa) if guided else None,
    )


def imm(
    start: Any,
    *,
    group: int = 4,
    k: float = 12.0,
    a: float = 1.0,
    b: float = 4.0,
    t_min: float = 0.002,
    t_max: float = 80 / 81,
) -> Objective:
    """Inductive moment matching: what jumps from two noise levels make is distributed alike.

    Args:
        group: samples that share their times.
        k: the earlier level is 2^-k of their range before.
        a: of the weight.
        b: of the weight.
        t_min: of t in x_t = (1 - t) x_0 + t eps; the noise level is t / (1 - t).
        t_max: of t.
    """
    from fewstep.objectives.imm import InductiveMomentMatching
    from fewstep.paths import Linear

    path = Linear(t_min, t_max)
    return InductiveMomentMatching(
        start.student(path, two_time=True),
        sigma_data=start.sigma_data,
        group=group,
        k=k,
        a=a,
        b=b,
        drop=start.drop,
    )


def shortcut(start: Any, *, sections: int = 128, every: int = 8, rate: float = 0.999) -> Objective:
    """Shortcut models: a jump is what two jumps of half its size make.

    Args:
        sections: of the finest grid, a power of two.
        every: one sample of so many teaches a jump, the others velocities.
        rate: of the average that teaches jumps.
    """
    from fewstep.objectives.shortcut import Shortcut
    from fewstep.paths import Linear

    return Shortcut(
        start.student(Linear(), two_time=True),
        sections=sections,
        every=every,
        rate=rate,
        drop=start.drop,
    )


def flowmap(
    start: Any,
    *,
    lagrangian: bool = False,
    mean: float = -0.8,
    std: float = 1.0,
    c: float = 0.1,
    warmup: float = 0.1,
    ratio_max: float = 0.99,
) -> Objective:
    """Flow-map distillation (Align Your Flow): a teacher's trajectories, between any two times.

    Args:
        lagrangian: the end of the jump moves along the trajectory, instead of its start.
        mean: of the logit of the length of jumps.
        std: of the logit.
        c: of the tangent's normalisation.
        warmup: share of the steps in which the derivative's part grows.
        ratio_max: up to this.
    """
    from fewstep.objectives.flowmap import FlowMap
    from fewstep.paths import Linear
    from fewstep.times import LogitNormal

    path = Linear()
    return FlowMap(
        start.student(path, two_time=True),
        start.teacher_on(path),
        kind="lagrangian" if lagrangian else "eulerian",
        gap=LogitNormal(mean, std),
        c=c,
        ratio_max=ratio_max,
        warmup=round(warmup * start.train.steps),
    )


def _discriminator(start: Any, path: Any, weight: float) -> Any:
    """A discriminator for a term of that weight."""
    if not weight >= 0:
        raise UsageError(f"adversarial is a weight, 0 or more, got {weight}; 0 leaves it out")
    return start.discriminator(path) if weight else None


def _edm_weight(start: Any, path: Any, wanted: bool) -> dict[str, Any]:
    """EDM's weight of the later time, as an argument; none leaves the method's own."""
    from fewstep.objectives.terms import karras_weight

    snr = karras_weight(start.sigma_data)
    return {"weight": lambda t, r: snr(path.snr(t))} if wanted else {}


def _parts(start: Any, stages: int) -> int:
    """Steps of one of so many equal stages."""
    if stages < 1:
        raise UsageError(f"stages must be at least 1, got {stages}")
    return -(-start.train.steps // stages)
