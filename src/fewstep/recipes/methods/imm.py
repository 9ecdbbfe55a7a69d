"""Recipes of inductive moment matching (Zhou, Ermon & Song 2025, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start
from fewstep.recipes.shared import RADAM


@dataclass(frozen=True, kw_only=True)
class MomentMatching(MethodOptions):
    """Inductive moment matching: jumps from two noise levels give samples of one distribution."""

    group: int = 4
    """Samples that share their times; a batch is a multiple of it."""
    k: float = 12.0
    """The earlier level lies 2^-k of the levels' range before the later one."""
    a: float = 1.0
    """Exponent a of the weight."""
    b: float = 4.0
    """Shift b of the weight."""
    t_min: float = 0.002
    """Least t of x_t = (1 - t) x_0 + t eps, whose noise level is t / (1 - t)."""
    t_max: float = 80 / 81
    """Greatest t."""

    def objective(self, start: Start) -> Objective:
        from fewstep.objectives.imm import InductiveMomentMatching
        from fewstep.paths import Linear

        return InductiveMomentMatching(
            start.student(Linear(self.t_min, self.t_max), two_time=True),
            sigma_data=start.sigma_data,
            group=self.group,
            k=self.k,
            a=self.a,
            b=self.b,
            drop=start.drop,
        )


def _noise_level(t: float, sigma_data: float = 0.5) -> float:
    """t of a linear path of unit noise, for t of one whose noise has the data's spread."""
    sigma = sigma_data * t / (1 - t)
    return sigma / (1 + sigma)


SETTINGS = {
    "digits": Setting({"k": 8.0}, result="1 call: fd 0.872"),
    "plane": Setting(
        {"group": 64, "k": 3.0, "a": 0.0, "b": -1.0, "t_min": 0.01, "t_max": 0.9},
        {"steps": 7000, "lr": 2e-3},
    ),
    "cifar10": Setting(
        {"k": 15.0, "b": 5.0, "t_min": _noise_level(0.006), "t_max": _noise_level(0.994)}
        # sigma / alpha = 1.4 in units of the data's spread.
        | {"dropout": 0.2, "augment": 0.12, "middle": 0.7},
        {"steps": 400_000, "accumulation": 64, "lr": 1e-4, **RADAM},
        result="paper: FID 3.20, 1.98",
    ),
}

METHODS = (Method("imm", "IMM", 2025, MomentMatching, SETTINGS, scratch=True),)
