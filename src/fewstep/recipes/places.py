"""Where the family's recipes run: data, teacher, network and how long, by place.

A place's function has the options of the command line; called, it gives a start. Nothing here
imports torch before that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fewstep.recipes.methods import METHODS, Method
from fewstep.recipes.presets import CIFAR10_SMALL, FASHION_MNIST_SMALL, Preset
from fewstep.training.config import TrainConfig

DIGITS_SIGMA = 0.75
TOY_SIGMA = 0.5
IMAGES_SIGMA = 0.5


@dataclass(frozen=True, kw_only=True)
class Place:
    """One of them.

    Args:
        named: a method's name to the recipe's.
        start: its options, then the start.
        data: for the table of recipes.
        teacher: the default; None has none.
        train: the trainer's settings.
        settings: by method, what differs: its options, and ``train`` for the trainer's.
        told: by method, cost and result, for the table of recipes.
        methods: which there are.
        teachers: the recipe of its diffusion models, if not the place's ``edm``.
    """

    named: Callable[[str], str]
    start: Callable[..., Any]
    data: str
    teacher: str | None
    train: TrainConfig
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    told: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    methods: Sequence[str] = tuple(METHODS)
    teachers: str | None = None

    def options(self, name: str) -> dict[str, Any]:
        """A method's options where they are not its own defaults."""
        return {k: v for k, v in self.settings.get(name, {}).items() if k != "train"}

    def told_teacher(self, name: str) -> str:
        """What a method starts from, for the table of recipes."""
        method = METHODS[name]
        if method.after is not None:
            return f"a run of {self.named(method.after)}"
        teachers = self.teachers or self.named("edm")
        return self.teacher or ("-" if method.scratch else f"a run of {teachers}")

    def trainer(self, name: str) -> TrainConfig:
        """A method's trainer settings."""
        return replace(self.train, **self.settings.get(name, {}).get("train", {}))


def digits(method: Method, recipe: str, *, teacher: str, train: TrainConfig) -> Any:
    """Of the digits.

    Args:
        teacher: a model folder, a run folder or a bundled name.
        train: the trainer's settings.
    """
    import time

    from fewstep.recipes import parts, reports
    from fewstep.recipes.start import begin

    def finish(model: Any) -> Any:
        began = time.perf_counter()
        if model is None or model.contract.sampling.kind != "ode":
            return reports.judged_student(began)
        return reports.compared_with_teacher(began, model)

    data = parts.digits_data()
    return begin(
        method,
        recipe,
        data,
        teacher,
        train,
        network=lambda: parts.mlp(data, 256, 4, 0.0, seed=train.seed),
        sigma_data=DIGITS_SIGMA,
        middle=2.0,
        averages=parts.ema(0.999),
        finish=finish,
        watch=reports.watched(1),
    )


def toys(
    method: Method, recipe: str, *, teacher: str, data: str = "two-modes", train: TrainConfig
) -> Any:
    """Of points in the plane.

    Args:
        teacher: a run of toy-edm on the same data.
        data: as the teacher's: two-modes, eight-gaussians, gaussian, checkerboard, moons or
            swiss-roll.
        train: the trainer's settings.
    """
    from fewstep.recipes import parts
    from fewstep.recipes.start import begin

    points = parts.toy_data(data)
    return begin(
        method,
        recipe,
        points,
        teacher,
        train,
        network=lambda: parts.mlp(points, 128, 3, 0.0, fourier_scale=0.1, seed=train.seed),
        sigma_data=TOY_SIGMA,
        middle=0.5,
        averages=parts.ema(0.999),
    )


def images(
    method: Method,
    recipe: str,
    *,
    data: str,
    resolution: int,
    teacher: str,
    guidance: float = 1.0,
    labels: bool = True,
    train: TrainConfig,
) -> Any:
    """Of a folder of images.

    Args:
        data: a folder or zip of images, as the teacher's.
        resolution: as the teacher's.
        teacher: a model folder or a run folder, e.g. of the recipe edm.
        guidance: scale of classifier-free guidance of a teacher that is distilled; 1 is none.
        labels: use the labels that the data has.
        train: the trainer's settings.
    """
    from fewstep.recipes import parts
    from fewstep.recipes.start import begin

    found = parts.image_data(data, resolution, labels)
    return begin(
        method,
        recipe,
        found,
        teacher,
        train,
        network=lambda: parts.ddpmpp(found, 64, (1, 2, 2), 2, (16,), 0.0, seed=train.seed),
        sigma_data=IMAGES_SIGMA,
        middle=0.821,
        averages=parts.ema(0.999),
        guidance=guidance,
    )


