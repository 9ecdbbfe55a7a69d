"""Where methods run: data, network, teacher and how long, by place.

A place's keys are the names under which method files keep their settings for it; a later key's
settings count more. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fewstep.recipes.method import Method, Setting
from fewstep.recipes.methods import METHODS
from fewstep.recipes.options import (
    NONE,
    AugmentOptions,
    AverageOptions,
    DataOptions,
    NetworkOptions,
    StartOptions,
)
from fewstep.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Place:
    """A data set at a size.

    Args:
        prefix, suffix: what stands around a method's name in the name of its recipe.
        keys: of the settings in the method files.
        title: of the data, for tables.
        data, network, start, averages, augment, train: values of all options that are not set
            otherwise.
        teachers: the recipe of its diffusion models, where it is not the place's own ``edm``.
        names: of recipes that are not made of prefix, method and suffix.
        every: all methods run here; else those that have settings for it.
        cost: of a recipe whose method does not say otherwise, for the table of recipes.
        compares: the kind of data, see ``fewstep.data.catalogue``, whose comparisons run here.
        reports: a run ends with a table of distances.
    """

    prefix: str = ""
    suffix: str = ""
    keys: tuple[str, ...]
    title: str
    data: DataOptions = DataOptions()
    network: NetworkOptions = NetworkOptions()
    start: StartOptions = StartOptions()
    averages: AverageOptions = AverageOptions()
    augment: AugmentOptions = AugmentOptions()
    train: TrainConfig
    teachers: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    every: bool = False
    cost: str = ""
    compares: str = ""
    reports: bool = False

    def named(self, method: str) -> str:
        """The name of a method's recipe."""
        return self.names.get(method, f"{self.prefix}{method}{self.suffix}")

    def setting(self, method: Method) -> Setting:
        """A method's settings here."""
        return method.at(*self.keys)

    def has(self, method: Method) -> bool:
        """Whether the method has a recipe here."""
        return self.every or any(key in method.settings for key in self.keys)

    def trained_by(self, method: Method) -> str:
        """The recipe of the models that a method starts from."""
        return self.named(method.after) if method.after else self.teachers or self.named("edm")

    def teacher(self, method: Method) -> str:
        """The model that a method starts from by default."""
        if method.diffusion:
            return NONE
        own = method.after is None and self.start.teacher != NONE
        if own or (method.scratch and self.start.teacher == NONE):
            return self.start.teacher
        return f"runs/{self.trained_by(method).split()[0]}"


DIGITS = Place(
    prefix="digits-",
    keys=("digits",),
    title="digits",
    data=DataOptions(data="digits"),
    network=NetworkOptions(network="mlp", width=256, blocks=4),
    start=StartOptions(teacher="digits-edm", sigma_data=0.75, middle=2.0),
    train=TrainConfig(
        steps=3000, batch=128, lr=1e-3, schedule="linear", warmup=100, sample_every=1000
    ),
    every=True,
    cost="40 s: docs/compare.md",
    compares="digits",
    reports=True,
)

PLANE = Place(
    prefix="toy-",
    keys=("plane",),
    title="2-D toys",
    data=DataOptions(data="two-modes"),
    network=NetworkOptions(network="mlp", width=128, blocks=3, fourier_scale=0.1),
    start=StartOptions(middle=0.5),
    train=TrainConfig(
        steps=4000, batch=256, lr=1e-3, schedule="linear", warmup=100, sample_every=1000
    ),
    every=True,
    compares="plane",
)

IMAGES = Place(
    keys=("images",),
    title="your own data",
    network=NetworkOptions(channels=64, multipliers=(1, 2, 2), blocks=2, attention=(16,)),
    train=TrainConfig(steps=10_000, batch=64, lr=3e-4, schedule="linear", warmup=100, threads=0),
    every=True,
    compares="own",
)

# Standard data sets at a size for CPUs.

