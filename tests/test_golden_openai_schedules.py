"""Schedules of grids and of target averaging of openai/consistency_models."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fewstep.objectives.consistency import Fixed, Progressive, Schedule
from fewstep.objectives.progressive import Halving
from fewstep.objectives.shared.copies import follow
from golden_sets import Case, check

Values = Iterator[tuple[str, Tensor]]


def schedule(case: Case) -> Schedule:
    if case["scale_mode"] == "fixed":
        assert case["target_ema_mode"] == "fixed"
        return Fixed(case["start_scales"], case["start_ema"])
    assert case["scale_mode"] == "progressive"
    return Progressive(
        case["start_scales"],
        case["end_scales"],
        case["total_steps"],
        case["start_ema"],
        adaptive=case["target_ema_mode"] == "adaptive",
    )


def scales(case: Case) -> Values:
    if case["scale_mode"] == "progdist":
        halving = Halving(case["start_scales"], case["distill_steps_per_iter"], last=2)
        steps = case.inputs["step"].tolist()
        yield "scales", torch.tensor([halving(step) for step in steps])
        return
    at = [schedule(case)(step) for step in case.inputs["step"].tolist()]
    yield "ema", torch.tensor([s.rate for s in at], dtype=torch.float64)
    yield "scales", torch.tensor([s.points for s in at])


def update_ema(case: Case) -> Values:
    target, source = (
        nn.ParameterList(torch.tensor(row, dtype=torch.float64) for row in case[name])
        for name in ("target_init", "source")
    )
    for _ in range(case["repeats"]):
        follow(target, source, case["rate"])
    yield "target", torch.stack([*target])


CALLS = {"create_ema_and_scales_fn": scales, "update_ema": update_ema}


def test_golden_openai_schedules(record_property) -> None:
    check("openai_schedules", CALLS, record_property)
