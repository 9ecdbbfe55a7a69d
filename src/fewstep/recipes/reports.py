"""What a run on the digits ends with: one table, one picture, metrics.json.

Each function takes the time at which the command began and returns a report.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.evaluation import digits_protocol, table, write_metrics
from fewstep.model import Model
from fewstep.pictures import rows
from fewstep.recipes.parts import Report

TEACHER_STEPS = 18
"""Heun steps of a diffusion model: 35 network calls."""


def watched(steps: int) -> Callable[[Model], dict[str, float]]:
    """Distances of one draw of samples of so many steps, for the log of a training."""

    def watch(model: Model) -> dict[str, float]:
        protocol = replace(digits_protocol(), draws=1)
        asked = steps if model.serves(steps) else served(model)[0]
        found = protocol.judge(model, asked)
        return {f"{name}/{model.calls(asked)}": found[name] for name in ("fd", "swd", "nn")}

    return watch


def served(model: Model, wanted: Sequence[int] = (1, 2)) -> list[int]:
    """The numbers of steps of those wanted that the model serves, else the fewest that it does."""
    return [n for n in wanted if model.serves(n)] or [len(model.times())]


def judged_teacher(began: float) -> Report:
    """A diffusion model's table."""

    def report(folder: Path, model: Model) -> None:
        protocol = digits_protocol()
        calls = model.calls(TEACHER_STEPS)
        metrics: dict[str, Any] = {
            "teacher": {str(calls): protocol.judge(model, TEACHER_STEPS)},
            "undistilled": {"1": protocol.judge(model, 1)},
            "floor": protocol.floor(),
        }
        parts = [(f"teacher, {calls} calls", model.sample(20, steps=TEACHER_STEPS, seed=0))]
        _finish(folder, metrics, parts, began)

    return report


def judged_student(began: float) -> Report:
    """A few-step model's table."""

    def report(folder: Path, model: Model) -> None:
        protocol = digits_protocol()
        metrics: dict[str, Any] = {
            "student": {str(n): protocol.judge(model, n) for n in served(model)},
            "floor": protocol.floor(),
        }
        parts = [
            (f"student, {n} call(s)", model.sample(20, steps=n, seed=0)) for n in served(model)
        ]
        _finish(folder, metrics, parts, began)

    return report


def compared_with_teacher(began: float, teacher: Model) -> Report:
    """The main table: teacher, student, the undistilled teacher in one call, the floor."""

    def report(folder: Path, model: Model) -> None:
        teacher.to(model.device)
        protocol = digits_protocol()
        calls = teacher.calls(TEACHER_STEPS)
        metrics: dict[str, Any] = {
            "teacher": {str(calls): protocol.judge(teacher, TEACHER_STEPS)},
            "student": {str(n): protocol.judge(model, n) for n in served(model)},
            "undistilled": {"1": protocol.judge(teacher, 1)},
            "floor": protocol.floor(),
        }
        parts = [
            (f"teacher, {calls} network calls", teacher.sample(20, steps=TEACHER_STEPS, seed=0)),
            *(
                (f"student, {n} network call{'s' * (n > 1)}", model.sample(20, steps=n, seed=0))
                for n in served(model)
            ),
            ("undistilled teacher, 1 network call", teacher.sample(20, steps=1, seed=0)),
        ]
        _finish(folder, metrics, parts, began)

    return report


def _finish(
    folder: Path, metrics: dict[str, Any], parts: Sequence[tuple[str, Tensor]], began: float
) -> None:
    lines = [
        (f"{who}, {calls} call{'s' * (calls != '1')}", row)
        for who in ("teacher", "student", "undistilled")
        for calls, row in metrics.get(who, {}).items()
    ]
    slowest = min(row["images_per_second"] for _, row in lines)
    print(table([*lines, ("floor", metrics["floor"])], slowest))
    rows(parts, folder / "samples" / "comparison.png")
    metrics["seconds"] = time.perf_counter() - began
    write_metrics(folder / "metrics.json", metrics)
    print(f"wrote {folder}/metrics.json, {folder}/samples/comparison.png, {folder}/model")
