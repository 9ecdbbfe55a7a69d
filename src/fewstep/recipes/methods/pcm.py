"""Recipes of phased consistency models (Wang et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start
from fewstep.recipes.shared import discriminator


@dataclass(frozen=True, kw_only=True)
class PhasedConsistency(MethodOptions):
    """Phased consistency: consistency within each of several phases, each one step of sampling."""

    phases: int = 4
    """Number of phases, and of steps of the sampler."""
    points: int = 41
    """Number of points of the Karras grid."""
    adversarial: float = 0.0
    """Weight of a discriminator on the teacher's features: 0.1 as published, 0 leaves it out."""

    def objective(self, start: Start) -> Objective:
        from fewstep.objectives.pcm import PhasedConsistency as Objective
        from fewstep.objectives.pcm import TeacherStep
        from fewstep.solvers import ddim
        from fewstep.times import Phases, karras

        student = start.student()
        path = student.path
        return Objective(
            student,
            TeacherStep(start.teacher_on(path), ddim),
            phases=Phases(karras(self.points, path.t_min, path.t_max), self.phases),
            drop=start.drop,
            discriminator=discriminator(start, path, self.adversarial),
            adversarial=self.adversarial,
        )


SETTINGS = {
    "digits": Setting({"points": 21}, result="4 calls: fd 0.427"),
    "plane": Setting({"points": 61}, {"steps": 9000}),
    "small": Setting({"points": 21}),
}

METHODS = (Method("pcm", "PCM", 2024, PhasedConsistency, SETTINGS, distils=True),)
