"""Recipes of knowledge distillation (Luhman & Luhman 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.errors import UsageError
from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start
from fewstep.recipes.options import DistanceName
from fewstep.recipes.shared import distance


@dataclass(frozen=True, kw_only=True)
class KnowledgeDistillation(MethodOptions):
    """Knowledge distillation: the student learns the teacher's sample of each noise."""

    pairs: str = ""
    """Folder of noise and the teacher's samples, made by fewstep data pairs."""
    steps: int = 1
    """Network calls of a sample: 1, or one more than the states that the pairs have."""
    distance: DistanceName = "l2"
    """Distance of answer and sample; lpips is for images and needs the extra of that name."""

    def objective(self, start: Start) -> Objective:
        from fewstep.objectives.kd import KnowledgeDistillation as Objective

        states = start.paired().times
        if self.steps not in {1, len(states)}:
            served = "1" if len(states) == 1 else f"1 or {len(states)}"
            raise UsageError(
                f"--steps must be {served} with the states of these pairs, got {self.steps}; make "
                "others with fewstep data pairs --paths STEPS-1"
            )
        return Objective(
            start.student(),
            states=states,
            times=states[: self.steps],
            distance=distance(self.distance),
        )

    def needs_pairs(self) -> bool:
        """Always."""
        return True


SETTINGS = {"digits": Setting(result="1 call: fd 0.359")}

METHODS = (
    Method("kd", "knowledge distillation", 2021, KnowledgeDistillation, SETTINGS, distils=True),
)
