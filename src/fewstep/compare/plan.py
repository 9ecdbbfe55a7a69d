"""A comparison as a value: data, methods with options, budget, seeds; and the recipes it trains."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from pathlib import Path

from fewstep.compare.measures import Measures, measures_of
from fewstep.data.catalogue import OWN, kind_of
from fewstep.errors import UsageError, nearest
from fewstep.recipes import METHODS, PLACES, STUDENTS, Recipe, recipe
from fewstep.recipes.method import MethodOptions
from fewstep.recipes.places import Place

CURVE = 6
"""Points of the distance against training time."""

SHARED = ("data", "resolution", "labels", "held_out", "background", "teacher", "pairs")
"""Options that the comparison decides for all methods."""


@dataclass(frozen=True)
class Budget:
    """What a method may use: ``seconds`` of training, or ``samples`` seen.

    Args:
        kind: which of the two.
        amount: how many.
    """

    kind: str
    amount: float

    @classmethod
    def of(cls, text: str) -> Budget:
        """From ``60s`` or ``20000samples``."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|samples)", text.strip())
        if match is None or float(match[1]) <= 0:
            raise UsageError(f"--budget must look like 60s or 20000samples, got {text!r}")
        return cls({"s": "seconds"}.get(match[2], match[2]), float(match[1]))

    def share(self, part: float) -> Budget:
        """A part of it."""
        return replace(self, amount=self.amount * part)

    @property
    def text(self) -> str:
        """The text that :meth:`of` reads, e.g. ``60s``."""
        unit = "s" if self.kind == "seconds" else self.kind
        return f"{Decimal(str(self.amount)).normalize():f}{unit}"

    @property
    def title(self) -> str:
        """The budget in a title, e.g. ``60 seconds`` or ``20,000 samples``."""
        return f"{Decimal(str(self.amount)).normalize():,f} {self.kind}"


