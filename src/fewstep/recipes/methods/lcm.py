"""Recipes of latent consistency models (Luo et al. 2023, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fewstep.errors import UsageError
from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start
from fewstep.recipes.options import Real
from fewstep.recipes.shared import at_least, pair_weight, share

if TYPE_CHECKING:
    from fewstep.models import AbstractDenoiser
    from fewstep.times import Uniform


@dataclass(frozen=True, kw_only=True)
class LatentConsistency(MethodOptions):
    """Latent consistency models: neighbouring DDIM steps of the guided teacher agree."""

    ddim_steps: int = 50
    """Number N of DDIM steps of the teacher over the whole table of times, from 1 to 500."""
    solver: Literal["ddim", "dpm++"] = "ddim"
    """Solver of the teacher's step: ddim, or the second-order DPM-Solver++(2S), which calls the
    teacher twice."""
    target: float = 0.95
    """Averaging rate of the target network, in [0, 1); 0 makes the student its own target."""
    distance: Literal["huber", "l2"] = "huber"
    """Distance of the two answers; huber is elementwise, with the constant 0.001."""
    equal: bool = True
    """Weigh all times equally, as published; short runs do better with EDM's weight and l2."""
    guidance_low: Real = None
    """Lowest scale of the teacher's guidance, which is drawn anew for each sample; the official
    script has 6 and 16. Without a range the scale is --guidance."""
    guidance_high: Real = None
    """Highest scale of the teacher's guidance; it must be given with --guidance-low."""
    embed_guidance: bool = True
    """Let the student read the scale, so that --guidance of a sample chooses it; without it the
    student learns the mean over the range, as LCM-LoRA does."""

    def objective(self, start: Start) -> Objective:
        from dataclasses import replace

        from fewstep.models import Denoiser, LatentBoundary
        from fewstep.objectives.lcm import LatentConsistency as Objective
        from fewstep.objectives.lcm import TeacherStep
        from fewstep.objectives.shared.distances import Huber, l2
        from fewstep.objectives.shared.weights import equal_weight
        from fewstep.paths import DiscreteVariancePreserving
        from fewstep.steps import ddim, dpmpp_2s
        from fewstep.times import strided

        at_least("ddim_steps", self.ddim_steps, 1)
        share("target", self.target)
        teacher, law = self._guided(start)
        own = start.source.path
        table = own if isinstance(own, DiscreteVariancePreserving) else DiscreteVariancePreserving()
        grid = strided(self.ddim_steps, table.steps)
        path = replace(table, t_min=0.0, t_max=float(grid[0]))
        inner = start.student(path, guidance=law is not None and self.embed_guidance)
        return Objective(
            Denoiser(inner.net, LatentBoundary(inner=inner.preconditioning, path=path)),
            TeacherStep(teacher.on(path), {"ddim": ddim, "dpm++": dpmpp_2s}[self.solver]),
            grid=grid,
            guidance=law,
            rate=self.target,
            weight=equal_weight if self.equal else pair_weight(start, path, edm=True),
            distance=Huber() if self.distance == "huber" else l2,
            drop=start.drop,
        )

    def own_times(self) -> bool:
        """Samples have the times of LCM's scheduler; ``--middle`` says nothing here."""
        return True

    def _guided(self, start: Start) -> tuple[AbstractDenoiser, Uniform | None]:
        """The teacher, and the law of its guidance scales if a range is given."""
        from fewstep.teachers import guided
        from fewstep.times import Uniform

        low, high = self.guidance_low, self.guidance_high
        if low is None and high is None:
            return start.teacher_on(start.source.path), None
        if low is None or high is None or not 0 <= low <= high or high == 1.0:
            raise UsageError(
                "the guidance needs both ends of its range, with 0 <= low <= high and high not 1, "
                f"got --guidance-low {low} and --guidance-high {high}; leave both out for none"
            )
        if start.guidance != 1.0:
            raise UsageError(
                f"--guidance {start.guidance:g} is one scale, and --guidance-low and "
                "--guidance-high are a range of scales; leave one of them out"
            )
        if start.model is None:
            raise UsageError("this method distils: give a --teacher")
        return guided(start.model, start.source, high), Uniform(low, high)


_SHORT = {"solver": "dpm++", "target": 0.0, "distance": "l2", "equal": False}
"""With all times weighed equally, or with a Huber distance, runs of minutes do not learn."""

SETTINGS = {
    "digits": Setting({"ddim_steps": 10, **_SHORT}, result="1 call: fd 0.349"),
    "plane": Setting({"ddim_steps": 20, **_SHORT}),
    "images": Setting({"ddim_steps": 20, **_SHORT}),
    "small": Setting({"ddim_steps": 10, **_SHORT}),
}

METHODS = (Method("lcm", "LCM", 2023, LatentConsistency, SETTINGS, distils=True),)
