"""Recipes of flow matching (Lipman et al. 2023, eq. 9; times of Esser et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start


@dataclass(frozen=True, kw_only=True)
class FlowMatching(MethodOptions):
    """A flow-matching model on the linear path: a teacher."""

    mean: float = 0.0
    """Mean of the logit of t in training; t runs from data (0) to noise (1)."""
    std: float = 1.0
    """Standard deviation of the logit of t."""
    time_scale: float = 1.0
    """The network sees this multiple of t."""

    def objective(self, start: Start) -> Objective:
        from fewstep.models.preconditioning import Flow
        from fewstep.objectives.flow_matching import FlowMatching as Objective
        from fewstep.paths import Linear
        from fewstep.times import LogitNormal

        path = Linear()
        return Objective(
            start.student(path, new=Flow(path=path, time_scale=self.time_scale)),
            times=LogitNormal(self.mean, self.std),
            drop=start.drop,
        )


SETTINGS = {
    "digits": Setting(
        {"dropout": 0.15},
        {"steps": 10_000, "batch": 256, "lr": 2e-3, "sample_every": 2000},
        cost="5 min",
    ),
    "plane": Setting(train={"steps": 3000, "batch": 512, "lr": 2e-3}),
    "images": Setting({"dropout": 0.1}, {"steps": 20_000, "lr": 5e-4, "warmup": 500}),
    "small": Setting({"dropout": 0.1, "flip": False, "rates": (), "half_life": 20e3}, {"lr": 1e-3}),
    "fashion-mnist-small": Setting(train={"steps": 3500}),
    "cifar10-small": Setting(train={"steps": 10_000}),
}

METHODS = (
    Method("flow", "flow matching", 2022, FlowMatching, SETTINGS, scratch=True, diffusion=True),
)
