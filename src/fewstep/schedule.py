"""The times at which a model is called: what a contract lists, allows, or leaves to a rule."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral

import torch
from torch import Tensor

from fewstep.contract import Contract, Sampling
from fewstep.errors import UsageError
from fewstep.paths import Path, VarianceExploding
from fewstep.times import karras, shift, uniform

EDM_LEVELS = VarianceExploding()

ODE_STEPS = 18
"""The steps of a diffusion model's sample unless others are asked for."""

FEW = 8
"""More steps than so many are seldom meant where each adds noise again."""


def times(contract: Contract, path: Path, steps: int | None = None) -> list[float]:
    """The times of so many steps, descending, in the path's own unit.

    Args:
        contract: of the model.
        path: of its denoiser.
        steps: by default the contract's fewest, or 18 for an ODE.

    Raises:
        UsageError: the contract does not allow so many steps.
    """
    sampling = contract.sampling
    if steps is None:
        steps = ODE_STEPS if sampling.kind == "ode" else min(sampling.times, default=1)
    if not isinstance(steps, Integral):
        raise UsageError(f"steps must be a whole number, got {steps!r}")
    if steps < 1:
        raise UsageError(f"steps must be at least 1, got {steps}")
    if steps in sampling.times:
        return list(sampling.times[steps])
    if not sampling.any_times:
        raise UsageError(
            f"this {contract.method} model is made for {_counts(sampling)}, got {steps}; take "
            f"{'one of these' if len(sampling.times) > 1 else 'what it is made for'}"
        )
    rule = karras if sampling.grid == "karras" else uniform
    if sampling.kind == "ode":
        # The last call is at t_min, or a step before it where that is clean data already.
        end = torch.tensor([path.t_min], dtype=torch.float64)
        points = steps if float(path.coefficients(end).sigma) > 0 else steps + 1
        return _shifted(rule(points, path.t_min, sampling.start.t), contract)[:steps]
    if sampling.grid == "uniform":
        return _shifted(uniform(steps + 1, path.t_min, sampling.start.t), contract)[:steps]
    # In noise levels, on whichever path; from EDM's lowest where the path ends on clean data.
    ends = path.ratio(torch.tensor([path.t_min, sampling.start.t], dtype=torch.float64))
    low, high = ends.clamp(EDM_LEVELS.t_min, EDM_LEVELS.t_max).tolist()
    later = path.time(karras(steps + 1, low, high)[1:steps]).tolist()
    return [sampling.start.t, *later]


def _shifted(grid: Tensor, contract: Contract) -> list[float]:
    """A grid after the contract's shift, which leaves both of its ends where they are."""
    start, by = contract.sampling.start.t, contract.sampling.shift
    return (grid if by == 1 else start * shift(grid / start, by)).tolist()


def given_times(contract: Contract, given: Sequence[float]) -> list[float]:
    """Times that a caller gives, where the contract allows them.

    Raises:
        UsageError: they do not descend from the start, or the model is made for others.
    """
    sampling = contract.sampling
    grid = [float(t) for t in given]
    ordered = all(a > b for a, b in pairwise(grid))
    if not grid or not ordered or grid[0] != sampling.start.t or grid[-1] <= 0:
        raise UsageError(f"times must descend from {sampling.start.t} and stay above 0, got {grid}")
    if not sampling.any_times and tuple(grid) not in sampling.times.values():
        raise UsageError(
            f"this {contract.method} model is made for the times {in_order(sampling)}, got {grid}"
        )
    return grid


def _counts(sampling: Sampling) -> str:
    """The numbers of steps that a contract lists, in words: ``2 steps``, ``1, 2 or 4 steps``."""
    if not sampling.times:
        return "no number of steps"
    *first, last = map(str, sorted(sampling.times))
    before = f"{', '.join(first)} or " if first else ""
    return f"{before}{last} step{'s' * (last != '1')}"


def in_order(sampling: Sampling) -> str:
    """The times that a contract lists, in words: ``80 (1 step); 80, 0.8 (2 steps)``."""
    return "; ".join(
        f"{', '.join(f'{t:g}' for t in times)} ({steps} step{'s' * (steps != 1)})"
        for steps, times in sorted(sampling.times.items())
    )


def remark(contract: Contract, steps: int, gamma: float | None) -> str | None:
    """What to say of more steps than a model that adds noise between its calls is for.

    Args:
        contract: of the model.
        steps: that are asked for.
        gamma: the share of noise, of models that have one.
    """
    sampling = contract.sampling
    if steps <= FEW or not (sampling.kind == "renoise" or gamma):
        return None
    own = ", ".join(map(str, sorted(sampling.times))) or "few"
    return (
        f"this {contract.method} model is made for {own} step(s), got steps={steps}: it follows no "
        "ODE that more steps would solve better; each step after the first adds noise to the "
        "model's answer and calls the model again (re-noising), which seldom helps beyond a few "
        "steps"
    )
