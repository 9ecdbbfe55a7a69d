"""Recipes of EDM (Karras et al. 2022, eq. 2, table 1) and EDM2 (Karras et al. 2024, eq. 21)."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start


@dataclass(frozen=True, kw_only=True)
class EDM(MethodOptions):
    """An EDM diffusion model: a teacher."""

    mean: float = -1.2
    """Mean of log sigma in training."""
    std: float = 1.2
    """Standard deviation of log sigma in training."""
    uncertainty: bool = False
    """Learn the expected loss of each noise level beside the model, as EDM2 does."""

    def objective(self, start: Start) -> Objective:
        from fewstep.objectives.denoising import Denoising
        from fewstep.objectives.shared.weights import karras_weight
        from fewstep.times import LogNormal

        return Denoising(
            start.student(),
            times=LogNormal(self.mean, self.std),
            weight=karras_weight(start.sigma_data),
            drop=start.drop,
            uncertainty=start.uncertainty() if self.uncertainty else None,
        )


_PUBLISHED = {"flip": False, "rates": ()}
_WARMUP = 19_531  # 10 million images in batches of 512

SETTINGS = {
    "digits": Setting(
        {"dropout": 0.15, "fourier_scale": 0.1},
        {"steps": 10_000, "batch": 256, "lr": 2e-3, "sample_every": 2000},
        "35 calls: fd 0.33",
        "5 min",
    ),
    "plane": Setting(
        train={"steps": 3000, "batch": 512, "lr": 2e-3}, cost="1 min", result="docs/results.md"
    ),
    "images": Setting(
        {"dropout": 0.1},
        {"steps": 20_000, "lr": 5e-4, "warmup": 500},
        "MNIST: docs/results.md",
        "as data and network ask",
    ),
    "small": Setting({"dropout": 0.1, "flip": False, "rates": (), "half_life": 20e3}, {"lr": 1e-3}),
    "fashion-mnist-small": Setting(train={"steps": 3500}, cost="1 h", result="docs/results.md"),
    "cifar10-small": Setting(train={"steps": 10_000}, cost="some hours", result="not run"),
    "pusht": Setting(train={"steps": 6000, "lr": 1e-3}, result="docs/applications.md"),
    "cifar10": Setting(
        {**_PUBLISHED, "dropout": 0.13, "augment": 0.12, "half_life": 0.5e6},
        {"steps": 390_625, "accumulation": 8, "lr": 1e-3, "warmup": _WARMUP},
        result="paper: FID 1.97",
    ),
    "fashion-mnist": Setting(
        {**_PUBLISHED, "dropout": 0.13, "half_life": 0.5e6},
        {"steps": 390_625, "accumulation": 8, "lr": 1e-3, "warmup": _WARMUP},
        result="not run",
    ),
    "imagenet-64-adm": Setting(
        {**_PUBLISHED, "dropout": 0.1, "half_life": 50e6},
        {"steps": 610_352, "accumulation": 64, "lr": 1e-4, "warmup": 2441},
        result="paper: FID 1.36 (churn)",
    ),
    "imagenet-64-edm2": Setting(
        {**_PUBLISHED, "average_widths": (0.05, 0.1), "mean": -0.8, "std": 1.6}
        | {"uncertainty": True},
        {"steps": 524_288, "accumulation": 32, "lr": 0.01, "warmup": 4883}
        | {"precision": "fp16", "betas": (0.9, 0.99), "schedule": "inverse_sqrt"}
        | {"decay_steps": 35_000},
        result="paper: FID 1.58",
    ),
}

METHODS = (Method("edm", "EDM", 2022, EDM, SETTINGS, scratch=True, diffusion=True),)
