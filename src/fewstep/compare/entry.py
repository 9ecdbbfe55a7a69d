"""One method with one seed: trained on its budget, judged, and what it cost."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from fewstep.compare.measures import Judge
from fewstep.compare.plan import Budget, Entrant, Plan
from fewstep.evaluation.pictures import picture
from fewstep.model import Model
from fewstep.recipes import METHODS, Run
from fewstep.system.devices import usable_device
from fewstep.system.files import write_json
from fewstep.training.announce import endless_warmup
from fewstep.training.described import arguments
from fewstep.training.folder import RunFolder
from fewstep.training.precision import decided
from fewstep.training.train import train
from fewstep.training.trainer import Trainer

CALIBRATION = 3.0
"""Seconds of steps by which a budget of time becomes a number of steps."""

SPIKE = 10.0
"""A gradient norm so many times the median of the 100 before it counts as a spike."""

REPORTED = ("steps", "batch", "lr", "schedule", "warmup", "optimizer", "precision")
"""The trainer's settings that the report shows."""


def paired(guidance: float) -> str:
    """The folder, in a study's, of the pairs of a teacher with this guidance."""
    return "pairs" if guidance == 1 else f"pairs-{guidance:g}"


@dataclass(frozen=True)
class Entry:
    """One method with one seed.

    Args:
        plan: of the comparison.
        entrant: the method and its options.
        seed: of the training.
        teacher: the model that all start from.
        protocol: that all are judged by.
        folder: of this entry.
    """

    plan: Plan
    entrant: Entrant
    seed: int
    teacher: str
    protocol: Judge
    folder: Path

    def run(self) -> dict[str, Any]:
        """Train and judge; returns what the report reads."""
        after, budget = METHODS[self.entrant.method].after, self.plan.budget
        start, legs = self.teacher, []
        if after is not None:
            legs.append(self._trained(after, start, budget.share(0.5), self.folder / "first"))
            start, budget = str(self.folder / "first"), budget.share(0.5)
        legs.append(self._trained(self.entrant.method, start, budget, self.folder / "run"))
        model = legs[-1].pop("model")
        distances: dict[str, dict[str, float | None]] = {}
        for steps in self.plan.steps:
            row = self.protocol.judge(model, steps) if model.serves(steps) else {}
            for key in self.plan.measures.kept:
                distances.setdefault(key, {})[str(steps)] = row.get(key)
            if row:
                x = model.sample(32, steps=steps, seed=0)
                picture(x, self.folder / f"samples-{steps}.png", 8)
        sums = {
            k: sum(leg[k] for leg in legs) for k in ("seconds", "samples", "nonfinite", "spikes")
        }
        before = sum(leg["seconds"] for leg in legs[:-1])
        curve = [[before + at, fd] for at, fd in legs[-1]["curve"]]
        notes = [*dict.fromkeys(note for leg in legs for note in leg["notes"])]
        settings = [leg["settings"] for leg in legs]
        return {**distances, **sums, "curve": curve, "notes": notes, "settings": settings}

    def _trained(self, name: str, teacher: str, budget: Budget, folder: Path) -> dict[str, Any]:
        """A leg: its model, cost and log."""
        steps = self._steps(name, teacher, budget)
        run = self.built(name, teacher, steps)
        batch = run.config.batch * run.config.accumulation
        notes = endless_warmup(run.config)
        _say(f"{name}: {counted(steps, batch, budget)}", *notes)
        quick, main = self.protocol.quick(), self.plan.measures.main

        def watch(model: Model) -> Mapping[str, float]:
            return {main: quick.judge(model, len(model.times()))[main]}

        run = replace(run, finish=None, watch=watch)
        with _said_in(folder.with_suffix(".txt")):
            model = train(run, folder)
        rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        rate = median(row["steps_per_second"] for row in rows if "steps_per_second" in row)
        settings = {name: getattr(run.config, name) for name in REPORTED}
        if (record := RunFolder(folder).started()) is not None:  # with the measured precision
            settings["precision"] = record["run"]["train"]["precision"]
        return {
            "model": model,
            "seconds": steps / rate,
            "samples": steps * batch,
            "notes": notes,
            "nonfinite": max(row.get("skipped", 0.0) for row in rows),
            "spikes": _spikes(rows),
            "curve": [
                [row["step"] / rate, row[f"eval/{main}"]] for row in rows if f"eval/{main}" in row
            ],
            "settings": {"recipe": run.recipe, **arguments(run, model.denoiser), "train": settings},
        }

    def built(self, name: str, teacher: str, steps: int) -> Run:
        """The run of a method from a teacher."""
        guidance = self.entrant.recipe(self.plan.place).start.guidance
        return self.plan.recipe(
            self.entrant,
            name,
            teacher,
            seed=self.seed,
            steps=steps,
            # As the teacher, whatever the data has.
            labels=self.protocol.labelled,
            pairs=str(self.folder.parents[1] / paired(guidance)),
        ).build()

    def _steps(self, name: str, teacher: str, budget: Budget) -> int:
        """Steps of a budget; what was measured once is kept, so that all seeds are alike."""
        if budget.kind == "samples":
            settings = self.built(name, teacher, 1000).config
            return max(1, round(budget.amount / (settings.batch * settings.accumulation)))
        kept = self.folder.parent / f"{name}.rate.json"
        if not kept.exists():
            run = self.built(name, teacher, 1000)
            device = usable_device(run.config.device)
            run, _ = decided(run, device)
            trainer = Trainer(run.objective, run.data, run.config, run.averages, device)
            write_json(kept, {"steps_per_second": _rate(trainer.advance)})
        return max(1, round(json.loads(kept.read_text())["steps_per_second"] * budget.amount))


def counted(steps: int, batch: int, budget: Budget) -> str:
    """What a budget comes to, in words: it is rounded to whole updates."""
    updates = f"{steps:,} update{'s' * (steps != 1)} of {batch:,} samples"
    return f"{updates}: {steps * batch:,} samples of a budget of {budget.title}"


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


def _say(*lines: str) -> None:
    for line in lines:
        print(f"    {line}", file=sys.stderr, flush=True)


@contextmanager
def _said_in(file: Path) -> Iterator[None]:
    """A training's own lines go to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream, redirect_stderr(stream):
        yield
