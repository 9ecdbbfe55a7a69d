"""What a method of the family starts from, and the run that is made of it."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fewstep.contract import data_spec
from fewstep.data import Dataset
from fewstep.data.pairs import Paired, Pairs
from fewstep.errors import UsageError
from fewstep.model import Model, find
from fewstep.models import (
    EDM,
    AbstractDenoiser,
    ConsistencyBoundary,
    Denoiser,
    FeatureDiscriminator,
    Judge,
    LowRank,
    grown,
)
from fewstep.objectives.base import Objective
from fewstep.objectives.terms import LabelDrop
from fewstep.paths import Path, VarianceExploding
from fewstep.recipes import parts
from fewstep.recipes.methods import METHODS, Method
from fewstep.training.checkpoints import fingerprint
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
        train: the trainer's settings.
        averages: rules by name.
        dropout: of the student.
        guidance: scale of the teacher's; 1 is none.
        pairs: of the teacher, where a method learns from them.
        pairing: how to make them.
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
    train: TrainConfig
    averages: parts.Averages
    dropout: float = 0.0
    guidance: float = 1.0
    pairs: Pairs | None = None
    pairing: str = "fewstep data pairs TEACHER -n 10000 --out DIR, and give --pairs DIR"
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
        """A trainable copy with the student's dropout, read on a path; by default on noise levels.

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
        student = Denoiser(parts.with_dropout(net, self.dropout), scalings)
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

    def times(self, path: Path, steps: int) -> tuple[float, ...]:
        """The times of so many calls of a generator.

        Raises:
            UsageError: neither 1, 2 nor 4.
        """
        known = {1: (path.t_max,), **self.sampling_times(path)}
        if steps not in known:
            raise UsageError(f"steps must be 1, 2 or 4, got {steps}")
        return tuple(known[steps])

    def fake(self, path: Path, lora: int = 0) -> AbstractDenoiser:
        """Where the denoiser of generated samples starts: as the teacher without guidance.

        Args:
            path: the student's.
            lora: rank of its difference to the teacher, whose weights it shares; 0 is a copy.
        """
        if not lora:
            return self.student(path)
        with parts.seeded(self.train.seed):
            return LowRank(self.source.on(path), lora)

    def judge(self, denoiser: Any) -> Judge:
        """A discriminator on the features in the middle of such a denoiser."""
        kinds = getattr(denoiser.net, "units", ())
        count = sum(isinstance(m, kinds) for m in denoiser.net.modules())
        with parts.seeded(self.train.seed):
            return Judge(denoiser, self.data.batch([0, 1]), at=(count // 2,))

    def discriminator(self, path: Path) -> FeatureDiscriminator:
        """Heads on all features of the teacher, without guidance, told the label."""
        frozen = copy.deepcopy(self.source.on(path))
        with parts.seeded(self.train.seed):
            return FeatureDiscriminator(frozen, self.data.batch([0, 1]), classes=self.data.labels)

    def with_pairs(self, folder: str) -> Start:
        """The same, with data that brings pairs of its teacher along; an empty name has none.

        Raises:
            UsageError: they are of another teacher, or not finished.
        """
        if not folder:
            return self
        assert self.model is not None
        pairs = Pairs(folder, verify=True)
        pairs.check(fingerprint(self.model.denoiser), self.guidance)
        return replace(self, data=Paired(self.data, pairs), pairs=pairs)

    def paired(self) -> Pairs:
        """The pairs.

        Raises:
            UsageError: there are none.
        """
        if self.pairs is None:
            raise UsageError(
                "this needs pairs of noise and what the teacher makes of it: make them with "
                f"{self.pairing}"
            )
        return self.pairs

    def run(self, recipe: str, arguments: Mapping[str, Any], objective: Objective) -> Run:
        """The run of an objective."""
        data = self.data
        sampling = objective.contract(data_spec(data.shape, data.labels, data.image)).sampling
        free = sampling.any_times and sampling.kind != "ode"
        return Run(
            recipe=recipe,
            arguments=arguments,
            objective=objective,
            data=data,
            config=self.train,
            averages=self.averages,
            finish=None if self.finish is None else self.finish(self.model),
            watch=self.watch,
            note="" if self.model is None else f"teacher: {find(arguments['teacher'])}",
            augment=self.augment,
            sampling_times=self.sampling_times(objective.student.path) if free else {},
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
    dropout: float = 0.0,
    label_drop: float = parts.LABEL_DROP,
    trained_by: str | None = None,
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
        dropout: of the student.
        label_drop: share of the samples whose label is dropped, where there are labels.
        trained_by: the recipe of its teachers, where its own name does not tell.
        augment: what happens to each batch.
        finish: takes the teacher and returns the report.
        watch: numbers on the way.

    Raises:
        UsageError: the method needs a teacher, or another one.
    """
    model, trained_by = None, trained_by or _sibling(recipe, method, method.after or "edm")
    if teacher != NONE:
        model = parts.teacher_for(data, teacher, trained_by, method.after)
        source = _diffusion_scalings(model, teacher, recipe)
    elif not method.scratch:
        raise UsageError(f"{recipe} needs a teacher; train one with: fewstep train {trained_by}")
    else:
        source = Denoiser(network(), EDM(sigma_data=sigma_data))
    taught = model is not None and method.distils
    if guidance != 1.0 and not taught:
        raise UsageError(f"{recipe} distils no teacher that could be guided; leave out --guidance")
    folder = f"runs/{_sibling(recipe, method, 'pairs')}"
    scale = "" if guidance == 1.0 else f" --guidance {guidance:g}"
    guidable = model is None or parts.guidable(model) or method.after is not None
    return Start(
        data=data,
        source=source,
        teacher=parts.guided(model, guidance) if model is not None and taught else None,
        model=model,
        drop=parts.dropped(data, label_drop) if guidable else None,
        middle=middle,
        train=train,
        averages=averages,
        dropout=dropout,
        guidance=guidance,
        pairing=(
            f"fewstep data pairs {shlex.quote(teacher)}{scale} -n 10000 --out {folder}, and give "
            f"--pairs {folder}"
        ),
        augment=augment,
        finish=finish,
        watch=watch,
    )


def _sibling(recipe: str, method: Method, name: str) -> str:
    """A recipe's name with another in the place of its method's."""
    own = next(name for name, known in METHODS.items() if known is method)
    head, _, tail = recipe.rpartition(own)
    return f"{head}{name}{tail}"


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