@dataclass(frozen=True)
class Entrant:
    """A method with options that differ from its recipe's: ``dmd2+adversarial=0``.

    Args:
        method: its name.
        options: by name, as they were written.
    """

    method: str
    options: Mapping[str, str]

    @classmethod
    def of(cls, text: str) -> Entrant:
        """From the command line's word.

        Raises:
            UsageError: no such method, or not ``name=value``.
        """
        method, *options = text.split("+")
        if method not in STUDENTS:
            raise UsageError(f"unknown method {method!r}; {nearest(method, STUDENTS)}")
        pairs = [option.partition("=") for option in options]
        wrong = [name for name, equals, value in pairs if not (name and equals and value)]
        if wrong:
            raise UsageError(
                f"a method's options are written METHOD+NAME=VALUE, got {text!r}; e.g. "
                "dmd2+adversarial=0"
            )
        return cls(method, {name: value for name, _, value in pairs})

    @property
    def title(self) -> str:
        """In tables."""
        return ", ".join(
            [METHODS[self.method].title, *(f"{k} {v}" for k, v in self.options.items())]
        )

    def recipe(self, place: Place) -> Recipe[MethodOptions]:
        """The method's recipe at a place, with these options.

        Raises:
            UsageError: it has no recipe there, no option of that name, or the value is none of its
                values.
        """
        if not place.has(METHODS[self.method]):
            able = ",".join(name for name in STUDENTS if place.has(METHODS[name]))
            raise UsageError(f"{self.method} has no recipe on {place.title}; take --methods {able}")
        own = recipe(place.named(self.method))
        known = [name for name in own.arguments() if name not in SHARED]
        for name in self.options:
            if name not in known:
                raise UsageError(f"{self.method} has no option {name!r}; {nearest(name, known)}")
        return own.change(**self.options)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A comparison.

    Args:
        data: a name of the catalogue, or a folder or zip of images.
        methods: names, each perhaps with options, see :class:`Entrant`.
        budget: of each method and seed.
        seeds: how many trainings of each method.
        first_seed: of the first one; settings are chosen on others than are reported.
        steps: numbers of sampling steps that are judged.
        teacher: a model or run folder; the place's own if it has one.
        resolution: of a folder of images, in pixels.
        held_out: what no model sees of data of one's own: a share of it in (0, 0.5], or the path of
            other such data.
        background: colour behind transparent pixels of images; white if not given.
        n: samples and held-out data compared, at most.
    """

    data: str
    methods: Sequence[str]
    budget: Budget
    seeds: int = 3
    first_seed: int = 1
    steps: Sequence[int] = (1, 2, 4)
    teacher: str | None = None
    resolution: int | None = None
    held_out: float | str | None = None
    background: str | None = None
    n: int = 2000

    def __post_init__(self) -> None:
        for entrant in self.entrants:
            entrant.recipe(self.place)
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise UsageError(f"--methods must name one or more methods once, got {self.methods}")
        if min(self.seeds, self.n - 1, *self.steps) < 1 or self.first_seed < 0:
            raise UsageError(
                "--seeds and --steps must be at least 1, -n at least 2 and --first-seed at least "
                f"0, got {self.seeds}, {self.steps}, {self.n}, {self.first_seed}"
            )

        if self.background is not None and kind_of(self.data) != OWN:
            raise UsageError(
                f"--background is for images of your own, which {self.data} is not; leave it out"
            )

    @property
    def entrants(self) -> list[Entrant]:
        """The methods with their options."""
        return [Entrant.of(text) for text in self.methods]

    @property
    def measures(self) -> Measures:
        """What its methods are compared by."""
        return measures_of(self.data)

    @property
    def place(self) -> Place:
        """Where its recipes run.

        Raises:
            UsageError: no recipes run on this data.
        """
        kind = kind_of(self.data)
        if kind not in PLACED:
            known = [name for name in PLACED if name != OWN]
            raise UsageError(f"--data {self.data} has no recipes to compare; take {known}")
        return PLACED[kind]

    def recipe(
        self,
        entrant: Entrant,
        method: str,
        teacher: str,
        *,
        seed: int,
        steps: int,
        labels: bool,
        pairs: str,
    ) -> Recipe[MethodOptions]:
        """What is trained.

        Args:
            entrant: the method with its options.
            method: the entrant's own, or the one whose model it starts from.
            teacher: the model that it starts from.
            seed: of the training.
            steps: updates in all.
            labels: condition on labels, as the teacher does.
            pairs: folder of the teacher's pairs, for methods that learn from them.
        """
        own = method == entrant.method
        base = entrant.recipe(self.place) if own else recipe(self.place.named(method))
        shared = {name: getattr(self, name) for name in ("data", "resolution", "held_out")}
        shared |= {"labels": labels, "background": self.background}
        if "pairs" in base.arguments():
            shared["pairs"] = pairs if base.options.needs_pairs() else ""
        settings = replace(
            base.train,
            steps=steps,
            seed=seed,
            sample_every=0,
            log_every=max(1, steps // 200),
            evaluate_every=max(1, steps // CURVE),
            save_every=max(1, steps // 4),
            keep=1,
        )
        return base.change(**shared, teacher=teacher, train=settings)

    def command(self, out: Path) -> str:
        """The command line that makes this comparison in the folder ``out``.

        It names every option that has a value, so that it means the same where defaults differ.
        """
        options: dict[str, object] = {
            "--data": self.data,
            "--resolution": self.resolution,
            "--held-out": self.held_out,
            "--background": self.background,
            "--teacher": self.teacher,
            "--methods": ",".join(self.methods),
            "--budget": self.budget.text,
            "--seeds": self.seeds,
            "--first-seed": self.first_seed,
            "--steps": ",".join(str(n) for n in self.steps),
            "-n": self.n,
            "--out": out,
        }
        words = [w for k, v in options.items() if v is not None for w in (k, str(v))]
        return shlex.join(["fewstep", "compare", *words])

    def summary(self) -> dict[str, object]:
        """The plan as JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        budget = {"kind": self.budget.kind, "amount": self.budget.amount}
        return {**values, "methods": [*self.methods], "steps": [*self.steps], "budget": budget}


PLACED: dict[str, Place] = {place.compares: place for place in PLACES if place.compares}
"""Where comparisons run, by the kind of data."""
