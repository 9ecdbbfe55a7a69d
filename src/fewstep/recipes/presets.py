"""What differs between the recipes on Fashion-MNIST, CIFAR-10 and ImageNet-64, by data and size.

Published settings: Karras et al. 2022, table 7; Song et al. 2023, table 3 and launch
scripts. Fashion-MNIST has none of its own and takes those of CIFAR-10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fewstep.recipes.trajectories import DistanceName
from fewstep.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What the recipes of one data set and size have in common, and their defaults.

    Args:
        data: a standard data set, or ``imagenet-64``.
        size: suffix of the recipes' names.
        network: kind and options, but for shape, dropout, classes and augmentation labels.
        sigma_data: standard deviation of the data.
        labels: whether models are told the class.
        label_drop: share of the samples whose label a teacher does not see.
        dropout: of the teacher.
        augment: probability of each of EDM's augmentations for the teacher; 0 is none.
        flip: mirror half of the images for consistency models.
        half_life: of the teacher's average, in images.
        rates: of the consistency models' averages.
        points: N of distillation.
        target: target average rate of distillation; 0 is the student itself.
        scales: N at the first and the last step of training without a teacher.
        start_rate: its first target average rate; 0 is the student itself.
        distances: of distillation and of training without a teacher.
        equal: weigh all times equally, as published; else as short runs need it (parts.py).
        two_steps: times of a two-step sample of the distilled and of the trained model.
        edm, cd, ct: the trainer's settings.
        told: cost and result of each, for the table of recipes.
    """

    data: str
    size: str = ""
    network: tuple[str, dict[str, Any]]
    sigma_data: float = 0.5
    labels: bool
    label_drop: float = 0.0
    dropout: float
    augment: float = 0.0
    flip: bool = True
    half_life: float
    rates: tuple[float, ...]
    points: int = 18
    target: float = 0.0
    scales: tuple[int, int]
    start_rate: float
    distances: tuple[DistanceName, DistanceName]
    equal: bool = True
    two_steps: tuple[tuple[float, float], tuple[float, float]]
    edm: TrainConfig
    cd: TrainConfig
    ct: TrainConfig
    told: tuple[tuple[str, str], tuple[str, str], tuple[str, str]]

    def named(self, method: str) -> str:
        """The recipe's name."""
        return f"{self.data}-{method}{self.size}"


def published(batch: int, shards: int, images: float, **given: Any) -> TrainConfig:
    """So many images in batches of ``batch * shards``."""
    common: dict[str, Any] = {"threads": 0, "save_every": 5000, "sample_every": 10_000}
    steps = round(images / (batch * shards))
    return TrainConfig(steps=steps, batch=batch, accumulation=shards, **(common | given))


_EDM_CIFAR = published(64, 8, 200e6, lr=1e-3, warmup=19_531)  # 10 million images of warm-up
_CD_CIFAR = published(64, 8, 800e3 * 512, lr=4e-4, optimizer="radam")

CIFAR10 = Preset(
    data="cifar10",
    network=(
        "ddpmpp",
        {"channels": 128, "multipliers": (2, 2, 2), "blocks": 4, "attention": (16,)},
    ),
    labels=False,
    dropout=0.13,
    augment=0.12,
    half_life=0.5e6,
    rates=(0.9999,),
    scales=(2, 150),
    start_rate=0.9,
    distances=("lpips", "lpips"),
    two_steps=((80.0, 0.585), (80.0, 0.821)),
    edm=_EDM_CIFAR,
    cd=_CD_CIFAR,
    ct=_CD_CIFAR,
    told=(
        ("200 M images", "paper: FID 1.97"),
        ("410 M images", "paper: FID 3.55, 2.93"),
        ("410 M images", "paper: FID 8.70, 5.83"),
    ),
)

