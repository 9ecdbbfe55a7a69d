"""What all edits are asked: seeds, conditions, guidance; and the work in batches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from fewstep import sampling_options as options
from fewstep import schedule
from fewstep.core import Cond
from fewstep.editing.loops import Watch, unwatched
from fewstep.editing.tiles import Tiled
from fewstep.errors import UsageError, UsageWarning
from fewstep.model import Model
from fewstep.models import AbstractDenoiser
from fewstep.noise import SampleNoise
from fewstep.paths import VarianceExploding
from fewstep.times import karras

STEPS = 40
"""Times of an edit unless others are asked for: 40, as Song et al. (2023, appendix D) have it."""


class Asked(TypedDict, total=False):
    """Arguments that every edit takes, as :meth:`fewstep.Model.sample` takes them.

    Attributes:
        n: number of results; by default as many as there are pictures. One picture can have many.
        seed: of all results; result i is a function of (seed, first + i).
        first: the number of the first result.
        seeds: one a result instead.
        label: the class of all results, or one each; by default "no class" of a model that was
            trained to be guided, and else the classes in turn.
        prompts: one text for all results, or one each.
        guidance: scale of classifier-free guidance.
        cond: conditions by name.
        batch: results at a time.
        watch: is called with (calls done, calls in all) of a batch, after each network call; an
            exception that it raises ends the edit.
    """

    n: int | None
    seed: int
    first: int
    seeds: Sequence[int] | None
    label: int | str | Sequence[int | str] | Tensor | None
    prompts: str | Sequence[str] | None
    guidance: float | None
    cond: Mapping[str, Any] | None
    batch: int
    watch: Watch


@dataclass(frozen=True)
class Part:
    """One batch of an edit.

    Args:
        denoiser: guided, and in tiles where the pictures are larger than the model's.
        y: pictures or measurements, one a result, on the model's device.
        noise: of the results.
        cond: of the results.
        watch: counts the calls.
        rows: which of all results they are.
    """

    denoiser: AbstractDenoiser
    y: Tensor
    noise: SampleNoise
    cond: Cond
    watch: Watch
    rows: slice

    def fresh(self, i: int) -> Tensor:
        """The unit noise before call ``i + 1``; that of the start comes before it."""
        return self.noise(i + 1)


Run = Callable[[Part], Tensor]
"""Makes the pictures of one batch."""


def edited(
    model: Model, y: Tensor, run: Run, *, shape: Sequence[int], draws: int, **asked: Unpack[Asked]
) -> Tensor:
    """Run an edit in batches.

    Args:
        model: that edits.
        y: pictures or measurements, one for each result or one for all.
        run: makes the results of a batch.
        shape: of a result; larger ones than the model's are made in tiles.
        draws: how often a result's noise is asked for.
        **asked: see :class:`Asked`.

    Raises:
        UsageError: what is asked contradicts the model or does not fit together.
    """
    n = len(y) if (given := asked.get("n")) is None else given
    batch = asked.get("batch", 512)
    seeds = asked.get("seeds")
    pairs = options.pairs(n, asked.get("seed", 0), asked.get("first", 0), seeds)
    if len(y) not in {1, len(pairs)}:
        raise UsageError(f"got {len(y)} pictures for {len(pairs)} results; give one, or one each")
    if batch < 1:
        raise UsageError(f"batch must be at least 1, got {batch}")
    if not bool(y.isfinite().all()):
        raise UsageError("the picture has values that are not finite")
    cond = _conditions(model, [i if seeds is None else s for s, i in pairs], asked)
    denoiser = tiled(model, model.guided(asked.get("guidance"), cond), shape)
    parts = []
    for first in range(0, len(pairs), batch):
        own = slice(first, first + batch)
        some = y if len(y) == 1 else y[own]
        count = len(pairs[own])
        noise = SampleNoise(pairs[own], shape, calls=draws)
        part = {key: value[own].to(model.device) for key, value in cond.items()}
        given = some.to(model.device).expand(count, *some.shape[1:])
        parts.append(run(Part(denoiser, given, noise, part, asked.get("watch", unwatched), own)))
    return torch.cat(parts).to(y.dtype)


def tiled(model: Model, denoiser: AbstractDenoiser, shape: Sequence[int]) -> AbstractDenoiser:
    """The denoiser for pictures of a shape: in tiles where they are larger than the model's.

    Raises:
        UsageError: they are of another kind, or smaller.
    """
    own = model.contract.data.shape
    if model.contract.data.masked:
        raise UsageError("samples of this model differ in length, which no edit is made for")
    if tuple(shape) == own:
        return denoiser
    if len(own) != 3 or len(shape) != 3 or shape[0] != own[0]:
        raise UsageError(f"this model's samples have the shape {own}, got {tuple(shape)}")
    sizes = [(size, side) for size, side in zip(shape[1:], own[1:], strict=True) if side]
    if any(size < side for size, side in sizes):
        raise UsageError(
            f"this model's samples have the shape {own}, and those of shape {tuple(shape)} are "
            "smaller; pad them first"
        )
    return Tiled(denoiser, *(side for _, side in sizes))


def times_of(
    model: Model, steps: int | None, times: Sequence[float] | None, top: float | None = None
) -> list[float]:
    """The times of an edit's calls, descending, in the unit of the model's path.

    Args:
        model: that edits.
        steps: how many; by default 40, or of a model that is made for certain times the most.
        times: the times themselves.
        top: where the edit starts; by default where sampling does.

    Raises:
        UsageError: they do not descend, or the model is made for others.
    """
    contract, path = model.contract, model.denoiser.path
    sampling = contract.sampling
    if times is not None:
        grid = [float(t) for t in times]
        ordered = all(a > b for a, b in pairwise(grid))
        finite = all(map(math.isfinite, grid))
        if not grid or not (ordered and finite) or grid[-1] <= 0 or grid[0] > path.t_max:
            raise UsageError(
                f"times must descend, be above 0 and at most {path.t_max:g}, got {grid}"
            )
    elif sampling.any_times:
        whole = schedule.times(contract, path, STEPS if steps is None else steps)
        grid = whole if top is None else _below(model, top, len(whole))
    else:
        listed = schedule.times(contract, path, steps or max(sampling.times, default=1))
        grid = [t for t in listed if top is None or t <= top * (1 + 1e-9)]
    if not sampling.any_times:
        allowed = {t for some in sampling.times.values() for t in some}
        if not grid or not {*grid} <= allowed:
            raise UsageError(
                f"this {contract.method} model is made for the times {schedule.in_order(sampling)}"
                f", got {grid or f'times from {top:g} on'}; choose some of these"
            )
    return grid


def level(model: Model, sigma: float) -> float:
    """The time at which sigma/alpha is a noise level, within the model's path.

    Raises:
        UsageError: the level is not above 0, or above the model's largest.
    """
    path = model.denoiser.path
    low, high = path.ratio(torch.tensor([path.t_min, path.t_max], dtype=torch.float64)).tolist()
    if not 0 < sigma <= high:
        raise UsageError(
            f"the noise level must be above 0 and at most {high:g}, which is this model's largest; "
            f"got {sigma:g}"
        )
    return float(path.time(torch.tensor([max(sigma, low)], dtype=torch.float64)))


def noise_level(model: Model, t: float) -> float:
    """Sigma/alpha at a time of the model's path."""
    return float(model.denoiser.path.ratio(torch.tensor([t], dtype=torch.float64)))


def _below(model: Model, top: float, steps: int) -> list[float]:
    """A Karras grid of noise levels from a time on down, on whichever path."""
    path, levels = model.denoiser.path, VarianceExploding()
    ends = path.ratio(torch.tensor([path.t_min, top], dtype=torch.float64))
    low, high = ends.clamp(levels.t_min, levels.t_max).tolist()
    later = path.time(karras(steps + 1, low, high)[1:steps]).tolist() if high > low else []
    return [top, *later]


def _conditions(model: Model, own: Sequence[int], asked: Asked) -> dict[str, Tensor]:
    """The conditions of results: what is given, else "no class" where the model knows it."""
    data, label = model.contract.data, asked.get("label")
    cond = dict(asked.get("cond") or {})
    if data.labels and label is None and "label" not in cond:
        guidance = model.contract.sampling.guidance
        if guidance is not None and (guidance.keys is None or "label" in guidance.keys):
            label = data.labels
        else:
            warnings.warn(
                f"this model draws one of {data.labels} classes and was not trained without them; "
                "give the picture's label, because the classes take turns otherwise",
                UsageWarning,
                stacklevel=4,
            )
    return model.conditions(own, cond, label=label, prompts=asked.get("prompts"))
