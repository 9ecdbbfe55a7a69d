"""Recipes of drifting (2026, arXiv 2602.04770): the official code's drift."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.option_kinds import Reals
from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start


@dataclass(frozen=True, kw_only=True)
class Drifting(MethodOptions):
    """Drifting: samples are drawn to the data and driven from each other, without a teacher."""

    group: int = 64
    """Samples that meet; a batch is a multiple of it."""
    temperatures: Reals = (0.02, 0.05, 0.2)
    """Temperatures of the kernel, in mean distances."""

    def objective(self, start: Start) -> Objective:
        from fewstep.objectives.drifting import Drifting as Objective
        from fewstep.objectives.shared.matching import FewSteps
        from fewstep.paths import VarianceExploding

        path = VarianceExploding(0.0, start.levels.t_max)
        return Objective(
            start.student(path),
            generate=FewSteps((path.t_max,)),
            group=self.group,
            temperatures=self.temperatures,
        )


_WARM = {"temperatures": (0.2, 0.5, 1.0)}

SETTINGS = {
    "digits": Setting(_WARM, result="1 call: fd 0.373"),
    "plane": Setting(_WARM),
    "small": Setting(_WARM),
}

METHODS = (Method("drifting", "drifting", 2026, Drifting, SETTINGS, scratch=True),)