FASHION_MNIST = Preset(
    data="fashion-mnist",
    network=(
        "ddpmpp",
        {"channels": 128, "multipliers": (2, 2, 2), "blocks": 4, "attention": (14,)},
    ),
    sigma_data=0.7,
    labels=True,
    label_drop=0.1,
    dropout=0.13,
    half_life=0.5e6,
    rates=(0.9999,),
    scales=(2, 150),
    start_rate=0.9,
    distances=("lpips", "lpips"),
    two_steps=((80.0, 0.821), (80.0, 0.821)),
    edm=_EDM_CIFAR,
    cd=_CD_CIFAR,
    ct=_CD_CIFAR,
    told=(("200 M images", "not run"), ("410 M images", "not run"), ("410 M images", "not run")),
)

_SMALL: dict[str, Any] = {
    "size": "-small",
    "label_drop": 0.1,
    "dropout": 0.1,
    "augment": 0.0,
    "half_life": 20e3,
    "rates": (0.999,),
    "points": 10,
    "scales": (10, 40),
    "start_rate": 0.0,
    "distances": ("l2", "pseudo-huber"),
    "equal": False,
    "two_steps": ((80.0, 0.821), (80.0, 0.821)),
}


def _minutes(steps: int, lr: float, **given: Any) -> TrainConfig:
    common: dict[str, Any] = {
        "batch": 128,
        "schedule": "linear",
        "warmup": 100,
        "precision": "bf16",
        "save_every": 250,
        "sample_every": 500,
    }
    return TrainConfig(steps=steps, lr=lr, **(common | given))


FASHION_MNIST_SMALL = Preset(
    data="fashion-mnist",
    network=(
        "ddpmpp",
        {"channels": 32, "multipliers": (1, 2), "blocks": 2, "attention": (7,), "patch": 2},
    ),
    sigma_data=0.7,
    labels=True,
    flip=False,
    told=(
        ("1 h", "docs/results.md"),
        ("15 min", "docs/results.md"),
        ("15 min", "docs/results.md"),
    ),
    edm=_minutes(3500, 1e-3),
    cd=_minutes(600, 5e-4),
    ct=_minutes(900, 1e-3),
    **_SMALL,
)

CIFAR10_SMALL = Preset(
    data="cifar10",
    network=(
        "ddpmpp",
        {"channels": 48, "multipliers": (1, 2), "blocks": 2, "attention": (8,), "patch": 2},
    ),
    labels=True,
    told=(("some hours", "not run"), ("some hours", "not run"), ("some hours", "not run")),
    edm=_minutes(10_000, 1e-3),
    cd=_minutes(3000, 5e-4),
    ct=_minutes(5000, 1e-3),
    **_SMALL,
)

_IMAGENET: dict[str, Any] = {"precision": "fp16", "optimizer": "radam"}

IMAGENET_64 = Preset(
    data="imagenet-64",
    network=("adm", {}),
    labels=True,
    dropout=0.1,
    half_life=50e6,
    rates=(0.999, 0.9999, 0.9999432),
    points=40,
    target=0.95,
    scales=(2, 200),
    start_rate=0.95,
    distances=("lpips", "lpips"),
    two_steps=((80.0, 1.382), (80.0, 1.913)),
    edm=published(64, 64, 2500e6, lr=1e-4, warmup=2441, precision="fp16"),
    cd=published(64, 32, 600e3 * 2048, lr=8e-6, **_IMAGENET),
    # The paper's rate; the launch script has 1e-4.
    ct=published(64, 32, 800e3 * 2048, lr=8e-6, **_IMAGENET),
    told=(
        ("2.5 G images", "paper: FID 1.36 (churn)"),
        ("1.2 G images", "paper: FID 6.20, 4.70"),
        ("1.6 G images", "paper: FID 13.0, 11.1"),
    ),
)

PRESETS = (CIFAR10, CIFAR10_SMALL, FASHION_MNIST, FASHION_MNIST_SMALL, IMAGENET_64)
