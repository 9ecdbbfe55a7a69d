"""What recipes are put together from: data, networks, teachers, objectives, reports."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.data import STANDARD, Arrays, Dataset, EDMAugment, Flip, digits, open_images, toy
from fewstep.errors import UsageError
from fewstep.model import BUNDLED, Model, find, load
from fewstep.models import EDM, AbstractDenoiser, ConsistencyBoundary, Denoiser, Guided
from fewstep.models.nets import NETWORKS, DDPMpp, ResidualMLP
from fewstep.objectives.base import Objective
from fewstep.objectives.consistency import (
    Consistency,
    Fixed,
    Progressive,
    SameNoise,
    Schedule,
    TeacherStep,
)
from fewstep.objectives.denoising import Denoising
from fewstep.objectives.distances import LPIPS, Distance, PseudoHuber, l1, l2
from fewstep.objectives.terms import LabelDrop, karras_weight
from fewstep.times import DiscreteLogNormal, LogNormal, UniformIndex
from fewstep.training.averages import Rule, constant, half_life, warmed
from fewstep.training.config import Augment, Run, TrainConfig
from fewstep.training.posthoc import PowerFunction

AUGMENT_LABELS = 9
LABEL_DROP = 0.1
PSEUDO_HUBER = PseudoHuber()
EDM_TIMES = LogNormal()

Report = Callable[[Path, Model], None]
Watch = Callable[[Model], Mapping[str, float]]
Averages = Mapping[str, Rule]


# Data and networks.


def digits_data() -> Arrays:
    """The training digits."""
    return digits("train")


def toy_data(name: str) -> Arrays:
    """Points in the plane."""
    return toy(name)


def image_data(data: str, resolution: int, labels: bool) -> Dataset:
    """A folder, a zip or a prepared file."""
    return open_images(Path(data), resolution, labels="auto" if labels else "none")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights that are made here are a function of the seed, and nothing after them is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def mlp(
    data: Dataset,
    width: int,
    blocks: int,
    dropout: float,
    *,
    fourier_scale: float = 1.0,
    seed: int,
) -> nn.Module:
    """A residual MLP for the data, with seeded weights."""
    _at_least({"width": (width, 2), "blocks": (blocks, 1)})
    _probability("dropout", dropout)
    with seeded(seed):
        return ResidualMLP(
            data.shape, width, blocks, data.labels, fourier_scale=fourier_scale, dropout=dropout
        )


def ddpmpp(
    data: Dataset,
    channels: int,
    multipliers: tuple[int, ...],
    blocks: int,
    attention: tuple[int, ...],
    dropout: float,
    *,
    seed: int,
) -> nn.Module:
    """A DDPM++ U-Net for the data, with seeded weights."""
    _at_least({"channels": (channels, 4), "blocks": (blocks, 1)})
    _probability("dropout", dropout)
    if not multipliers or min(multipliers) < 1:
        raise UsageError(f"multipliers must be one or more positive numbers, got {multipliers}")
    with seeded(seed):
        return DDPMpp(
            data.shape,
            channels,
            tuple(multipliers),
            blocks,
            tuple(attention),
            dropout,
            data.labels,
        )


def standard_data(name: str, labels: bool) -> Dataset:
    """The training images of a standard data set, or of a prepared one: ``imagenet-64``."""
    if name in STANDARD:
        data = STANDARD[name]("train")
        return data if labels else data.unlabelled()
    place = Path(os.environ.get("FEWSTEP_DATA", ".")) / f"{name}.safetensors"
    if not place.exists():
        raise UsageError(
            f"no {place}: make it with fewstep data prepare IMAGENET/train --resolution 64 "
            f"--crop adm --out {place}, and name its folder in FEWSTEP_DATA"
        )
    return image_data(str(place), 64, labels)


def network(
    chosen: tuple[str, Mapping[str, Any]],
    data: Dataset,
    *,
    dropout: float,
    augment: bool = False,
    seed: int,
) -> nn.Module:
    """A network for the data of that kind and with those options, with seeded weights.

    With ``augment`` it reads the labels of :func:`edm_augment`.
    """
    _probability("dropout", dropout)
    kind, options = chosen
    if augment:
        if "augment" not in signature(NETWORKS[kind]).parameters:
            raise UsageError(f"the network {kind} reads no augmentation labels; take --augment 0")
        options = {**options, "augment": AUGMENT_LABELS}
    with seeded(seed):
        return NETWORKS[kind](shape=data.shape, dropout=dropout, classes=data.labels, **options)


def flip(wanted: bool) -> Augment | None:
    """Mirror half of the images."""
    return Flip() if wanted else None


def edm_augment(probability: float) -> Augment | None:
    """EDM's augmentations; the network must read their labels."""
    _probability("augment", probability)
    return EDMAugment(probability) if probability else None