FASHION_MNIST_SMALL = Place(
    prefix="fashion-mnist-",
    suffix="-small",
    keys=("small", "fashion-mnist-small"),
    title="fashion-mnist",
    data=DataOptions(data="fashion-mnist"),
    network=NetworkOptions(channels=32, multipliers=(1, 2), blocks=2, attention=(7,), patch=2),
    start=StartOptions(sigma_data=0.7),
    train=TrainConfig(
        **{"steps": 600, "batch": 128, "lr": 5e-4, "schedule": "linear", "warmup": 100},
        **{"precision": "auto", "save_every": 250, "sample_every": 500},
    ),
    every=True,
    compares="fashion-mnist",
)
CIFAR10_SMALL = replace(
    FASHION_MNIST_SMALL,
    prefix="cifar10-",
    keys=("small", "cifar10-small"),
    title="cifar10",
    data=DataOptions(data="cifar10"),
    network=replace(FASHION_MNIST_SMALL.network, channels=48, attention=(8,)),
    start=StartOptions(),
    augment=AugmentOptions(flip=True),
    train=replace(FASHION_MNIST_SMALL.train, steps=3000),
    compares="cifar10",
)

# Robots. The published network is four to sixteen times as wide and learns a hundred times as long.

PUSHT = Place(
    prefix="pusht-",
    keys=("pusht",),
    title="Push-T",
    data=DataOptions(data="pusht"),
    network=NetworkOptions(network="unet1d", widths=(32, 64, 128), joined=True),
    start=StartOptions(condition_drop=0.0),
    train=TrainConfig(
        **{"steps": 2000, "batch": 128, "lr": 5e-4, "schedule": "linear", "warmup": 100},
        **{"clip": 1.0, "sample_every": 0, "save_every": 500},
    ),
    compares="pusht",
)

# With the settings of papers and official code (Karras et al. 2022, table 7; Song et al. 2023,
# table 3 and launch scripts); the method files have what differs. What could not be had as
# published is in docs/methods.md. Fashion-MNIST has no settings of its own and takes CIFAR-10's.

CIFAR10 = Place(
    prefix="cifar10-",
    keys=("cifar10",),
    title="cifar10",
    data=DataOptions(data="cifar10", labels=False),
    network=NetworkOptions(channels=128, multipliers=(2, 2, 2), blocks=4, attention=(16,)),
    start=StartOptions(condition_drop=0.0),
    averages=AverageOptions(rates=(0.9999,), warm_averages=False),
    augment=AugmentOptions(flip=True),
    train=TrainConfig(steps=1, batch=64, threads=0, save_every=5000, sample_every=10_000),
)
CIFAR10_DEEP = replace(
    CIFAR10,
    suffix="-deep",
    keys=("cifar10-deep",),
    network=replace(CIFAR10.network, blocks=8),
    teachers="cifar10-edm",
)
CIFAR10_HOUR = replace(CIFAR10, suffix="-1h", keys=("cifar10-1h",), teachers="cifar10-edm")
CIFAR10_LABELS = replace(
    CIFAR10,
    keys=("cifar10-labels",),
    data=replace(CIFAR10.data, labels=True),
    teachers="cifar10-edm --labels",
)
FASHION_MNIST = replace(
    CIFAR10,
    prefix="fashion-mnist-",
    keys=("fashion-mnist",),
    title="fashion-mnist",
    data=DataOptions(data="fashion-mnist"),
    network=replace(CIFAR10.network, attention=(14,)),
    start=StartOptions(sigma_data=0.7),
)
IMAGENET_64 = replace(
    CIFAR10,
    prefix="imagenet-64-",
    keys=("imagenet-64-adm",),
    title="imagenet-64",
    data=DataOptions(data="imagenet-64"),
    network=NetworkOptions(network="adm"),
    start=StartOptions(condition_drop=0.0, middle=1.913),
    averages=AverageOptions(rates=(0.999, 0.9999, 0.9999432), warm_averages=False),
    train=replace(CIFAR10.train, precision="fp16"),
)
IMAGENET_64_EDM2 = replace(
    IMAGENET_64,
    keys=("imagenet-64-edm2",),
    network=NetworkOptions(network="edm2", channels=192),
    augment=AugmentOptions(),
    train=CIFAR10.train,
    teachers="imagenet-64-edm2",
    names={"edm": "imagenet-64-edm2"},
)

PLACES = (
    *(DIGITS, PLANE, IMAGES, FASHION_MNIST_SMALL, CIFAR10_SMALL, FASHION_MNIST),
    PUSHT,
    *(CIFAR10, CIFAR10_DEEP, CIFAR10_HOUR, CIFAR10_LABELS, IMAGENET_64, IMAGENET_64_EDM2),
)

NAMES: dict[str, tuple[Place, Method]] = {
    place.named(name): (place, method)
    for place in PLACES
    for name, method in METHODS.items()
    if place.has(method)
}
"""The place and the method of every recipe, by its name."""
