"""Recipes of sCM, consistency models in continuous time: sCT and sCD (Lu & Song 2025, eq. 3, 8)."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start
from fewstep.recipes.shared import CONTINUOUS, RADAM, trig


@dataclass(frozen=True, kw_only=True)
class ContinuousConsistencyTraining(MethodOptions):
    """Consistency training in continuous time (sCT), on TrigFlow."""

    mean: float = -1.0
    """Mean of log sigma in training."""
    std: float = 1.4
    """Standard deviation of log sigma in training."""
    c: float = 0.1
    """Constant of the tangent's normalisation, in units of a whole sample's norm."""
    warmup: float = 0.1
    """Share of the updates in which the derivative's part grows to its full weight."""

    def objective(self, start: Start) -> Objective:
        return _objective(self, start, distils=False)


@dataclass(frozen=True, kw_only=True)
class ContinuousConsistencyDistillation(MethodOptions):
    """Consistency distillation in continuous time (sCD), on TrigFlow."""

    mean: float = -1.0
    """Mean of log sigma in training."""
    std: float = 1.4
    """Standard deviation of log sigma in training."""
    c: float = 0.1
    """Constant of the tangent's normalisation, in units of a whole sample's norm."""
    warmup: float = 0.1
    """Share of the updates in which the derivative's part grows to its full weight."""

    def objective(self, start: Start) -> Objective:
        return _objective(self, start, distils=True)


Options = ContinuousConsistencyTraining | ContinuousConsistencyDistillation


def _objective(options: Options, start: Start, distils: bool) -> Objective:
    from functools import partial

    from fewstep.objectives.scm import SCM
    from fewstep.objectives.shared.trigflow import normalised
    from fewstep.times import LogNormal

    path = trig(start)
    return SCM(
        start.student(path),
        start.teacher_on(path) if distils else None,
        times=LogNormal(options.mean, options.std),
        limit=partial(normalised, c=options.c),
        warmup=round(options.warmup * start.train.steps),
        uncertainty=start.uncertainty(),
        drop=start.drop,
    )


_DIGITS = {"mean": -0.5, "std": 1.6}
_CIFAR = {"warmup": 0.025, "rates": (), "half_life": 0.5e6, "middle": 0.982}
_CIFAR_TRAIN = {"steps": 400_000, "accumulation": 8, "lr": 1e-4, "betas": (0.9, 0.99), **RADAM}
_EDM2 = {"std": 1.6, "warmup": 0.025, "rates": (), "average_widths": (0.05,), "middle": 0.982}
_EDM2_TRAIN = {
    **{"steps": 400_000, "accumulation": 32, "lr": 1e-4, "eps": 1e-11, "precision": "fp16"},
    **{"decay_steps": 35_000, "schedule": "inverse_sqrt", "betas": (0.9, 0.99)},
}
_COMMON = {"images": Setting(train=CONTINUOUS), "small": Setting(train=CONTINUOUS)}

# In the plane a tangent over little more than its own norm is biased.
SCT = _COMMON | {
    "digits": Setting(_DIGITS, CONTINUOUS, "1 call: fd 0.879"),
    "plane": Setting({"mean": 0.0, "std": 2.0, "c": 1.0}, {"steps": 2000, "lr": 3e-4}),
    "cifar10": Setting({**_CIFAR, "dropout": 0.2}, _CIFAR_TRAIN, "paper: FID 2.85, 2.06"),
    "imagenet-64-edm2": Setting(
        {**_EDM2, "dropout": 0.45}, _EDM2_TRAIN, "paper (XL): FID 2.04, 1.48"
    ),
}
SCD = _COMMON | {
    "digits": Setting(_DIGITS, CONTINUOUS, "1 call: fd 1.128"),
    "plane": Setting({"mean": -0.7, "std": 2.0, "c": 1.0}, {"steps": 3000, "lr": 3e-4}),
    "fashion-mnist-small": Setting(_DIGITS),
    "cifar10": Setting(_CIFAR, _CIFAR_TRAIN, "paper: FID 3.66, 2.52"),
    "imagenet-64-edm2": Setting(_EDM2, _EDM2_TRAIN, "paper (XL): FID 2.44, 1.66"),
}

METHODS = (
    Method("sct", "sCT", 2024, ContinuousConsistencyTraining, SCT),
    Method("scd", "sCD", 2024, ContinuousConsistencyDistillation, SCD, distils=True),
)
