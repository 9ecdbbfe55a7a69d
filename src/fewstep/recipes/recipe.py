"""A recipe: a data set, a method with its options and the trainer's settings, as a frozen value."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Generic, TypeVar

from tyro.conf import Suppress, arg

from fewstep import hub
from fewstep.bundled import check_model
from fewstep.errors import UsageError, nearest
from fewstep.recipes.method import Method, MethodOptions
from fewstep.recipes.options import (
    NONE,
    AugmentOptions,
    AverageOptions,
    CardOptions,
    DataOptions,
    NetworkOptions,
    StartOptions,
)
from fewstep.recipes.places import NAMES, Place
from fewstep.training.config import TrainConfig

if TYPE_CHECKING:
    from fewstep.training.config import Run

Options = TypeVar("Options", bound=MethodOptions, covariant=True)
Value = TypeVar("Value")

GROUPS = ("options", "data", "start", "network", "averages", "augment", "card")
"""The fields of a recipe whose own fields are the options, in the order of the help."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[Options]):
    """A run as a value; :func:`recipe` makes the default one of each name.

    Args:
        name: of a place and a method, e.g. ``digits-cd``.
        options: the method's own.
        data: what the model learns from.
        start: the teacher and the student's first weights.
        network: of new weights.
        averages: of the student's weights.
        augment: augmentation of images.
        card: what the model's card says beside the training.
        train: the trainer's settings.
    """

    name: Suppress[str]
    options: Annotated[Options, arg(name="")]
    data: Annotated[DataOptions, arg(name="")]
    start: Annotated[StartOptions, arg(name="")]
    network: Annotated[NetworkOptions, arg(name="")]
    averages: Annotated[AverageOptions, arg(name="")]
    augment: Annotated[AugmentOptions, arg(name="")]
    card: Annotated[CardOptions, arg(name="")]
    train: TrainConfig

    @property
    def place(self) -> Place:
        """Where it runs."""
        return NAMES[self.name][0]

    @property
    def method(self) -> Method:
        """The method."""
        return NAMES[self.name][1]

    @property
    def cost(self) -> str:
        """What a run costs, for the table of recipes."""
        millions = self.train.steps * self.train.batch * self.train.accumulation / 1e6
        size = f"{millions / 1000:.1f} G" if millions >= 1000 else f"{millions:.0f} M"
        own = self.place.setting(self.method).cost
        return own or self.place.cost or (f"{size} images" if millions >= 1 else "")

    def arguments(self) -> dict[str, object]:
        """All options by name, as JSON values; the trainer's settings are apart."""
        groups = [dataclasses.asdict(getattr(self, group)) for group in GROUPS]
        flat = {name: value for group in groups for name, value in group.items()}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in flat.items()}

    def change(self, **options: object) -> Recipe[Options]:
        """The recipe with other values of some options.

        Args:
            options: by name, of the recipe or of the trainer: ``steps=500``. Where a method has an
                option of the same name, ``train={"steps": 500}`` is the trainer's; ``train`` may
                also be a :class:`TrainConfig`. A string is read as the command line would read it.

        Raises:
            UsageError: there is no such option, or the value is none of its values.
        """
        train = options.pop("train", {})
        home = {f.name: group for group in GROUPS for f in fields(getattr(self, group))}
        known = {f.name for f in fields(TrainConfig)} - {*home}
        also = {name: options.pop(name) for name in [*options] if name in known}
        if isinstance(train, TrainConfig):
            settings = train
        elif isinstance(train, Mapping):
            settings = _typed(self.train, train, f"{self.name}: train.")
        else:
            raise UsageError(
                f"{self.name}: train takes a TrainConfig or some of its settings by name, such as "
                f"train={{'steps': 500}}, got {train!r}"
            )
        settings = _typed(settings, also, f"{self.name}: train.")
        for name in options:
            if name not in home:
                raise UsageError(
                    f"{self.name} has no option {name}; {nearest(name, {*home, *known})}"
                )
        for name in ("data", "held_out"):
            _check_named(f"{self.name}: {name}", options.get(name))
        first = self
        if options.get("network", self.network.network) != self.network.network:
            # Sizes of one family are none of another's.
            first = replace(self, network=NetworkOptions())
        changed = {
            group: _typed(getattr(first, group), own, f"{self.name}: --")
            for group in GROUPS
            if (own := {k: v for k, v in options.items() if home[k] == group})
        }
        return replace(self, train=settings, **changed)

    def check(self) -> None:
        """Refuse what :meth:`check_options` does, and a teacher that does not exist.

        This imports no torch.

        Raises:
            UsageError: neither a folder nor a bundled model has its name, or the name is none of
                the Hub's, or the options contradict each other.
        """
        self.check_options()
        if self.start.init != NONE:
            check_model(self.start.init, self.name, "init")
        if self.start.teacher != NONE:
            check_model(self.start.teacher, self.place.trained_by(self.method))

    def check_options(self) -> None:
        """Refuse options that contradict each other whatever the data and the teacher are.

        This imports no torch.

        Raises:
            UsageError: an option describes another network than the teacher's, or there are to be
                adapters without a teacher, or a number is not finite.
        """
        for name, value in self.arguments().items():
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, float) and not math.isfinite(number):
                    option = name.replace("_", "-")
                    raise UsageError(f"--{option} must be finite, got {value}")
        if self.start.init != NONE and self.start.lora is not None:
            raise UsageError(
                "--lora trains adapters on the teacher's weights, and --init begins with others; "
                "leave one of them out"
            )
        if self.start.teacher == NONE:
            if self.start.lora is not None:
                raise UsageError(
                    "--lora trains adapters on a teacher's weights, and this run has none; give "
                    "--teacher, or leave --lora out"
                )
            return
        usual = recipe(self.name).network
        for name in (f.name for f in fields(usual)):
            if getattr(self.network, name) != getattr(usual, name):
                raise UsageError(
                    f"--{name.replace('_', '-')} describes a new network, but the student starts "
                    f"with the network of the teacher {self.start.teacher}; leave it out, or give "
                    f"--teacher {NONE}"
                )

    def build(self) -> Run:
        """The run: data, networks, objective, averages and report.

        Raises:
            UsageError: the options contradict each other, the data or the teacher.
        """
        self.check()
        from fewstep.recipes.start import begin

        pinned, commits = self._pinned()
        complete = replace(pinned, train=self.options.trainer(self.train))
        start = begin(complete)
        run = start.run(complete, complete.options.objective(start))
        return replace(run, commits=commits)

    def _pinned(self) -> tuple[Recipe[Options], dict[str, str]]:
        """The same with its teacher's commit, if the teacher is on the Hub; and this commit."""
        teacher = self.start.teacher
        if not hub.names(teacher):
            return self, {}
        name = hub.pinned(teacher)
        commits = {} if name == teacher else {teacher: str(hub.parse(name).revision)}
        return replace(self, start=replace(self.start, teacher=name)), commits


