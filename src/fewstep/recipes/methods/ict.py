"""Recipes of improved consistency training (Song & Dhariwal 2024, eq. 7, 10)."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start
from fewstep.recipes.shared import RADAM, per_root_dimension


@dataclass(frozen=True, kw_only=True)
class ImprovedConsistencyTraining(MethodOptions):
    """Improved consistency training: a grid that doubles in stages, pseudo-Huber, 1/(t - r)."""

    first: int = 10
    """Number of intervals of the first stage's grid."""
    last: int = 1280
    """Number of intervals of the last stage's grid."""
    c: float = 0.00054
    """Constant of the pseudo-Huber distance of whole samples, over the root of their dimension."""

    def objective(self, start: Start) -> Objective:
        from fewstep.objectives.ict import Doubling, ImprovedConsistency
        from fewstep.objectives.shared.distances import PseudoHuber

        return ImprovedConsistency(
            start.student(boundary=True),
            schedule=Doubling(start.train.steps, self.first, self.last),
            distance=PseudoHuber(per_root_dimension(self.c, start)),
            drop=start.drop,
        )


_CIFAR = {"dropout": 0.3, "rates": (0.99993,)}
_CIFAR_TRAIN = {"steps": 400_000, "accumulation": 16, "lr": 1e-4, **RADAM}

SETTINGS = {
    "digits": Setting({"last": 40}, result="1 call: fd 0.555"),
    "plane": Setting({"first": 20, "c": 0.015}, {"steps": 12_000, "clip": 10.0}),
    "small": Setting({"last": 40}),
    "cifar10": Setting(_CIFAR, _CIFAR_TRAIN, result="paper: FID 2.83, 2.46"),
    "cifar10-deep": Setting(_CIFAR, _CIFAR_TRAIN, result="paper: FID 2.51, 2.24"),
    "imagenet-64-adm": Setting(
        {"dropout": 0.2, "rates": (0.99997,), "middle": 1.526},
        {"steps": 800_000, "accumulation": 64, "lr": 1e-4, **RADAM},
        result="paper: FID 4.02, 3.20",
    ),
}

METHODS = (Method("ict", "iCT", 2023, ImprovedConsistencyTraining, SETTINGS, scratch=True),)
