"""Recipes of rCM (Zheng et al. 2025): sCM's loss, and distribution matching beside it."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.errors import UsageError
from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start
from fewstep.recipes.shared import CHASED, trig


@dataclass(frozen=True, kw_only=True)
class RegularisedConsistency(MethodOptions):
    """rCM: continuous-time consistency distillation (sCD), and distribution matching beside it."""

    mean: float = -1.0
    """Mean of log sigma in the consistency loss."""
    std: float = 1.4
    """Standard deviation of log sigma in the consistency loss."""
    warmup: float = 0.1
    """Share of the updates in which the derivative's part grows to its full weight."""
    weight: float = 0.01
    """Weight of the distribution matching."""
    critic_updates: int = 4
    """Updates of the critic between two of the generator; a step is the one or the other."""
    rate: float = 0.2
    """Learning rate of the critic, as a multiple of the generator's."""

    def objective(self, start: Start) -> Objective:
        from fewstep.objectives.rcm import RCM
        from fewstep.times import KarrasIndex, LogNormal

        warmup, weight, rate = self.warmup, self.weight, self.rate
        if not (0 <= warmup <= 1 and weight >= 0 and self.critic_updates >= 1 and rate > 0):
            raise UsageError(
                "expected --warmup in [0, 1], --weight of 0 or more, --critic-updates of 1 or more "
                f"and --rate above 0, got {warmup}, {weight}, {self.critic_updates} and {rate}"
            )
        own, path = start.levels, trig(start)
        return RCM(
            start.student(path),
            start.teacher_on(path),
            start.fake(path),
            times=LogNormal(self.mean, self.std),
            matching_times=KarrasIndex(t_min=own.t_min, t_max=own.t_max),
            weight=weight,
            warmup=round(warmup * start.train.steps),
            every=self.critic_updates + 1,
            rate=rate,
        )


SETTINGS = {
    "digits": Setting(
        {"mean": -0.5, "std": 1.6, "weight": 0.3, "critic_updates": 2, "rate": 1.0},
        {**CHASED, "lr": 3e-4},
        "1 call: fd 0.734",
    ),
    "plane": Setting({"mean": 0.0, "std": 1.6, "weight": 0.3, "critic_updates": 1, "rate": 1.0}),
    "small": Setting({"critic_updates": 2, "rate": 1.0}, {**CHASED, "lr": 1e-4}),
}

METHODS = (Method("rcm", "rCM", 2025, RegularisedConsistency, SETTINGS, distils=True),)
