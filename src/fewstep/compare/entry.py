"""One method with one seed: trained on its budget, judged, and what it cost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, get_args

from fewstep.devices import usable_device
from fewstep.errors import UsageError, nearest
from fewstep.evaluation import Protocol
from fewstep.files import write_json
from fewstep.model import Model
from fewstep.pictures import picture
from fewstep.recipes.family import recipe_of
from fewstep.recipes.methods import METHODS
from fewstep.recipes.places import Place
from fewstep.training.config import Run
from fewstep.training.train import train
from fewstep.training.trainer import Trainer

if TYPE_CHECKING:
    from fewstep.compare.study import Budget, Study

CALIBRATION = 3.0
"""Seconds of steps by which a budget of time becomes a number of steps."""

CURVE = 6
"""Points of the distance against training time."""

SPIKE = 10.0
"""A gradient norm so many times the median of the 100 before it."""


@dataclass(frozen=True)
class Entrant:
    """A method with options that differ from its recipe's: ``dmd2+adversarial=0``.

    Args:
        method: of ``METHODS``.
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
        if method not in METHODS:
            raise UsageError(f"unknown method {method!r}; {nearest(method, METHODS)}")
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

    def values(self, place: Place) -> dict[str, Any]:
        """The options as the recipe takes them.

        Raises:
            UsageError: it has none of that name, or of that type.
        """
        known = self.parameters(place)
        return {k: _value(self.method, k, v, known) for k, v in self.options.items()}

    def guidance(self, place: Place) -> float:
        """Of its teacher; 1 is none."""
        return self.values(place).get("guidance", 1.0)

    def learns_from_pairs(self, place: Place) -> bool:
        """Whether it needs some of the teacher."""
        known = self.parameters(place)
        needed = known["regression"].default if "regression" in known else True
        return "pairs" in known and bool(self.values(place).get("regression", needed))

    def parameters(self, place: Place) -> Mapping[str, Parameter]:
        """Of the recipe."""
        return signature(recipe_of(place, self.method)).parameters


def paired(guidance: float) -> str:
    """The folder, in a study's, of the pairs of a teacher with this guidance."""
    return "pairs" if guidance == 1 else f"pairs-{guidance:g}"


def _value(method: str, name: str, text: str, known: Mapping[str, Parameter]) -> Any:
    own = [
        k for k in known if k not in {"train", "teacher", "data", "resolution", "labels", "pairs"}
    ]
    if name not in own:
        raise UsageError(f"{method} has no option {name!r}; {nearest(name, own)}")
    kind = known[name].annotation
    if kind is bool and text in {"true", "false"}:
        return text == "true"
    if get_args(kind) and text in get_args(kind):
        return text
    for one in get_args(kind) or (kind,):
        with suppress(ValueError):
            if one in {int, float, str}:
                return one(text)
    kinds = [getattr(one, "__name__", repr(one)) for one in get_args(kind) or (kind,)]
    raise UsageError(f"{method}: {name} cannot be {text!r}; it is {' or '.join(kinds)}")


