"""Recipes of flow-map distillation (Align Your Flow: Sabour, Fidler & Kreis 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start


@dataclass(frozen=True, kw_only=True)
class FlowMapDistillation(MethodOptions):
    """Flow-map distillation (Align Your Flow): a teacher's trajectories, between any two times."""

    lagrangian: bool = False
    """Move the end of the jump along the trajectory, instead of its start."""
    mean: float = -0.8
    """Mean of the logit of the jumps' length."""
    std: float = 1.0
    """Standard deviation of the logit of the jumps' length."""
    c: float = 0.1
    """Constant of the tangent's normalisation, in units of a whole sample's norm."""
    warmup: float = 0.1
    """Share of the updates in which the derivative's part grows to its full weight."""
    ratio_max: float = 0.99
    """Greatest weight of the derivative's part."""

    def objective(self, start: Start) -> Objective:
        from fewstep.objectives.flowmap import FlowMap
        from fewstep.paths import Linear
        from fewstep.times import LogitNormal

        path = Linear()
        return FlowMap(
            start.student(path, two_time=True),
            start.teacher_on(path),
            kind="lagrangian" if self.lagrangian else "eulerian",
            gap=LogitNormal(self.mean, self.std),
            c=self.c,
            ratio_max=self.ratio_max,
            warmup=round(self.warmup * start.train.steps),
        )


SETTINGS = {
    "digits": Setting(
        {"mean": 0.0, "std": 1.4, "lagrangian": True}, {"lr": 5e-4}, "1 call: fd 0.636"
    ),
    "plane": Setting(
        {"mean": 0.0, "std": 1.4, "c": 1.0, "lagrangian": True}, {"steps": 1800, "lr": 5e-4}
    ),
    "small": Setting({"lagrangian": True}),
}

METHODS = (Method("flowmap", "flow map", 2025, FlowMapDistillation, SETTINGS, distils=True),)