def of(preset: Preset) -> Callable[..., Any]:
    """The function of a preset's place."""

    def start(
        method: Method,
        recipe: str,
        *,
        teacher: str,
        labels: bool = preset.labels,
        guidance: float = 1.0,
        train: TrainConfig,
    ) -> Any:
        """Of a standard data set.

        Args:
            teacher: a model folder or a run folder.
            labels: tell the model the class, as the teacher is told.
            guidance: scale of classifier-free guidance of a teacher that is distilled; 1 is none.
            train: the trainer's settings.
        """
        from fewstep.recipes import parts
        from fewstep.recipes.start import begin

        data = parts.standard_data(preset.data, labels)
        return begin(
            method,
            recipe,
            data,
            teacher,
            train,
            network=lambda: parts.network(preset.network, data, dropout=0.0, seed=train.seed),
            sigma_data=preset.sigma_data,
            middle=preset.two_steps[1][1],
            averages=parts.ema(*preset.rates, published=preset.equal),
            guidance=guidance,
            augment=parts.flip(preset.flip),
        )

    return start


_CONTINUOUS: dict[str, Any] = {"mean": -0.5, "std": 1.6, "train": {"lr": 1e-4}}
"""Larger steps of a derivative's bootstrap diverge on networks of this size."""

_WIDE: dict[str, Any] = {"mean": 0.0, "std": 2.0, "c": 1.0, "train": {"steps": 2000, "lr": 3e-4}}
"""In the plane a tangent over little more than its own norm is biased."""

_NEAR_SQUARE: dict[str, Any] = {"c": 0.03, "edm_weight": True, "train": {"clip": 10.0}}
"""A norm's best answer is a median, in the plane far from the mean: c makes small gaps squares."""

_TRAJECTORY: dict[str, Any] = {"points": 10, "solver_steps": 3, "rate": 0.99}
"""With the published 17 solver steps an update costs ten times as much."""

_LEVELS: dict[str, Any] = {"level": 1.5, "highest": 5.0, "critic_updates": 2}
"""In minutes a generator does not learn to start from almost nothing but noise."""

_CHASED: dict[str, Any] = {"batch": 64, "lr": 5e-4, "betas": (0.0, 0.999)}
"""With momentum, generators that face a discriminator fall behind; the others do not mind."""

_ADVERSARIAL: dict[str, Any] = {"lr": 2e-4, "clip": 10.0, "betas": (0.0, 0.99)}
"""With momentum LADD stays far from the digits."""

_COMPARED = {
    "progressive": "1 call: fd 0.541",
    "ict": "1 call: fd 0.555",
    "ect": "1 call: fd 0.515",
    "sct": "1 call: fd 0.706",
    "scd": "1 call: fd 1.221",
    "ctm": "1 call: fd 0.397",
    "pcm": "4 calls: fd 0.427",
    "tcm": "1 call: fd 0.453",
    "meanflow": "1 call: fd 0.508",
    "imm": "1 call: fd 0.872",
    "shortcut": "1 call: fd 1.851",
    "flowmap": "1 call: fd 0.636",
    "dmd": "1 call: fd 0.429",
    "dmd2": "1 call: fd 0.470",
    "f-distill": "1 call: fd 0.436",
    "sid": "1 call: fd 0.365",
    "sida": "1 call: fd 0.471",
    "diff-instruct": "1 call: fd 0.429",
    "ladd": "1 call: fd 0.355",
    "kd": "1 call: fd 0.359",
    "rcm": "1 call: fd 0.734",
    "drifting": "1 call: fd 0.373",
}
"""Results of docs/compare.md."""

