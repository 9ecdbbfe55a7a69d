"""What a method may use of its budget, and where the points of its curve lie."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fewstep.compare.entry import Entry
from fewstep.compare.plan import Budget, Entrant, Plan
from fewstep.evaluation import Protocol
from fewstep.training.config import TrainConfig


@dataclass(frozen=True)
class Made:
    """A run that is never trained."""

    config: TrainConfig
    recipe: str = "made"
    arguments: Any = None
    network_arguments: Any = ()
    finish: Any = None
    watch: Any = None


SETTINGS: dict[str, Any] = {}
"""Of the trainer, beside those that the fixture gives."""

SPEEDS = {"first": 4.0, "run": 8.0}
"""Steps per second of the legs, by their folders."""


@pytest.fixture
def entry(tmp_path, monkeypatch) -> Entry:
    """TCM's, whose first leg is ECT; 4 microbatches of 8."""

    def recipe(self: Plan, *given: Any, steps: int, **more: Any) -> SimpleNamespace:
        config = TrainConfig(steps=steps, batch=8, accumulation=4, **SETTINGS)
        return SimpleNamespace(build=lambda: Made(config, arguments={}))

    def train(run: Made, folder: Path) -> SimpleNamespace:
        folder.mkdir(parents=True)
        speed, steps = SPEEDS[folder.name], run.config.steps
        rows = [
            {"step": step, "steps_per_second": speed, "eval/fd": 1 / step}
            for step in (steps // 2, steps)
        ]
        (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return SimpleNamespace(serves=lambda steps: False, denoiser=None)

    monkeypatch.setattr(Plan, "recipe", recipe)
    monkeypatch.setattr("fewstep.compare.entry.train", train)
    plan = Plan(data="two-modes", methods=("tcm",), budget=Budget("samples", 6400))
    protocol = Protocol(SimpleNamespace(cond={}), None, None)
    return Entry(plan, Entrant.of("tcm"), 1, "teacher", protocol, tmp_path / "tcm" / "seed-1")


def test_a_sample_of_every_microbatch_counts(entry):
    # Half of 6,400 samples for each leg, at 32 an update.
    found = entry.run()
    assert found["samples"] == 6400
    legs = [row["train"]["steps"] for row in found["settings"]]
    assert legs == [100, 100]


def test_a_training_says_what_its_budget_comes_to(entry, capsys):
    plan = replace(entry.plan, budget=Budget("samples", 160))
    found = replace(entry, plan=plan).run()
    # Half of 160 samples for each leg, 32 an update: 2.5 updates are 2.
    assert found["samples"] == 128
    said = "2 updates of 32 samples: 64 samples of a budget of 80 samples"
    assert [line.strip() for line in capsys.readouterr().err.splitlines()] == [
        f"ect: {said}",
        f"tcm: {said}",
    ]


def test_a_warm_up_that_does_not_end_is_said_and_kept(entry, capsys, monkeypatch):
    monkeypatch.setitem(SETTINGS, "warmup", 500)
    found = entry.run()
    (note,) = found["notes"]
    assert "the warm-up of 500 steps does not end within the run's 100" in note
    assert capsys.readouterr().err.count(note) == 2


def test_a_curve_begins_when_the_first_leg_began(entry):
    # 100 steps at 4 a second, then 50 and 100 at 8 a second.
    found = entry.run()
    assert found["seconds"] == pytest.approx(100 / 4 + 100 / 8)
    assert found["curve"] == [[25 + 50 / 8, 1 / 50], [25 + 100 / 8, 1 / 100]]