def check_augment(net: nn.Module, probability: float) -> None:
    """Refuse augmentations that a network would learn, since it reads none of their labels."""
    if probability and "augment" not in getattr(net, "optional_keys", ()):
        raise UsageError("the teacher's network reads no augmentation labels; take --augment 0")


def distance(name: str) -> Distance:
    """The distance of that name; ``lpips`` needs its extra."""
    if name != "lpips":
        return {"l1": l1, "l2": l2, "pseudo-huber": PSEUDO_HUBER}[name]
    try:
        from lpips import LPIPS as Network  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError(
            "distance=lpips needs the extra, pip install 'fewstep[lpips]'; or choose l2, l1 or "
            "pseudo-huber"
        ) from error
    return LPIPS(Network(net="vgg", verbose=False))


def teacher_for(data: Dataset, name: str, trained_by: str, method: str | None = None) -> Model:
    """A diffusion model, or one of a ``method``, of the same kind of data, on the CPU."""
    if not Path(name).exists() and name not in BUNDLED:
        raise UsageError(
            f"no teacher {name!r}: not a folder, and not bundled ({', '.join(BUNDLED)}); train one "
            f"with: fewstep train {trained_by} --out {name}"
        )
    model = load(name, device="cpu")
    made = model.contract.data
    if (tuple(made.shape), made.labels) != (tuple(data.shape), data.labels):
        raise UsageError(
            f"the teacher {name} draws {tuple(made.shape)} with {made.labels} labels, the data is "
            f"{tuple(data.shape)} with {data.labels}; choose the teacher's resolution, or train "
            "one with: fewstep train edm --data ... --resolution ..."
        )
    if method is not None and model.contract.method != method:
        raise UsageError(
            f"{name} is a {model.contract.method} model; this starts from one of {method}, "
            f"e.g. of: fewstep train {trained_by}"
        )
    if method is None and model.contract.sampling.kind != "ode":
        raise UsageError(
            f"{name} is a {model.contract.method} model; a teacher is a diffusion model, "
            "e.g. of the recipe edm"
        )
    return model


# Whole runs.


def diffusion(
    recipe: str,
    arguments: Mapping[str, Any],
    data: Dataset,
    network: nn.Module,
    train: TrainConfig,
    *,
    sigma_data: float,
    averages: Averages,
    times: LogNormal = EDM_TIMES,
    uncertainty: nn.Module | None = None,
    label_drop: float = LABEL_DROP,
    augment: Augment | None = None,
    finish: Callable[[float], Report] | None = None,
    watch: Watch | None = None,
) -> Run:
    """EDM's training; with its learned uncertainty, EDM2's."""
    student = Denoiser(network, EDM(sigma_data=sigma_data))
    objective = Denoising(
        student,
        times=times,
        weight=karras_weight(sigma_data),
        drop=dropped(data, label_drop),
        uncertainty=uncertainty,
    )
    return _run(recipe, arguments, objective, data, train, averages, finish, watch, augment)


def distillation(
    recipe: str,
    arguments: Mapping[str, Any],
    data: Dataset,
    teacher: str,
    train: TrainConfig,
    *,
    schedule: Schedule,
    two_steps: Sequence[float],
    averages: Averages,
    guidance: float = 1.0,
    distance: Distance = l2,
    equal: bool = False,
    augment: Augment | None = None,
    finish: Callable[[float, Model], Report] | None = None,
    watch: Watch | None = None,
) -> Run:
    """Consistency distillation; the student starts from the teacher's weights.

    All times have equal weights, as published, or EDM's, by which short runs with l2 do better.
    """
    model = teacher_for(data, teacher, recipe.replace("cd", "edm"))
    source = model.denoiser
    if not isinstance(source, Denoiser) or not isinstance(source.preconditioning, EDM):
        raise UsageError(f"the recipe {recipe} distils EDM models, and {teacher} is another kind")
    scalings, path = source.preconditioning, source.path
    sigma_data = scalings.sigma_data
    boundary = ConsistencyBoundary(
        sigma_data=sigma_data, time_scale=scalings.time_scale, path=scalings.path
    )
    student = Denoiser(with_dropout(source.net, 0.0), boundary)
    snr = karras_weight(sigma_data)
    objective = Consistency(
        student,
        TeacherStep(guided(model, guidance)),
        schedule=schedule,
        weight=equal_weight if equal else (lambda t, r: snr(path.snr(t))),
        distance=distance,
        drop=dropped(data) if guidable(model) else None,
    )
    report = None if finish is None else (lambda began: finish(began, model))
    note = f"teacher: {find(teacher)}"
    run = _run(recipe, arguments, objective, data, train, averages, report, watch, augment, note)
    return replace(run, sampling_times={2: two_steps})


