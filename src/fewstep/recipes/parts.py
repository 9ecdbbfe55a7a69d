"""What recipes are put together from: data, networks, teachers, objectives, reports."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.data import Arrays, Dataset, ImageFolder, digits, toy
from fewstep.errors import UsageError
from fewstep.model import BUNDLED, Model, find, load
from fewstep.models import EDM, AbstractDenoiser, ConsistencyBoundary, Denoiser, Guided
from fewstep.models.nets import DDPMpp, ResidualMLP
from fewstep.objectives.base import Objective
from fewstep.objectives.consistency import Consistency, Fixed, Progressive, SameNoise, TeacherStep
from fewstep.objectives.denoising import Denoising
from fewstep.objectives.terms import LabelDrop, PseudoHuber, karras_weight
from fewstep.times import DiscreteLogNormal, LogNormal
from fewstep.training.averages import warmed
from fewstep.training.config import Run, TrainConfig

LABEL_DROP = 0.1

Report = Callable[[Path, Model], None]


# Data and networks.


def digits_data() -> Arrays:
    """The training digits."""
    return digits("train")


def toy_data(name: str) -> Arrays:
    """Points in the plane."""
    return toy(name)


def image_data(data: str, resolution: int, labels: bool) -> ImageFolder:
    """A folder or zip."""
    return ImageFolder(Path(data), resolution, labels="auto" if labels else "none")


def mlp(data: Dataset, width: int, blocks: int, dropout: float, *, seed: int) -> nn.Module:
    """A residual MLP for the data, with seeded weights."""
    _at_least({"width": (width, 2), "blocks": (blocks, 1)})
    _probability("dropout", dropout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResidualMLP(data.shape, width, blocks, data.labels, dropout=dropout)


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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DDPMpp(
            data.shape,
            channels,
            tuple(multipliers),
            blocks,
            tuple(attention),
            dropout,
            data.labels,
        )


def teacher_for(data: Dataset, name: str, trained_by: str) -> Model:
    """A diffusion model of the same kind of data, on the CPU."""
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
    if model.contract.sampling.kind != "ode":
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
    average: float,
    finish: Callable[[float], Report] | None = None,
) -> Run:
    """EDM training."""
    student = Denoiser(network, EDM(sigma_data=sigma_data))
    objective = Denoising(
        student, times=LogNormal(), weight=karras_weight(sigma_data), drop=_drop(data)
    )
    return _run(recipe, arguments, objective, data, train, average, finish)


def distillation(
    recipe: str,
    arguments: Mapping[str, Any],
    data: Dataset,
    teacher: str,
    train: TrainConfig,
    *,
    points: int,
    two_steps: Sequence[float],
    average: float,
    guidance: float = 1.0,
    finish: Callable[[float, Model], Report] | None = None,
) -> Run:
    """Consistency distillation; the student starts from the teacher's weights."""
    _at_least({"points": (points, 2)})
    model = teacher_for(data, teacher, recipe.replace("cd", "edm"))
    source = model.denoiser
    if not isinstance(source, Denoiser) or not isinstance(source.preconditioning, EDM):
        raise UsageError(f"the recipe {recipe} distils EDM models, and {teacher} is another kind")
    sigma_data, path = source.preconditioning.sigma_data, source.path
    student = Denoiser(
        _without_dropout(source.net), ConsistencyBoundary(sigma_data=sigma_data, path=path)
    )
    weight = karras_weight(sigma_data)
    objective = Consistency(
        student,
        TeacherStep(_guided(model, guidance)),
        schedule=Fixed(points),
        weight=lambda t, r: weight(path.snr(t)),
        drop=_drop(data),
        times={2: two_steps},
    )
    report = None if finish is None else (lambda began: finish(began, model))
    note = f"teacher: {find(teacher)}"
    return _run(recipe, arguments, objective, data, train, average, report, note)


def _guided(teacher: Model, scale: float) -> AbstractDenoiser:
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
    start: int,
    end: int,
    two_steps: Sequence[float],
    average: float,
    finish: Callable[[float], Report] | None = None,
) -> Run:
    """Consistency training, as runs of minutes can afford it.

    No target average, the pseudo-Huber distance, weights 1/(t - r) and log-normal intervals (Song &
    Dhariwal 2024): with the equal weights, the lagging target and the distances without learnt
    features of the first paper, a short run ends at the mean of the data.
    """
    _at_least({"start": (start, 2), "end": (end, start)})
    student = Denoiser(network, ConsistencyBoundary(sigma_data=sigma_data))
    objective = Consistency(
        student,
        SameNoise(student.path),
        schedule=Progressive(start, end, train.steps, rate=0.0, adaptive=False),
        weight=lambda t, r: 1 / (t - r),
        distance=PseudoHuber(),
        index=DiscreteLogNormal(),
        drop=_drop(data),
        times={2: two_steps},
    )
    return _run(recipe, arguments, objective, data, train, average, finish)


def _run(
    recipe: str,
    arguments: Mapping[str, Any],
    objective: Objective,
    data: Dataset,
    train: TrainConfig,
    average: float,
    finish: Callable[[float], Report] | None,
    note: str = "",
) -> Run:
    return Run(
        recipe=recipe,
        arguments=arguments,
        objective=objective,
        data=data,
        config=train,
        averages={f"ema-{average:g}": warmed(average)},
        finish=None if finish is None else finish(time.perf_counter()),
        note=note,
    )


def _drop(data: Dataset) -> LabelDrop | None:
    return LabelDrop(LABEL_DROP, {"label": data.labels}) if data.labels else None


def _without_dropout(net: nn.Module) -> nn.Module:
    """A trainable copy; distillation has a target for every input and nothing to overfit."""
    student = copy.deepcopy(net).requires_grad_(True)
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if isinstance(student, ResidualMLP | DDPMpp):
        student.options["dropout"] = 0.0
    return student


def _probability(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UsageError(f"{name} must lie in [0, 1), got {value}")


def _at_least(given: Mapping[str, tuple[int, int]]) -> None:
    for name, (value, low) in given.items():
        if value < low:
            raise UsageError(f"{name} must be at least {low}, got {value}")