def recipe(name: str, **options: object) -> Recipe[MethodOptions]:
    """The recipe of that name, with other values of some options: see :meth:`Recipe.change`.

    Raises:
        UsageError: there is none of that name, or no such option or value.
    """
    if not isinstance(name, str) or name not in NAMES:
        raise UsageError(
            f"unknown recipe {name!r}; {nearest(str(name), NAMES)}; fewstep recipes lists them"
        )
    place, method = NAMES[name]
    setting, kind = place.setting(method), Recipe[method.options]
    first = kind(
        name=name,
        data=place.data,
        network=place.network,
        start=replace(place.start, teacher=place.teacher(method)),
        averages=place.averages,
        augment=place.augment,
        card=CardOptions(),
        options=method.options(),
        train=place.train,
    )
    return first.change(**{**setting.options, "train": setting.train}).change(**options)


def _check_named(what: str, value: object) -> None:
    """Refuse a data set in memory, which run.json could not record.

    Raises:
        UsageError: it is one.
    """
    if isinstance(value, str | os.PathLike) or not hasattr(value, "__len__"):
        return
    raise UsageError(
        f"{what} is a name or a path, which the run records, got a data set in memory "
        f"({type(value).__name__}); write its samples with fewstep.data.write_arrays(FILE, x, "
        "label) and give FILE"
    )


def _typed(group: Value, values: Mapping[str, object], where: str) -> Value:
    """A group of options with other values, each converted to its type.

    Raises:
        UsageError: a value that cannot be converted; ``where`` stands before its name.
    """
    from pydantic import TypeAdapter, ValidationError

    known = {f.name: getattr(group, f.name) for f in fields(group)}  # pyright: ignore[reportArgumentType]
    for name in values:
        if name not in known:
            raise UsageError(f"{where}{name} is no option; {nearest(name, known)}")
    given = {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in values.items()}
    try:
        return TypeAdapter(type(group)).validate_python({**known, **given})
    except ValidationError as error:
        first = error.errors()[0]
        name, value = str(first["loc"][0]), first["input"]
        option = name.replace("_", "-")
        raise UsageError(f"{where}{option} cannot be {value!r}: {first['msg']}") from error