def guidable(teacher: Model) -> bool:
    """Whether it was trained with labels dropped."""
    return teacher.contract.sampling.guidance is not None


def guided(teacher: Model, scale: float) -> AbstractDenoiser:
    """The teacher under classifier-free guidance; 1 is none."""
    if scale == 1.0:
        return teacher.denoiser
    allowed = teacher.contract.sampling.guidance
    if allowed is None or not allowed.min <= scale <= allowed.max:
        raise UsageError(
            f"guidance={scale} cannot be had of this teacher, which allows {allowed or 'none'}; "
            "guidance needs labels, dropped for a share of the samples"
        )
    return Guided(teacher.denoiser, {"label": teacher.contract.data.labels}, scale)


def consistency_training(
    recipe: str,
    arguments: Mapping[str, Any],
    data: Dataset,
    network: nn.Module,
    train: TrainConfig,
    *,
    sigma_data: float,
    schedule: Schedule,
    two_steps: Sequence[float],
    averages: Averages,
    distance: Distance = PSEUDO_HUBER,
    equal: bool = False,
    augment: Augment | None = None,
    finish: Callable[[float], Report] | None = None,
    watch: Watch | None = None,
) -> Run:
    """Consistency training.

    Either all intervals and times are equal, as in the first paper, or (Song & Dhariwal 2024)
    intervals are log-normal and weights 1/(t - r): without learnt features, equal weights end a
    short run at the mean of the data.
    """
    student = Denoiser(network, ConsistencyBoundary(sigma_data=sigma_data))
    objective = Consistency(
        student,
        SameNoise(student.path),
        schedule=schedule,
        weight=equal_weight if equal else (lambda t, r: 1 / (t - r)),
        distance=distance,
        index=UniformIndex() if equal else DiscreteLogNormal(),
        drop=None if equal else dropped(data),
    )
    run = _run(recipe, arguments, objective, data, train, averages, finish, watch, augment)
    return replace(run, sampling_times={2: two_steps})


def equal_weight(t: Tensor, r: Tensor) -> Tensor:
    """1."""
    return torch.ones_like(t)


def growing(start: int, end: int, steps: int, rate: float = 0.0) -> Progressive:
    """N from ``start`` to ``end``; a target average whose rate follows N, or none at rate 0."""
    _at_least({"start": (start, 2), "end": (end, start)})
    _probability("start_rate", rate)
    return Progressive(start, end, steps, rate, adaptive=rate > 0)


def fixed(points: int, rate: float = 0.0) -> Fixed:
    """The same N always."""
    _at_least({"points": (points, 2)})
    _probability("target", rate)
    return Fixed(points, rate)


def teachers_averages(train: TrainConfig, images: float, power: Sequence[float]) -> Averages:
    """EDM's average, of a half-life in images (0 is none), and EDM2's of relative widths."""
    batch = train.batch * train.accumulation
    own = {f"half-life-{images:g}": half_life(images, batch)} if images else {}
    return own | {f"power-{std:g}": PowerFunction(std) for std in power}


def ema(*rates: float, published: bool = False) -> Averages:
    """Averages at these rates that forget the start quickly, or at constant ones, as published."""
    rule = constant if published else warmed
    return {f"ema-{rate:g}": rule(rate) for rate in rates}


def _run(
    recipe: str,
    arguments: Mapping[str, Any],
    objective: Objective,
    data: Dataset,
    train: TrainConfig,
    averages: Averages,
    finish: Callable[[float], Report] | None,
    watch: Watch | None,
    augment: Augment | None,
    note: str = "",
) -> Run:
    return Run(
        recipe=recipe,
        arguments=arguments,
        objective=objective,
        data=data,
        config=train,
        averages=averages,
        finish=None if finish is None else finish(time.perf_counter()),
        watch=watch,
        note=note,
        augment=augment,
    )


def dropped(data: Dataset, probability: float = LABEL_DROP) -> LabelDrop | None:
    """Label dropping, where there are labels."""
    if not data.labels or probability == 0:
        return None
    return LabelDrop(probability, {"label": data.labels})


def with_dropout(net: nn.Module, p: float) -> nn.Module:
    """A trainable copy; distillation has a target for every input and wants none."""
    _probability("dropout", p)
    student = copy.deepcopy(net).requires_grad_(True)
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
    options: Any = getattr(student, "options", {})
    if "dropout" in options:
        options["dropout"] = p
    return student


def _probability(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UsageError(f"{name} must lie in [0, 1), got {value}")


def _at_least(given: Mapping[str, tuple[int, int]]) -> None:
    for name, (value, low) in given.items():
        if value < low:
            raise UsageError(f"{name} must be at least {low}, got {value}")
