"""Published settings of consistency models, flow maps and their kin, by network and method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _noise_level(t: float, sigma_data: float = 0.5) -> float:
    """t of a linear path of unit noise, for t of one whose noise has the data's spread."""
    sigma = sigma_data * t / (1 - t)
    return sigma / (1 + sigma)


_RADAM: dict[str, Any] = {"optimizer": "radam"}
_CIFAR_ECT: dict[str, Any] = {"dropout": 0.2, "flip": False}
_CIFAR_SCM: dict[str, Any] = {
    "warmup": 0.025,
    "rates": (),
    "half_life": 0.5e6,
    "middle": 0.982,
    "train": {"steps": 400_000, "accumulation": 8, "lr": 1e-4, "betas": (0.9, 0.99), **_RADAM},
}
_CIFAR_ICT: dict[str, Any] = {
    "dropout": 0.3,
    "rates": (0.99993,),
    "train": {"steps": 400_000, "accumulation": 16, "lr": 1e-4, **_RADAM},
}
CIFAR: dict[str, Mapping[str, Any]] = {
    "progressive": {
        "first": 4096,
        "rates": (0.0,),
        # Thirteen stages.
        "train": {"steps": 650_000, "accumulation": 8, "lr": 5e-5, "clip": 1.0}
        | {"schedule": "linear"},
    },
    "ict": _CIFAR_ICT,
    "ect": {**_CIFAR_ECT, "train": {"steps": 200_000, "accumulation": 2, "lr": 1e-4, **_RADAM}},
    "sct": {"dropout": 0.2, **_CIFAR_SCM},
    "scd": _CIFAR_SCM,
    "ctm": {
        "distance": "lpips",
        "rates": (0.999, 0.9999),
        "train": {"steps": 100_000, "accumulation": 2, "lr": 4e-4, **_RADAM},
    },
    "tcm": {
        **_CIFAR_ECT,
        "train": {"steps": 300_000, "accumulation": 16, "lr": 5e-5, **_RADAM},
    },
    "meanflow": {
        "mean": -2.0,
        "std": 2.0,
        "equal": 0.25,
        "power": 0.75,
        "c": 0.001,
        "dropout": 0.2,
        "augment": 0.12,
        "rates": (0.9999, 0.99995, 0.9996),
        "middle": 1.0,
        # 16 000 and 200 epochs.
        "train": {"steps": 781_250, "accumulation": 16, "lr": 6e-4, "warmup": 9766},
    },
    "imm": {
        "k": 15.0,
        "b": 5.0,
        "t_min": _noise_level(0.006),
        "t_max": _noise_level(0.994),
        "dropout": 0.2,
        "augment": 0.12,
        # sigma / alpha = 1.4 in units of the data's spread.
        "middle": 0.7,
        "train": {"steps": 400_000, "accumulation": 64, "lr": 1e-4, **_RADAM},
    },
}

CIFAR_HOUR: dict[str, Any] = {
    **_CIFAR_ECT,
    "q": 256.0,
    "stages": 1,
    "rates": (0.9993,),
    "train": {"steps": 8000, "accumulation": 2, "lr": 1e-4, **_RADAM},
}

_EDM2_DECAY: dict[str, Any] = {"schedule": "inverse_sqrt", "betas": (0.9, 0.99)}
_EDM2_ECT: dict[str, Any] = {
    "q": 4.0,
    "c": 0.06,
    "edm_weight": True,
    "dropout": 0.4,
    "middle": 1.526,
}
_EDM2_SCM: dict[str, Any] = {
    "std": 1.6,
    "warmup": 0.025,
    "rates": (),
    "widths": (0.05,),
    "middle": 0.982,
    "train": {"steps": 400_000, "accumulation": 32, "lr": 1e-4, "eps": 1e-11}
    | {"decay_steps": 35_000, "precision": "fp16", **_EDM2_DECAY},
}
EDM2: dict[str, Mapping[str, Any]] = {
    "ect": {
        **_EDM2_ECT,
        "mean": -0.8,
        "std": 1.6,
        "stages": 4,
        "rates": (0.9999,),
        "train": {"steps": 100_000, "accumulation": 2, "lr": 1e-3, "decay_steps": 2000}
        | _EDM2_DECAY,
    },
    "sct": {"dropout": 0.45, **_EDM2_SCM},
    "scd": _EDM2_SCM,
    "tcm": {
        **_EDM2_ECT,
        "stage": 3,
        "limit": 0.9961,
        "rates": (),
        "widths": (0.05,),
        "train": {"steps": 400_000, "accumulation": 16, "lr": 5e-4, "decay_steps": 8000}
        | {"precision": "fp16", **_EDM2_DECAY},
    },
}
ADM: dict[str, Mapping[str, Any]] = {
    "progressive": {
        "first": 1024,
        "rates": (0.0,),
        # Eleven stages.
        "train": {"steps": 550_000, "accumulation": 32, "lr": 1e-4, "clip": 1.0}
        | {"schedule": "linear"},
    },
    "ict": {
        "dropout": 0.2,
        "rates": (0.99997,),
        "middle": 1.526,
        "train": {"steps": 800_000, "accumulation": 64, "lr": 1e-4, **_RADAM},
    },
    "ctm": {
        "points": 40,
        "solver_steps": 39,
        "distance": "lpips",
        "rates": (0.999,),
        "train": {"steps": 30_000, "batch": 60, "accumulation": 24, "lr": 4e-4, **_RADAM},
    },
}
