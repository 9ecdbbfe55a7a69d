"""Recipes of consistency distillation (Song et al. 2023, algorithm 2; table 3 of its appendix)."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start
from fewstep.recipes.options import DistanceName
from fewstep.recipes.shared import RADAM, at_least, distance, pair_weight, share


@dataclass(frozen=True, kw_only=True)
class ConsistencyDistillation(MethodOptions):
    """Consistency distillation: adjacent points of the teacher's trajectories agree."""

    points: int = 18
    """Number N of points of the Karras grid, at least 2."""
    target: float = 0.0
    """Averaging rate of the target network, in [0, 1); 0 makes the student its own target."""
    distance: DistanceName = "l2"
    """Distance of the two answers; lpips needs the extra of that name."""
    equal: bool = False
    """Weigh all times equally, as published; short runs do better with EDM's weight and l2."""

    def objective(self, start: Start) -> Objective:
        from fewstep.objectives.consistency import Consistency, Fixed, TeacherStep
        from fewstep.objectives.shared.weights import equal_weight

        at_least("points", self.points, 2)
        share("target", self.target)
        student = start.student(boundary=True)
        return Consistency(
            student,
            TeacherStep(start.teacher_on(student.path)),
            schedule=Fixed(self.points, self.target),
            weight=equal_weight if self.equal else pair_weight(start, student.path, edm=True),
            distance=distance(self.distance),
            drop=start.drop,
        )


_SMALL = Setting({"points": 10})
_PUBLISHED = {"distance": "lpips", "equal": True}

SETTINGS = {
    "digits": Setting({"points": 10}, cost="2 min", result="1 call: fd 0.32"),
    "plane": Setting(train={"steps": 3000}, cost="1 min", result="docs/results.md"),
    "images": Setting(cost="as data and network ask", result="MNIST: docs/results.md"),
    "pusht": Setting(result="docs/applications.md"),
    "small": _SMALL,
    "fashion-mnist-small": Setting(cost="15 min", result="docs/results.md"),
    "cifar10-small": Setting(cost="some hours", result="not run"),
    "cifar10": Setting(
        {**_PUBLISHED, "middle": 0.585},
        {"steps": 800_000, "accumulation": 8, "lr": 4e-4, **RADAM},
        result="paper: FID 3.55, 2.93",
    ),
    "fashion-mnist": Setting(
        _PUBLISHED, {"steps": 800_000, "accumulation": 8, "lr": 4e-4, **RADAM}, result="not run"
    ),
    "imagenet-64-adm": Setting(
        {**_PUBLISHED, "points": 40, "target": 0.95, "middle": 1.382},
        {"steps": 600_000, "accumulation": 32, "lr": 8e-6, **RADAM},
        result="paper: FID 6.20, 4.70",
    ),
}

METHODS = (Method("cd", "CD", 2023, ConsistencyDistillation, SETTINGS, distils=True),)
