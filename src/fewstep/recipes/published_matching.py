"""Published settings of distribution matching and its kin, by data and method.

DMD: the paper's tables; there is no official code. DMD2, SiD, SiDA and Diff-Instruct: what their
official code is launched with. f-distill: FastGen's configurations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ADAMW: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 0.01, "clip": 10.0}
_NO_MOMENTUM: dict[str, Any] = {"betas": (0.0, 0.999)}
_ITSELF: dict[str, Any] = {"flip": False, "rates": (0.0,)}
"""The student is delivered, and no average of it."""

_HALF_LIFE: dict[str, Any] = {"flip": False, "rates": (), "half_life": 0.5e6, "dropout": 0.13}
_ADM_HALF_LIFE: dict[str, Any] = {**_HALF_LIFE, "half_life": 2e6, "dropout": 0.1}
_ADM_SID: dict[str, Any] = {"accumulation": 128, "lr": 4e-6, "eps": 1e-6, **_NO_MOMENTUM}
_DIFF_INSTRUCT: dict[str, Any] = {
    **_HALF_LIFE,
    "train": {"steps": 1_562_500, "accumulation": 2, "lr": 1e-5, **_NO_MOMENTUM},
}
_F_DISTILL: dict[str, Any] = {
    "flip": False,
    # 0.9999, 0.99995 and 0.9996 at every step, of which one in five is the student's.
    "rates": (0.9995, 0.99975, 0.998),
    "features": "teacher",
    "adversarial_critic": 1.0,
}

CIFAR: dict[str, Mapping[str, Any]] = {
    # 500 and 300 million samples.
    "sid": {
        **_HALF_LIFE,
        "train": {"steps": 1_953_125, "accumulation": 4, "lr": 1e-5, **_NO_MOMENTUM},
    },
    "sida": {
        **_HALF_LIFE,
        "train": {"steps": 1_171_875, "accumulation": 4, "lr": 1e-5, **_NO_MOMENTUM},
    },
}
CIFAR_LABELS: dict[str, Mapping[str, Any]] = {
    "dmd": {
        **_ITSELF,
        "distance": "lpips",
        "train": {"steps": 300_000, "batch": 49, "accumulation": 8, "lr": 5e-5, "warmup": 500}
        | _ADAMW,
    },
    "f-distill": {
        **_F_DISTILL,
        "divergence": "kl",
        "adversarial": 1e-3,
        "train": {"steps": 100_000, "batch": 256, "accumulation": 8, "lr": 1e-4, **_ADAMW},
    },
    "diff-instruct": _DIFF_INSTRUCT,
}
ADM: dict[str, Mapping[str, Any]] = {
    "dmd": {
        **_ITSELF,
        "distance": "lpips",
        "train": {"steps": 350_000, "batch": 42, "accumulation": 8, "lr": 2e-6, "warmup": 500}
        | {"precision": "bf16", **_ADAMW},
    },
    "dmd2": {
        **_ITSELF,
        "train": {"steps": 200_000, "batch": 35, "accumulation": 8, "lr": 2e-6, "warmup": 500}
        | {"precision": "bf16", **_ADAMW},
    },
    "f-distill": {
        **_F_DISTILL,
        "train": {"steps": 600_000, "batch": 64, "accumulation": 8, "lr": 2e-6}
        | {"precision": "fp32", **_ADAMW},
    },
    # 1000 and 300 million samples.
    "sid": {**_ADM_HALF_LIFE, "train": {"steps": 122_071, **_ADM_SID}},
    "sida": {**_ADM_HALF_LIFE, "train": {"steps": 36_622, **_ADM_SID}},
    "diff-instruct": {**_DIFF_INSTRUCT, "dropout": 0.1},
}
