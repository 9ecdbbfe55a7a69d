"""Recipes of consistency training (Song et al. 2023, algorithm 3; settings of table 3)."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start
from fewstep.recipes.options import DistanceName
from fewstep.recipes.shared import RADAM, at_least, distance, per_root_dimension, share


@dataclass(frozen=True, kw_only=True)
class ConsistencyTraining(MethodOptions):
    """Consistency training: adjacent points of a straight line from noise to data agree."""

    first: int = 10
    """Number N of grid points at the first step, at least 2."""
    last: int = 80
    """Number N of grid points at the last step."""
    start_rate: float = 0.0
    """First averaging rate of the target network, which follows N; 0 is the student itself."""
    distance: DistanceName = "pseudo-huber"
    """Distance of the two answers; lpips needs the extra of that name."""
    c: float = 0.00054
    """Constant of the pseudo-Huber distance of whole samples, over the root of their dimension."""
    equal: bool = False
    """Draw all intervals and weigh all times equally, and drop no labels, as published; short runs
    want log-normal intervals and the weight 1/(t - r)."""

    def objective(self, start: Start) -> Objective:
        from fewstep.objectives.consistency import Consistency, Progressive, SameNoise
        from fewstep.objectives.shared.discrete import inverse_gap
        from fewstep.objectives.shared.weights import equal_weight
        from fewstep.times import DiscreteLogNormal, UniformIndex

        at_least("first", self.first, 2)
        at_least("last", self.last, self.first)
        share("start_rate", self.start_rate)
        student, rate = start.student(boundary=True), self.start_rate
        return Consistency(
            student,
            SameNoise(student.path),
            schedule=Progressive(self.first, self.last, start.train.steps, rate, adaptive=rate > 0),
            weight=equal_weight if self.equal else inverse_gap,
            distance=distance(self.distance, per_root_dimension(self.c, start)),
            index=UniformIndex() if self.equal else DiscreteLogNormal(),
            drop=None if self.equal else start.drop,
        )


_PUBLISHED = {"first": 2, "last": 150, "start_rate": 0.9}
_PUBLISHED |= {"distance": "lpips", "equal": True}

SETTINGS = {
    "digits": Setting({"last": 40}, result="1 call: fd 0.535"),
    "plane": Setting({"last": 640, "c": 0.01}, {"steps": 5000}, "docs/results.md", "2 min"),
    "images": Setting(
        train={"steps": 20_000}, cost="as data and network ask", result="MNIST: docs/results.md"
    ),
    "small": Setting({"last": 40}, {"lr": 1e-3}),
    "fashion-mnist-small": Setting(train={"steps": 900}, cost="15 min", result="docs/results.md"),
    "cifar10-small": Setting(train={"steps": 5000}, cost="some hours", result="not run"),
    "cifar10": Setting(
        _PUBLISHED,
        {"steps": 800_000, "accumulation": 8, "lr": 4e-4, **RADAM},
        result="paper: FID 8.70, 5.83",
    ),
    "fashion-mnist": Setting(
        _PUBLISHED, {"steps": 800_000, "accumulation": 8, "lr": 4e-4, **RADAM}, result="not run"
    ),
    "imagenet-64-adm": Setting(
        {**_PUBLISHED, "last": 200, "start_rate": 0.95, "middle": 1.913},
        # The paper's learning rate; the launch script has 1e-4.
        {"steps": 800_000, "accumulation": 32, "lr": 8e-6, **RADAM},
        result="paper: FID 13.0, 11.1",
    ),
}

METHODS = (Method("ct", "CT", 2023, ConsistencyTraining, SETTINGS, scratch=True),)
