"""The family's recipes on CIFAR-10 and ImageNet-64 with the settings of papers and official code.

What could not be had as published is in docs/methods.md. Nothing here imports torch before a recipe
is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fewstep.recipes.methods import Method
from fewstep.recipes.places import Place
from fewstep.recipes.presets import CIFAR10, IMAGENET_64, Preset, published
from fewstep.training.config import Run, TrainConfig


def of(preset: Preset, teachers: str) -> Callable[..., Any]:
    """The function of a place whose teachers are runs of that recipe."""

    def start(
        method: Method,
        recipe: str,
        *,
        teacher: str,
        labels: bool = preset.labels,
        guidance: float = 1.0,
        dropout: float = 0.0,
        augment: float = 0.0,
        flip: bool = preset.flip,
        rates: tuple[float, ...] = preset.rates,
        half_life: float = 0.0,
        widths: tuple[float, ...] = (),
        middle: float = preset.two_steps[1][1],
        train: TrainConfig,
    ) -> Any:
        """On a standard data set, as published.

        Args:
            teacher: a model folder or a run folder.
            labels: tell the model the class, as the teacher is told.
            guidance: scale of classifier-free guidance of a teacher that is distilled; 1 is none.
            dropout: of the student.
            augment: probability of each of EDM's augmentations; 0 is none.
            flip: mirror half of the images, where they are not augmented.
            rates: of averages at constant rates.
            half_life: of an average, in images; 0 is none.
            widths: of averages by power functions, relative (EDM2).
            middle: noise level of the second call of a two-step sample.
            train: the trainer's settings.
        """
        from fewstep.recipes import parts
        from fewstep.recipes.start import begin

        data = parts.standard_data(preset.data, labels)
        averages = parts.teachers_averages(train, half_life, widths)
        begun = begin(
            method,
            recipe,
            data,
            teacher,
            train,
            network=lambda: parts.network(
                preset.network, data, dropout=0.0, augment=augment > 0, seed=train.seed
            ),
            sigma_data=preset.sigma_data,
            middle=middle,
            averages={**parts.ema(*rates, published=True), **averages},
            guidance=guidance,
            dropout=dropout,
            label_drop=preset.label_drop,
            trained_by=None if method.after else teachers,
            augment=parts.edm_augment(augment) or parts.flip(flip),
        )
        parts.check_augment(begun.source.net, augment)
        return begun

    return start


EDM2_S = replace(IMAGENET_64, network=("edm2", {"channels": 192}), flip=False)
EDM2_TRAIN = replace(
    published(64, 32, 2**30, lr=0.01, warmup=4883, precision="fp16"),
    betas=(0.9, 0.99),
    schedule="inverse_sqrt",
    decay_steps=35_000,
)


def edm2(
    *,
    positional: bool = False,
    dropout: float = 0.0,
    power: tuple[float, ...] = (0.05, 0.1),
    train: TrainConfig = EDM2_TRAIN,
) -> Run:
    """An EDM2 diffusion model of size S: a teacher.

    Args:
        positional: let time enter by a ladder of frequencies, as sCM's teachers do.
        dropout: probability.
        power: relative widths of the averages, by power functions; with --train.snapshot-every any
            other width can be made of them afterwards.
        train: the trainer's settings.
    """
    from fewstep.models.nets.edm2 import Uncertainty
    from fewstep.recipes import parts
    from fewstep.times import LogNormal

    data = parts.standard_data(EDM2_S.data, True)
    kind, options = EDM2_S.network
    return parts.diffusion(
        "imagenet-64-edm2",
        {"positional": positional, "dropout": dropout, "power": list(power)},
        data,
        parts.network(
            (kind, {**options, "positional": positional}), data, dropout=dropout, seed=train.seed
        ),
        train,
        sigma_data=EDM2_S.sigma_data,
        averages=parts.teachers_averages(train, 0.0, power),
        times=LogNormal(-0.8, 1.6),
        uncertainty=Uncertainty(),
        label_drop=0.0,
    )


def _place(
    preset: Preset,
    teachers: str,
    train: TrainConfig,
    settings: Mapping[str, Mapping[str, Any]],
    results: Mapping[str, str],
    suffix: str = "",
) -> Place:
    """A place with the methods that ``results`` has."""
    place = Place(
        named=lambda method: f"{preset.data}-{method}{suffix}",
        start=of(preset, teachers),
        data=preset.data,
        teacher=None,
        train=train,
        settings=settings,
        methods=tuple(results),
        teachers=teachers,
    )
    return replace(
        place, told={name: (_cost(place.trainer(name)), told) for name, told in results.items()}
    )


def _cost(train: TrainConfig) -> str:
    millions = train.steps * train.batch * train.accumulation / 1e6
    return f"{millions / 1000:.1f} G images" if millions >= 1000 else f"{millions:.0f} M images"


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
_CIFAR: dict[str, Mapping[str, Any]] = {
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
DEEP = replace(CIFAR10, network=("ddpmpp", {**CIFAR10.network[1], "blocks": 8}))
_HOUR: dict[str, Any] = {
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
_EDM2: dict[str, Mapping[str, Any]] = {
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
_ADM: dict[str, Mapping[str, Any]] = {
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

_COMMON = published(64, 1, 64)
PUBLISHED = (
    _place(
        CIFAR10,
        "cifar10-edm",
        _COMMON,
        _CIFAR,
        {
            "progressive": "paper: FID 8.34, 5.58",
            "ict": "paper: FID 2.83, 2.46",
            "ect": "paper: FID 3.86, 2.15",
            "sct": "paper: FID 2.85, 2.06",
            "scd": "paper: FID 3.66, 2.52",
            "ctm": "paper: FID 5.19",
            "tcm": "paper: FID 2.46, 2.05",
            "meanflow": "paper: FID 2.92",
            "imm": "paper: FID 3.20, 1.98",
        },
    ),
    _place(DEEP, "cifar10-edm", _COMMON, _CIFAR, {"ict": "paper: FID 2.51, 2.24"}, suffix="-deep"),
    _place(
        CIFAR10,
        "cifar10-edm",
        _COMMON,
        {"ect": _HOUR},
        {"ect": "paper: FID 2.73 (2 calls)"},
        suffix="-1h",
    ),
    _place(
        IMAGENET_64,
        "imagenet-64-edm",
        replace(_COMMON, precision="fp16"),
        _ADM,
        {"progressive": "not run", "ict": "paper: FID 4.02, 3.20", "ctm": "not run"},
    ),
    _place(
        EDM2_S,
        "imagenet-64-edm2",
        _COMMON,
        _EDM2,
        {
            "ect": "not run",
            "sct": "paper (XL): FID 2.04, 1.48",
            "scd": "paper (XL): FID 2.44, 1.66",
            "tcm": "paper: FID 2.88, 2.31",
        },
    ),
)
"""Their places; a place is a network and the teachers that have it."""
