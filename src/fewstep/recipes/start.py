"""What a method starts from: data, teacher and first weights; and the run that is made of it."""

from __future__ import annotations

import copy
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch

from fewstep.data import Dataset, spec_of
from fewstep.data.pairs import Paired, Pairs
from fewstep.errors import UsageError
from fewstep.evaluation.report import evaluator, report, watch
from fewstep.frontends import Frontend
from fewstep.model import Model, find, load
from fewstep.models import (
    EDM,
    AbstractDenoiser,
    Bounded,
    ConsistencyBoundary,
    Denoiser,
    FeatureDiscriminator,
    Judge,
    LowRank,
    grown,
)
from fewstep.models.fresh import fresh_network, seeded, with_dropout
from fewstep.models.low_rank import learn_adapters, share_base
from fewstep.models.nets.edm2 import Uncertainty
from fewstep.models.preconditioning import Preconditioning
from fewstep.objectives.base import Objective
from fewstep.objectives.shared.drop import ConditionDrop
from fewstep.paths import Path, VarianceExploding
from fewstep.recipes.data import augmentation, opened
from fewstep.recipes.method import MethodOptions
from fewstep.recipes.options import NONE
from fewstep.recipes.origins import other_data, seen_before
from fewstep.recipes.recipe import Recipe
from fewstep.recipes.records import upgraded
from fewstep.teachers import begin_with, check_same, guided, levels, read, teacher_of
from fewstep.training.averages import Rule, constant, half_life, warmed
from fewstep.training.checkpoints import fingerprint
from fewstep.training.config import Run, TrainConfig
from fewstep.training.posthoc import PowerFunction


