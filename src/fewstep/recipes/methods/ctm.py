"""Recipes of consistency trajectory models (Kim, Lai et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.option_kinds import Reals
from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start
from fewstep.recipes.options import DistanceName, Real
from fewstep.recipes.shared import RADAM, discriminator, distance


@dataclass(frozen=True, kw_only=True)
class ConsistencyTrajectory(MethodOptions):
    """Consistency trajectory models: jumps between any two times of a teacher's trajectory."""

    points: int = 18
    """Number of points of the Karras grid."""
    solver_steps: int = 17
    """Steps of the teacher in one update, at most."""
    rate: float = 0.999
    """Averaging rate of the target network, in [0, 1)."""
    distance: DistanceName = "l2"
    """Distance of the two jumps; lpips is for images and needs the extra of that name."""
    adversarial: float = 0.0
    """Strength of a discriminator on the teacher's features, beside the weight by gradients: 1 as
    published, 0 leaves it out."""
    adversarial_from: float = 0.0
    """Share of the updates after which the discriminator joins."""
    gamma: float = 0.0
    """Share of fresh noise between the calls of a sample, in [0, 1]."""
    jumps: bool = False
    """Regress the whole jump to the data in the denoising term, as Consistency Policy does."""
    balanced: bool = True
    """Weigh the terms by their gradients; Consistency Policy adds them as they are."""
    start_std: Real = None
    """Standard deviation of the noise that samples start from; Consistency Policy has 1, whatever
    the highest noise level is. By default it is the highest noise level."""
    chain: Reals = ()
    """Noise levels of the further calls of one sample of several calls, e.g. 12.0 0.885."""

    def own_times(self) -> bool:
        """Where a chain is given."""
        return bool(self.chain)

    def objective(self, start: Start) -> Objective:
        from fewstep.objectives.ctm import ConsistencyTrajectory as Objective
        from fewstep.objectives.shared.weights import karras_weight
        from fewstep.times import HalfHigh, karras

        student = start.student(two_time=True)
        path = student.path
        return Objective(
            student,
            start.teacher_on(path),
            grid=karras(self.points, path.t_min, path.t_max),
            solver_steps=self.solver_steps,
            times=HalfHigh(),
            weight=karras_weight(start.sigma_data),
            rate=self.rate,
            distance=distance(self.distance),
            discriminator=discriminator(start, path, self.adversarial),
            adversarial=self.adversarial,
            adversarial_start=round(self.adversarial_from * start.train.steps),
            gamma=self.gamma,
            jumps=self.jumps,
            balanced=self.balanced,
            start_std=self.start_std,
            chain=self.chain,
        )


_SHORT = {"points": 10, "solver_steps": 3, "rate": 0.99}
"""With the published 17 solver steps an update costs ten times as much."""

SETTINGS = {
    "digits": Setting(_SHORT, result="1 call: fd 0.397"),
    "plane": Setting({"solver_steps": 3, "rate": 0.99}, {"steps": 1800}),
    "images": Setting(_SHORT),
    "pusht": Setting(
        {"points": 20, "solver_steps": 1, "rate": 0.0, "jumps": True, "balanced": False}
        | {"gamma": 1.0, "start_std": 1.0, "chain": (12.0, 0.885)},
        result="docs/applications.md",
    ),
    "small": Setting(_SHORT),
    "cifar10": Setting(
        {"distance": "lpips", "rates": (0.999, 0.9999)},
        {"steps": 100_000, "accumulation": 2, "lr": 4e-4, **RADAM},
        result="paper: FID 5.19",
    ),
    "imagenet-64-adm": Setting(
        {"points": 40, "solver_steps": 39, "distance": "lpips", "rates": (0.999,)},
        {"steps": 30_000, "batch": 60, "accumulation": 24, "lr": 4e-4, **RADAM},
        result="not run",
    ),
}

METHODS = (Method("ctm", "CTM", 2023, ConsistencyTrajectory, SETTINGS, distils=True),)
