"""Recipes of truncated consistency models (Lee et al. 2025), the second stage."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start
from fewstep.recipes.shared import RADAM, pair_weight


@dataclass(frozen=True, kw_only=True)
class TruncatedConsistencyTraining(MethodOptions):
    """Truncated consistency training: only times above ``at`` are trained, from an ECT model."""

    at: float = 1.0
    """Noise level t' below which the first stage's model stays."""
    q: float = 2.0
    """The gap between the two times shrinks to its q-th part from stage to stage of ECT."""
    stage: int = 7
    """Stage of ECT's curriculum that goes on here, counted from 0."""
    limit: float = 0.999
    """Greatest r/t."""
    c: float = 1e-8
    """Constant of the pseudo-Huber distance of whole samples; 0 is the plain norm."""
    edm_weight: bool = False
    """Weigh by 1/t^2 + 1/sigma_data^2, as on ImageNet-64, instead of 1/(t - r)."""

    def objective(self, start: Start) -> Objective:
        from fewstep.objectives.shared.distances import PseudoHuber
        from fewstep.objectives.tcm import Curriculum, SameNoise, TruncatedConsistency
        from fewstep.paths import VarianceExploding

        path = VarianceExploding(0.0, start.levels.t_max)
        every = start.train.steps
        return TruncatedConsistency(
            start.student(path),
            start.copy(path),
            SameNoise(path),
            curriculum=Curriculum(
                every, self.q, limit=self.limit, least=1e-6, start=self.stage * every
            ),
            at=self.at,
            distance=PseudoHuber(self.c),
            drop=start.drop,
            weight=pair_weight(start, path, self.edm_weight),
        )


SETTINGS = {
    "digits": Setting({"stage": 3}, {"clip": 10.0}, "1 call: fd 0.453"),
    # A norm's best answer is a median, in the plane far from the mean: c squares small gaps.
    "plane": Setting({"c": 0.03, "edm_weight": True}, {"clip": 10.0}),
    "small": Setting({"stage": 3}),
    "cifar10": Setting(
        {"dropout": 0.2, "flip": False},
        {"steps": 300_000, "accumulation": 16, "lr": 5e-5, **RADAM},
        result="paper: FID 2.46, 2.05",
    ),
    "imagenet-64-edm2": Setting(
        {"q": 4.0, "c": 0.06, "edm_weight": True, "dropout": 0.4, "middle": 1.526}
        | {"stage": 3, "limit": 0.9961, "rates": (), "average_widths": (0.05,)},
        {"steps": 400_000, "accumulation": 16, "lr": 5e-4, "decay_steps": 8000}
        | {"schedule": "inverse_sqrt", "betas": (0.9, 0.99), "precision": "fp16"},
        result="paper: FID 2.88, 2.31",
    ),
}

METHODS = (Method("tcm", "TCM", 2024, TruncatedConsistencyTraining, SETTINGS, after="ect"),)