@dataclass(frozen=True)
class Entry:
    """One method with one seed."""

    study: Study
    entrant: Entrant
    seed: int
    teacher: str
    protocol: Protocol
    folder: Path

    def run(self) -> dict[str, Any]:
        """Train, judge."""
        after, budget = METHODS[self.entrant.method].after, self.study.budget
        start, legs = self.teacher, []
        if after is not None:
            legs.append(self._trained(after, start, budget.share(0.5), self.folder / "first"))
            start, budget = str(self.folder / "first"), budget.share(0.5)
        legs.append(self._trained(self.entrant.method, start, budget, self.folder / "run"))
        model = legs[-1].pop("model")
        found: dict[str, dict[str, float | None]] = {}
        for steps in self.study.steps:
            row = self.protocol.judge(model, steps) if model.serves(steps) else {}
            for key in ("fd", "swd", "nn", "images_per_second"):
                found.setdefault(key, {})[str(steps)] = row.get(key)
            if row:
                x = model.sample(32, steps=steps, seed=0)
                picture(x, self.folder / f"samples-{steps}.png", 8)
        sums = {
            k: sum(leg[k] for leg in legs) for k in ("seconds", "samples", "nonfinite", "spikes")
        }
        before = sum(leg["seconds"] for leg in legs[:-1])
        curve = [[before + at, fd] for at, fd in legs[-1]["curve"]]
        return {**found, **sums, "curve": curve, "settings": [leg["settings"] for leg in legs]}

    def _trained(self, name: str, teacher: str, budget: Budget, folder: Path) -> dict[str, Any]:
        """A leg: its model, cost and log."""
        steps = self._steps(name, teacher, budget, folder)
        run = self._built(name, teacher, steps)
        quick = replace(self.protocol, draws=1, metrics=("fd",))

        def watch(model: Model) -> Mapping[str, float]:
            return {"fd": quick.judge(model, len(model.times()))["fd"]}

        run = replace(run, finish=None, watch=watch)
        with _told_in(folder.with_suffix(".txt")):
            model = train(run, folder)
        rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        rate = median(row["steps_per_second"] for row in rows if "steps_per_second" in row)
        samples = steps * run.config.batch * run.config.accumulation
        return {
            "model": model,
            "seconds": steps / rate,
            "samples": samples,
            "nonfinite": max(row.get("skipped", 0.0) for row in rows),
            "spikes": _spikes(rows),
            "curve": [[row["step"] / rate, row["eval/fd"]] for row in rows if "eval/fd" in row],
            "settings": {
                "recipe": run.recipe,
                **run.arguments,
                "train": {
                    k: getattr(run.config, k)
                    for k in (
                        "steps",
                        "batch",
                        "lr",
                        "schedule",
                        "warmup",
                        "optimizer",
                        "precision",
                    )
                },
            },
        }

    def _built(self, name: str, teacher: str, steps: int) -> Run:
        place = self.study.place
        build = recipe_of(place, name)
        known = {
            "teacher": teacher,
            "data": self.study.data,
            "resolution": self.study.resolution,
            # As the teacher, whatever the data has.
            "labels": "label" in self.protocol.train.cond,
            "pairs": "",
        }
        if self.entrant.learns_from_pairs(place):
            folder = paired(self.entrant.guidance(place))
            known["pairs"] = str(self.folder.parents[1] / folder)
        own = {k: v for k, v in known.items() if k in signature(build).parameters}
        if name == self.entrant.method:
            own |= self.entrant.values(place)
        settings = replace(
            place.trainer(name),
            steps=steps,
            seed=self.seed,
            sample_every=0,
            log_every=max(1, steps // 200),
            evaluate_every=max(1, steps // CURVE),
            save_every=max(1, steps // 4),
            keep=1,
        )
        return build(**own, train=settings)

    def _steps(self, name: str, teacher: str, budget: Budget, folder: Path) -> int:
        """Steps of a budget; what was measured once is kept, so that all seeds are alike."""
        batch = self.study.place.trainer(name)
        if budget.kind == "samples":
            return max(1, round(budget.amount / (batch.batch * batch.accumulation)))
        kept = self.folder.parent / f"{name}.rate.json"
        if not kept.exists():
            run = self._built(name, teacher, 1000)
            device = usable_device(run.config.device)
            trainer = Trainer(run.objective, run.data, run.config, run.averages, device)
            write_json(kept, {"steps_per_second": _rate(trainer.advance)})
        return max(1, round(json.loads(kept.read_text())["steps_per_second"] * budget.amount))


def _rate(advance: Callable[[], Any]) -> float:
    for _ in range(3):
        advance()
    steps, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < CALIBRATION or steps < 5:
        advance()
        steps += 1
    return steps / passed


def _spikes(rows: Sequence[Mapping[str, float]]) -> int:
    """Logged gradient norms far above those before them."""
    norms = [row["grad_norm/student"] for row in rows if "grad_norm/student" in row]
    return sum(
        norm > SPIKE * median(norms[max(0, i - 100) : i]) for i, norm in enumerate(norms) if i >= 10
    )


@contextmanager
def _told_in(file: Path) -> Iterator[None]:
    """A training's own lines go to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream, redirect_stderr(stream):
        yield
