"""Recipes of MeanFlow (Geng et al. 2025, the MeanFlow identity; guidance eq. 19)."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.errors import UsageError
from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start


@dataclass(frozen=True, kw_only=True)
class MeanVelocity(MethodOptions):
    """MeanFlow: the average velocity between any two times, by its derivative."""

    mean: float = -0.4
    """Mean of the logit of both times."""
    std: float = 1.0
    """Standard deviation of the logit of both times."""
    equal: float = 0.75
    """Share of the samples whose two times are one."""
    power: float = 1.0
    """Power of the adaptive weight; 0 weighs all samples equally."""
    c: float = 0.01
    """Constant of the adaptive weight."""
    omega: float = 1.0
    """Share of the sample's own velocity in the target; 1, with kappa 0, is no guidance."""
    kappa: float = 0.0
    """Share of the model's velocity with the label; the rest, to 1, is the one without. The
    guidance so trained in has the scale omega / (1 - kappa)."""

    def objective(self, start: Start) -> Objective:
        from fewstep.objectives.meanflow import AdaptiveWeight, MeanFlow, TrainedGuidance
        from fewstep.paths import Linear
        from fewstep.times import LogitNormal, TwoTimes

        law = LogitNormal(self.mean, self.std)
        guided = (self.omega, self.kappa) != (1.0, 0.0)
        if guided and start.drop is None:
            raise UsageError(
                f"omega={self.omega:g} and kappa={self.kappa:g} guide towards labels, a share of "
                "which must be dropped; here there are none, or none are dropped; leave both out"
            )
        return MeanFlow(
            start.student(Linear(), two_time=True),
            times=TwoTimes(law, law, self.equal),
            weight=AdaptiveWeight(self.power, self.c),
            drop=start.drop,
            guidance=TrainedGuidance(self.omega, self.kappa) if guided else None,
        )


_SHORT = {"mean": 0.5, "std": 1.8, "equal": 0.5, "power": 0.5}

SETTINGS = {
    "digits": Setting(_SHORT, result="1 call: fd 0.508"),
    "plane": Setting({"mean": -1.0, "std": 3.0, "equal": 0.0, "power": 0.0}),
    "fashion-mnist-small": Setting(_SHORT),
    "pusht": Setting(_SHORT),
    "cifar10": Setting(
        {"mean": -2.0, "std": 2.0, "equal": 0.25, "power": 0.75, "c": 0.001}
        | {"dropout": 0.2, "augment": 0.12, "rates": (0.9999, 0.99995, 0.9996), "middle": 1.0},
        # 16 000 and 200 epochs.
        {"steps": 781_250, "accumulation": 16, "lr": 6e-4, "warmup": 9766},
        result="paper: FID 2.92",
    ),
}

METHODS = (Method("meanflow", "MeanFlow", 2025, MeanVelocity, SETTINGS, scratch=True),)
