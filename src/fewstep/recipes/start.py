"""What a method of the family starts from, and the run that is made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fewstep.data import Dataset
from fewstep.errors import UsageError
from fewstep.model import Model, find
from fewstep.models import EDM, AbstractDenoiser, ConsistencyBoundary, Denoiser, grown
from fewstep.objectives.base import Objective
from fewstep.objectives.terms import Distance, LabelDrop
from fewstep.paths import Path, VarianceExploding
from fewstep.recipes import parts
from fewstep.recipes.methods import METHODS, Method
from fewstep.training.config import Augment, Run, TrainConfig

NONE = "none"
"""In the place of a teacher: new weights."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Data, weights and teacher of a run.

    Args:
        data: what it learns from.
        source: an EDM model whose network the student begins as; the student's is a copy.
        teacher: what is distilled, guided if it is to be; None where nothing is.
        model: the teacher as it was loaded, for reports.
        drop: label dropping.
        middle: the noise level of the second call of a two-step sample; a quarter and four times
            it are the others of a four-step one.
        distance: what discrete methods compare samples by, where not their own.
        train: the trainer's settings.
        averages: rules by name.
        augment: what happens to each batch.
        finish: takes the teacher and returns the report.
        watch: numbers on the way.
    """

    data: Dataset
    source: Denoiser
    teacher: AbstractDenoiser | None
    model: Model | None
    drop: LabelDrop | None
    middle: float
    distance: Distance | None
    train: TrainConfig
    averages: parts.Averages
    augment: Augment | None = None
    finish: Callable[[Model | None], parts.Report] | None = None
    watch: parts.Watch | None = None

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the data."""
        return self._scalings.sigma_data

    @property
    def _scalings(self) -> EDM:
        scalings = self.source.preconditioning
        assert isinstance(scalings, EDM)
        return scalings

    def student(
        self,
        path: Path | None = None,
        *,
        two_time: bool = False,
        guidance: bool = False,
        boundary: bool = False,
    ) -> Denoiser:
        """A trainable copy without dropout, read on a path; by default on noise levels.

        Args:
            path: another than the source's.
            two_time: let it read a second time.
            guidance: let it read a guidance scale.
            boundary: under scalings that are the identity at the path's ``t_min``.
        """
        scalings = self._scalings
        if isinstance(path, VarianceExploding):
            scalings = EDM(
                sigma_data=scalings.sigma_data, time_scale=scalings.time_scale, path=path
            )
            path = None
        if boundary:
            scalings = ConsistencyBoundary(
                sigma_data=scalings.sigma_data, time_scale=scalings.time_scale, path=scalings.path
            )
        net = grown(self.source, two_time=two_time, guidance=guidance).net
        student = Denoiser(parts.without_dropout(net), scalings)
        return student if path is None else student.on(path)

    def teacher_on(self, path: Path) -> AbstractDenoiser:
        """The teacher read on a path."""
        teacher = self.teacher
        if teacher is None:
            raise UsageError("this method distils: give a --teacher")
        return teacher.on(path)

    def sampling_times(self, path: Path) -> Mapping[int, Sequence[float]]:
        """The times of samples of two and of four steps on a path."""
        levels = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64) * self.middle
        high, middle, low = path.time(levels).tolist()
        return {2: (path.t_max, middle), 4: (path.t_max, high, middle, low)}

    def run(self, recipe: str, arguments: Mapping[str, Any], objective: Objective) -> Run:
        """The run of an objective."""
        return Run(
            recipe=recipe,
            arguments=arguments,
            objective=objective,
            data=self.data,
            config=self.train,
            averages=self.averages,
            finish=None if self.finish is None else self.finish(self.model),
            watch=self.watch,
            note="" if self.model is None else f"teacher: {find(arguments['teacher'])}",
            augment=self.augment,
        )


def begin(
    method: Method,
    recipe: str,
    data: Dataset,
    teacher: str,
    train: TrainConfig,
    *,
    network: Callable[[], nn.Module],
    sigma_data: float,
    middle: float,
    averages: parts.Averages,
    guidance: float = 1.0,
    distance: Distance | None = None,
    augment: Augment | None = None,
    finish: Callable[[Model | None], parts.Report] | None = None,
    watch: parts.Watch | None = None,
) -> Start:
    """The start of a method.

    Args:
        method: of the family.
        recipe: its name, for messages.
        data: what it learns from.
        teacher: a model folder, a run folder or a bundled name; ``none`` starts from new weights.
        train: the trainer's settings.
        network: makes the network of new weights.
        sigma_data: of new weights; a teacher knows its own.
        middle: the noise level of the second call of a two-step sample.
        averages: rules by name.
        guidance: scale of classifier-free guidance of a teacher that is distilled.
        distance: of discrete methods.
        augment: what happens to each batch.
        finish: takes the teacher and returns the report.
        watch: numbers on the way.

    Raises:
        UsageError: the method needs a teacher, or another one.
    """
    model = None
    if teacher != NONE:
        model = parts.teacher_for(data, teacher, _trained_by(recipe, method), method.after)
        source = _diffusion_scalings(model, teacher, recipe)
    elif not method.scratch:
        raise UsageError(
            f"{recipe} needs a teacher; train one with: fewstep train {_trained_by(recipe, method)}"
        )
    else:
        source = Denoiser(network(), EDM(sigma_data=sigma_data))
    taught = model is not None and method.distils
    if guidance != 1.0 and not taught:
        raise UsageError(f"{recipe} distils no teacher that could be guided; leave out --guidance")
    guidable = model is None or parts.guidable(model) or method.after is not None
    return Start(
        data=data,
        source=source,
        teacher=parts.guided(model, guidance) if model is not None and taught else None,
        model=model,
        drop=parts.dropped(data) if guidable else None,
        middle=middle,
        distance=distance,
        train=train,
        averages=averages,
        augment=augment,
        finish=finish,
        watch=watch,
    )


def _trained_by(recipe: str, method: Method) -> str:
    """The recipe of what a method starts from."""
    own = next(name for name, known in METHODS.items() if known is method)
    head, _, tail = recipe.rpartition(own)
    return f"{head}{method.after or 'edm'}{tail}"


def _diffusion_scalings(model: Model, name: str, recipe: str) -> Denoiser:
    source = model.denoiser
    if isinstance(source, Denoiser):
        scalings = source.preconditioning
        if isinstance(scalings, ConsistencyBoundary):
            path = replace(scalings.path, t_min=VarianceExploding().t_min)
            scalings = EDM(
                sigma_data=scalings.sigma_data, time_scale=scalings.time_scale, path=path
            )
        if isinstance(scalings, EDM):
            return Denoiser(source.net, scalings)
    raise UsageError(f"the recipe {recipe} starts from EDM models, and {name} is another kind")
