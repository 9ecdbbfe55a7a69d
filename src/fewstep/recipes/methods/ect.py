"""Recipes of easy consistency tuning (Geng et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start
from fewstep.recipes.shared import RADAM, at_least, pair_weight


@dataclass(frozen=True, kw_only=True)
class EasyConsistencyTuning(MethodOptions):
    """Easy consistency tuning of a diffusion model: the earlier time draws nearer in stages."""

    q: float = 2.0
    """The gap between the two times shrinks to its q-th part from stage to stage."""
    stages: int = 8
    """Number of stages, of equal length, at least 1."""
    mean: float = -1.1
    """Mean of log sigma in training."""
    std: float = 2.0
    """Standard deviation of log sigma in training."""
    c: float = 0.0
    """Constant of the pseudo-Huber distance of whole samples; 0 is the plain norm."""
    edm_weight: bool = False
    """Weigh by 1/t^2 + 1/sigma_data^2, as on ImageNet-64, instead of 1/(t - r)."""

    def objective(self, start: Start) -> Objective:
        from fewstep.objectives.ect import Curriculum, EasyConsistency, SameNoise
        from fewstep.objectives.shared.distances import PseudoHuber
        from fewstep.paths import VarianceExploding
        from fewstep.times import LogNormal

        at_least("stages", self.stages, 1)
        student = start.student(VarianceExploding(0.0, start.levels.t_max))
        path = student.path
        return EasyConsistency(
            student,
            SameNoise(path),
            curriculum=Curriculum(-(-start.train.steps // self.stages), self.q),
            times=LogNormal(self.mean, self.std),
            distance=PseudoHuber(self.c),
            drop=start.drop,
            weight=pair_weight(start, path, self.edm_weight),
            # Only EDM's scalings have an identity that can be moved for evaluation.
            boundary=0.003 if start.edm else 0.0,
        )


_CIFAR = {"dropout": 0.2, "flip": False}

SETTINGS = {
    "digits": Setting({"stages": 4}, {"clip": 10.0}, "1 call: fd 0.515"),
    # A norm's best answer is a median, in the plane far from the mean: c squares small gaps.
    "plane": Setting({"c": 0.03, "edm_weight": True, "mean": 0.0}, {"clip": 10.0}),
    "small": Setting({"stages": 4}),
    "cifar10": Setting(
        _CIFAR,
        {"steps": 200_000, "accumulation": 2, "lr": 1e-4, **RADAM},
        result="paper: FID 3.86, 2.15",
    ),
    "cifar10-1h": Setting(
        {**_CIFAR, "q": 256.0, "stages": 1, "rates": (0.9993,)},
        {"steps": 8000, "accumulation": 2, "lr": 1e-4, **RADAM},
        result="paper: FID 2.73 (2 calls)",
    ),
    "imagenet-64-edm2": Setting(
        {"q": 4.0, "c": 0.06, "edm_weight": True, "dropout": 0.4, "middle": 1.526}
        | {"mean": -0.8, "std": 1.6, "stages": 4, "rates": (0.9999,)},
        {"steps": 100_000, "accumulation": 2, "lr": 1e-3, "decay_steps": 2000}
        | {"schedule": "inverse_sqrt", "betas": (0.9, 0.99)},
        result="not run",
    ),
}

METHODS = (Method("ect", "ECT", 2024, EasyConsistencyTuning, SETTINGS),)
