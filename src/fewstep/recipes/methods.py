"""All methods as recipes see them, by the names that the command line has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fewstep.recipes import matching, trajectories

if TYPE_CHECKING:
    from fewstep.objectives.base import Objective


@dataclass(frozen=True)
class Method:
    """A line of the family.

    Args:
        build: a start and options to an objective.
        title: in tables.
        distils: it has a teacher, besides weights to start from.
        scratch: it may start from new weights.
        after: the method whose model it starts from, where that is no diffusion model.
    """

    build: Callable[..., Objective]
    title: str
    distils: bool = False
    scratch: bool = False
    after: str | None = None


METHODS: dict[str, Method] = {
    "cd": Method(trajectories.cd, "CD", distils=True),
    "ct": Method(trajectories.ct, "CT", scratch=True),
    "progressive": Method(trajectories.progressive, "progressive distillation", distils=True),
    "ict": Method(trajectories.ict, "iCT", scratch=True),
    "ect": Method(trajectories.ect, "ECT"),
    "sct": Method(trajectories.sct, "sCT"),
    "scd": Method(trajectories.scd, "sCD", distils=True),
    "ctm": Method(trajectories.ctm, "CTM", distils=True),
    "pcm": Method(trajectories.pcm, "PCM", distils=True),
    "tcm": Method(trajectories.tcm, "TCM", after="ect"),
    "meanflow": Method(trajectories.meanflow, "MeanFlow", scratch=True),
    "imm": Method(trajectories.imm, "IMM", scratch=True),
    "shortcut": Method(trajectories.shortcut, "shortcut", scratch=True),
    "flowmap": Method(trajectories.flowmap, "flow map", distils=True),
    "dmd": Method(matching.dmd, "DMD", distils=True),
    "dmd2": Method(matching.dmd2, "DMD2", distils=True),
    "f-distill": Method(matching.f_distill, "f-distill", distils=True),
    "sid": Method(matching.sid, "SiD", distils=True),
    "sida": Method(matching.sida, "SiDA", distils=True),
    "diff-instruct": Method(matching.diff_instruct, "Diff-Instruct", distils=True),
    "ladd": Method(matching.ladd, "LADD", distils=True),
    "kd": Method(matching.kd, "knowledge distillation", distils=True),
    "rcm": Method(matching.rcm, "rCM", distils=True),
    "drifting": Method(matching.drifting, "drifting", scratch=True),
}