DIGITS = Place(
    named=lambda method: f"digits-{method}",
    start=digits,
    data="digits",
    teacher="digits-edm",
    train=TrainConfig(
        steps=3000, batch=128, lr=1e-3, schedule="linear", warmup=100, sample_every=1000
    ),
    settings={
        "cd": {"points": 10},
        "ct": {"last": 40},
        "ict": {"last": 40},
        "ect": {"stages": 4, "train": {"clip": 10.0}},
        "tcm": {"stage": 3, "train": {"clip": 10.0}},
        "progressive": {"first": 8},
        "sct": _CONTINUOUS,
        "scd": _CONTINUOUS,
        "ctm": _TRAJECTORY,
        "pcm": {"points": 21},
        "meanflow": {"mean": 0.5, "std": 1.8, "equal": 0.5, "power": 0.5},
        "imm": {"k": 8.0},
        "shortcut": {"sections": 16, "every": 4, "rate": 0.99},
        "flowmap": {"mean": 0.0, "std": 1.4, "lagrangian": True, "train": {"lr": 5e-4}},
        "dmd": {**_LEVELS, "train": _CHASED},
        "dmd2": {**_LEVELS, "train": _CHASED},
        "f-distill": {**_LEVELS, "train": _CHASED},
        "sid": {**_LEVELS, "train": {**_CHASED, "lr": 2e-4}},
        "sida": {**_LEVELS, "train": {**_CHASED, "lr": 2e-4}},
        "diff-instruct": {"level": 1.5, "critic_updates": 5, "train": {"batch": 64, "lr": 5e-4}},
        "ladd": {
            **{"level": 1.5, "mean": -0.5, "std": 1.2, "penalty": 10.0, "heads_rate": 4.0},
            "train": {**_ADVERSARIAL, "lr": 5e-4},
        },
        "rcm": {
            **{"mean": -0.5, "std": 1.6, "weight": 0.3, "critic_updates": 2, "rate": 1.0},
            "train": {**_CHASED, "lr": 3e-4},
        },
        "drifting": {"temperatures": (0.2, 0.5, 1.0)},
    },
    told={name: ("40 s: docs/compare.md", result) for name, result in _COMPARED.items()},
)

TOYS = Place(
    named=lambda method: f"toy-{method}",
    start=toys,
    data="2-D toys",
    teacher=None,
    train=TrainConfig(
        steps=4000, batch=256, lr=1e-3, schedule="linear", warmup=100, sample_every=1000
    ),
    settings={
        "ct": {"last": 640, "c": 0.01, "train": {"steps": 5000}},
        "ict": {"first": 20, "c": 0.015, "train": {"steps": 12_000, "clip": 10.0}},
        "ect": {**_NEAR_SQUARE, "stages": 8, "mean": 0.0},
        "tcm": {**_NEAR_SQUARE, "stage": 7},
        "sct": _WIDE,
        "scd": {**_WIDE, "mean": -0.7, "train": {"steps": 3000, "lr": 3e-4}},
        "ctm": {"solver_steps": 3, "rate": 0.99, "train": {"steps": 1800}},
        "pcm": {"points": 61, "train": {"steps": 9000}},
        "meanflow": {
            **{"mean": -1.0, "std": 3.0, "equal": 0.0, "power": 0.0},
            "train": {"steps": 4000},
        },
        "imm": {
            **{"group": 64, "k": 3.0, "a": 0.0, "b": -1.0, "t_min": 0.01, "t_max": 0.9},
            "train": {"steps": 7000, "lr": 2e-3},
        },
        "shortcut": {"sections": 32, "every": 4, "rate": 0.99, "train": {"steps": 4500}},
        "flowmap": {
            **{"mean": 0.0, "std": 1.4, "c": 1.0, "lagrangian": True},
            "train": {"steps": 1800, "lr": 5e-4},
        },
        "sida": {"critic_updates": 2, "train": {"lr": 5e-4, "betas": (0.0, 0.999)}},
        "ladd": {
            **{"mean": -1.2, "penalty": 10.0, "heads_rate": 10.0},
            "train": {"steps": 9000, "batch": 512, **_ADVERSARIAL},
        },
        "rcm": {**{"mean": 0.0, "std": 1.6, "weight": 0.3}, "critic_updates": 1, "rate": 1.0},
        "drifting": {"temperatures": (0.2, 0.5, 1.0)},
    },
)

IMAGES = Place(
    named=lambda method: method,
    start=images,
    data="a folder or zip of images",
    teacher=None,
    train=TrainConfig(steps=10_000, batch=64, lr=3e-4, schedule="linear", warmup=100, threads=0),
    settings={"sct": {"train": {"lr": 1e-4}}, "scd": {"train": {"lr": 1e-4}}, "ctm": _TRAJECTORY},
)

SMALL = {
    preset.data: Place(
        named=lambda method, preset=preset: preset.named(method),
        start=of(preset),
        data=preset.data,
        teacher=None,
        train=preset.cd,
        settings={
            **DIGITS.settings,
            "cd": {"points": preset.points},
            "ect": {"stages": 4},
            "tcm": {"stage": 3},
            "flowmap": {"mean": 0.0, "std": 1.4, "lagrangian": True},
        },
    )
    for preset in (FASHION_MNIST_SMALL, CIFAR10_SMALL)
}
"""Standard data sets at a size for CPUs, by name."""

PLACES = (DIGITS, TOYS, IMAGES, *SMALL.values())
