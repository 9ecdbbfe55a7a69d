"""The family's recipes on CIFAR-10 and ImageNet-64 with the settings of papers and official code.

The settings are in ``published_trajectories`` and ``published_matching``. What could not be had as
published is in docs/methods.md. Nothing here imports torch before a recipe is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fewstep.recipes import published_matching as matching
from fewstep.recipes import published_trajectories as trajectories
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


DEEP = replace(CIFAR10, network=("ddpmpp", {**CIFAR10.network[1], "blocks": 8}))
LABELLED = replace(CIFAR10, labels=True)

_COMMON = published(64, 1, 64)
PUBLISHED = (
    _place(
        CIFAR10,
        "cifar10-edm",
        _COMMON,
        {**trajectories.CIFAR, **matching.CIFAR},
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
            "sid": "paper: FID 1.92",
            "sida": "paper: FID 1.50 (best)",
        },
    ),
    _place(
        DEEP,
        "cifar10-edm",
        _COMMON,
        trajectories.CIFAR,
        {"ict": "paper: FID 2.51, 2.24"},
        suffix="-deep",
    ),
    _place(
        CIFAR10,
        "cifar10-edm",
        _COMMON,
        {"ect": trajectories.CIFAR_HOUR},
        {"ect": "paper: FID 2.73 (2 calls)"},
        suffix="-1h",
    ),
    _place(
        LABELLED,
        "cifar10-edm --labels",
        _COMMON,
        matching.CIFAR_LABELS,
        {
            "dmd": "paper: FID 2.66 (labels)",
            "f-distill": "paper: FID 1.92 (labels)",
            "diff-instruct": "paper: FID 4.19 (labels)",
        },
    ),
    _place(
        IMAGENET_64,
        "imagenet-64-edm",
        replace(_COMMON, precision="fp16"),
        {**trajectories.ADM, **matching.ADM},
        {
            "progressive": "not run",
            "ict": "paper: FID 4.02, 3.20",
            "ctm": "not run",
            "dmd": "paper: FID 2.62",
            "dmd2": "paper: FID 1.51",
            "f-distill": "paper: FID 1.16",
            "sid": "paper: FID 1.52",
            "sida": "paper: FID 1.11 (best)",
            "diff-instruct": "paper: FID 5.57",
        },
    ),
    _place(
        EDM2_S,
        "imagenet-64-edm2",
        _COMMON,
        trajectories.EDM2,
        {
            "ect": "not run",
            "sct": "paper (XL): FID 2.04, 1.48",
            "scd": "paper (XL): FID 2.44, 1.66",
            "tcm": "paper: FID 2.88, 2.31",
        },
    ),
)
"""Their places; a place is a network and the teachers that have it."""