@dataclass(frozen=True, kw_only=True)
class Start:
    """Data, weights and teacher of a run.

    Args:
        recipe: of the run.
        data: what the student learns from.
        source: the denoiser whose network the student begins as; the student's is a copy.
        model: the teacher as it was loaded; None where training starts from new weights.
        teacher: what is distilled, guided if it is to be; None where nothing is.
        drop: condition dropping.
        unseen: the held-out data that the options ask for; None without any.
        pairs: noise and samples of the teacher, where the method learns from them.
        first: the model whose weights the student begins with, if those are not the source's.
    """

    recipe: Recipe[MethodOptions]
    data: Dataset
    source: Denoiser
    model: Model | None
    teacher: AbstractDenoiser | None
    drop: ConditionDrop | None
    unseen: Dataset | None = None
    pairs: Pairs | None = None
    first: Model | None = None

    @property
    def train(self) -> TrainConfig:
        """The trainer's settings."""
        return self.recipe.train

    @property
    def guidance(self) -> float:
        """Scale of the teacher's guidance; 1 is none."""
        return self.recipe.start.guidance

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the data: the source's own, or the option's."""
        scalings = self.source.preconditioning
        return scalings.sigma_data if isinstance(scalings, EDM) else self.recipe.start.sigma_data

    @property
    def edm(self) -> bool:
        """Whether the source has EDM's scalings."""
        return isinstance(self.source.preconditioning, EDM)

    @property
    def levels(self) -> VarianceExploding:
        """The noise levels that the source knows, as a path."""
        return levels(self.source)

    def student(
        self,
        path: Path | None = None,
        *,
        two_time: bool = False,
        guidance: bool = False,
        boundary: bool = False,
        new: Preconditioning | None = None,
    ) -> Denoiser:
        """A trainable copy with the student's dropout, read on a path; by default on noise levels.

        With ``--lora`` its adapters learn, and the weights that the source does not have.

        Args:
            path: where the student lives; by default the source's noise levels.
            two_time: let it read a second time.
            guidance: let it read a guidance scale.
            boundary: make it the identity at the path's ``t_min``.
            new: the parametrisation of new weights, where it is not EDM's.
        """
        net = grown(self.source, two_time=two_time, guidance=guidance).net
        net, options = with_dropout(net, self.recipe.start.dropout), self.recipe.start
        scalings = self._scalings(path, boundary)
        if new is not None and self.model is None:
            scalings = new
        if self.first is not None:
            begin_with(net, self.first, options.init)
        if options.lora is not None:
            old = dict(self.source.net.named_parameters())
            added = {name for name, _ in net.named_parameters() if name not in old}
            with seeded(self.train.seed):
                learn_adapters(
                    net,
                    options.lora,
                    options.lora_alpha,
                    targets=options.lora_targets,
                    whole=added,
                )
        return Denoiser(net, scalings)

    def copy(self, path: Path | None = None) -> Denoiser:
        """A trainable copy as :meth:`student`'s, all of whose weights learn."""
        net = with_dropout(self.source.net, self.recipe.start.dropout)
        return Denoiser(net, self._scalings(path, boundary=False))

    def _scalings(self, path: Path | None, boundary: bool) -> Preconditioning:
        own, path = self.source.preconditioning, path or self.levels
        if not isinstance(own, EDM) or not isinstance(path, VarianceExploding):
            if boundary:
                return Bounded(path=path, inner=own, sigma_data=self.sigma_data)
            return own.on(path)
        kind = ConsistencyBoundary if boundary else EDM
        return kind(sigma_data=own.sigma_data, time_scale=own.time_scale, path=path)

    def teacher_on(self, path: Path) -> AbstractDenoiser:
        """The teacher read on a path."""
        if self.teacher is None:
            raise UsageError("this method distils: give a --teacher")
        return self.teacher.on(path)

    def sampling_times(self, path: Path) -> Mapping[int, Sequence[float]]:
        """The times of samples of two and of four steps on a path."""
        levels = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64) * self.recipe.start.middle
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

    def fake(self, path: Path, lora: int = 0) -> Denoiser | LowRank:
        """Where the denoiser of generated samples starts: as the teacher without guidance.

        Args:
            path: the student's.
            lora: rank of its difference to the teacher, whose weights it shares; 0 is a copy.
        """
        if not lora:
            return self.copy(path)
        with seeded(self.train.seed):
            return LowRank(self.source.on(path), lora)

    def judge(self, denoiser: Denoiser | LowRank) -> Judge:
        """A discriminator on the features in the middle of a denoiser such as :meth:`fake`'s."""
        net = denoiser.get_submodule("net")
        count = sum(isinstance(m, getattr(net, "units", ())) for m in net.modules())
        with seeded(self.train.seed):
            return Judge(denoiser, self.data.batch([0, 1]), at=(count // 2,))

    def discriminator(self, path: Path) -> FeatureDiscriminator:
        """Heads, which read the label, on all features of the teacher without guidance."""
        frozen = copy.deepcopy(self.source.on(path))
        with seeded(self.train.seed):
            return FeatureDiscriminator(frozen, self.data.batch([0, 1]), classes=self.data.labels)

    def uncertainty(self) -> Uncertainty:
        """The learned logarithm of each noise level's expected loss (EDM2, sCM)."""
        with seeded(self.train.seed):
            return Uncertainty()

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
            folder = f"runs/{self.recipe.place.named('pairs')}"
            scale = "" if self.guidance == 1.0 else f" --guidance {self.guidance:g}"
            teacher = shlex.quote(self.recipe.start.teacher)
            raise UsageError(
                "this needs pairs of noise and the teacher's samples: make them with fewstep data "
                f"pairs {teacher}{scale} -n 10000 --out {folder}, and give --pairs {folder}"
            )
        return self.pairs

    def run(self, recipe: Recipe[MethodOptions], objective: Objective) -> Run:
        """The run of an objective."""
        for name in objective.frozen:
            share_base(objective, objective.get_submodule(name))
        if self.first is not None:
            check_same(objective.deliver(objective.student), self.first, recipe.start.init)
        data, reports = self.data, recipe.place.reports
        train = data.data if isinstance(data, Paired) else data
        evaluate = evaluator(train, recipe.data.data, self.unseen)
        teacher = self.model if self.teacher is not None else None
        sampling = objective.contract(spec_of(data)).sampling
        free = sampling.any_times and sampling.kind != "ode" and not recipe.options.own_times()
        return Run(
            recipe=recipe.name,
            arguments=recipe.arguments(),
            objective=objective,
            data=data,
            config=recipe.train,
            averages=averages(recipe),
            finish=report(evaluate, teacher, time.perf_counter()) if evaluate and reports else None,
            watch=None if evaluate is None else watch(evaluate),
            held_out=self.unseen,
            note=self._note(evaluate is not None),
            augment=augmentation(recipe, spec_of(data)),
            sampling_times=self.sampling_times(objective.student.path) if free else {},
            teacher=self.model,
            frontend=getattr(train, "frontend", None),
            network_arguments=[f.name for f in fields(recipe.network)],
            upgrade=upgraded,
        )

    def _note(self, evaluates: bool) -> str:
        """Lines for the header: the teacher, and what is to be known of evaluations."""
        options, teacher = self.recipe.data, self.recipe.start.teacher
        lines: list[str] = []
        if self.model is not None:
            other = other_data(teacher, options.data)
            but = f", which learned from {other} and not from {options.data}" if other else ""
            lines.append(f"teacher: {find(teacher)}{but}")
            seen = seen_before(teacher, options.data, options.held_out)
            lines += [seen] if seen else []
        if self.first is not None:
            lines.append(f"first weights: {find(self.recipe.start.init)}")
        if self.recipe.place.reports and not evaluates:
            lines.append("the run ends without a table, as it has no held-out data (--held-out)")
        return "\n".join(lines)


def begin(recipe: Recipe[MethodOptions]) -> Start:
    """The start of a recipe.

    Raises:
        UsageError: the method needs a teacher, or another one; the data is not the teacher's.
    """
    method, options = recipe.method, recipe.start
    data, unseen = opened(recipe.data)
    spec, model, trained_by = spec_of(data), None, recipe.place.trained_by(method)
    frontend = getattr(data, "frontend", None)
    if options.teacher != NONE:
        kind = "renoise" if method.tunes else "ode"
        after = None if method.tunes else method.after
        model = teacher_of(spec, options.teacher, trained_by, after, kind)
        (frontend or Frontend()).check(model.frontend, recipe.data.data, options.teacher)
        source = read(model, options.teacher)
        _check_scalings(recipe, source)
    elif method.scratch:
        sizes = {f.name: getattr(recipe.network, f.name) for f in fields(recipe.network)}
        kind, augments = sizes.pop("network"), recipe.augment.augment > 0
        net = fresh_network(kind, sizes, spec, augment=augments, seed=recipe.train.seed)
        scalings = EDM(sigma_data=_sigma_data(recipe, data), time_scale=options.log_time_scale)
        source = Denoiser(net, scalings)
    else:
        raise UsageError(
            f"{recipe.name} needs a teacher; train one with: fewstep train {trained_by}"
        )
    if recipe.augment.augment and "augment" not in source.optional_keys:
        raise UsageError("the teacher's network reads no augmentation labels; take --augment 0")
    taught = model is not None and method.distils
    if options.guidance != 1.0 and not taught:
        raise UsageError(
            f"{recipe.name} distils no teacher that could be guided; leave out --guidance"
        )
    guidable = model is None or method.after or model.contract.sampling.guidance
    nulls = spec.nulls
    drops = guidable and nulls and options.condition_drop
    start = Start(
        recipe=recipe,
        data=data,
        source=source,
        model=model,
        teacher=guided(model, source, options.guidance) if model and taught else None,
        drop=ConditionDrop(options.condition_drop, nulls) if drops else None,
        unseen=unseen,
        first=None if options.init == NONE else load(options.init, device="cpu"),
    )
    return start.with_pairs(str(recipe.arguments().get("pairs", "")))


def _sigma_data(recipe: Recipe[MethodOptions], data: Dataset) -> float:
    """The standard deviation of the data: the option's, unless only a measurement says more."""
    given, measured = recipe.start.sigma_data, getattr(data, "sigma_data", None)
    usual = given == recipe.place.start.sigma_data
    return round(measured, 4) if usual and measured is not None else given


def _check_scalings(recipe: Recipe[MethodOptions], source: Denoiser) -> None:
    """Refuse options that an EDM teacher's own values would silently replace."""
    scalings, place = source.preconditioning, recipe.place.start
    if not isinstance(scalings, EDM):
        return
    for option, own in (
        ("sigma_data", scalings.sigma_data),
        ("log_time_scale", scalings.time_scale),
    ):
        given = getattr(recipe.start, option)
        if given not in {getattr(place, option), own}:
            raise UsageError(
                f"--{option.replace('_', '-')} {given:g} contradicts the teacher, whose network "
                f"was made for {own:g}; leave it out"
            )


def averages(recipe: Recipe[MethodOptions]) -> dict[str, Rule]:
    """The averaging rules by name."""
    options, batch = recipe.averages, recipe.train.batch * recipe.train.accumulation
    rule = warmed if options.warm_averages else constant
    rules = {f"ema-{rate:g}": rule(rate) for rate in options.rates}
    if options.half_life:
        rules[f"half-life-{options.half_life:g}"] = half_life(options.half_life, batch)
    return rules | {f"power-{std:g}": PowerFunction(std) for std in options.average_widths}
