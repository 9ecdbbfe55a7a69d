"""Where to call a model between noise and data: intermediate times of few-step sampling.

Song et al. 2023 (consistency models) choose them greedily, one more at a time, by ternary search
for the best FID under one seed. Here, too, each number of steps keeps the times of the one before
and inserts one: a scan in log(sigma/alpha) finds the bracket, golden section narrows it. All
candidates share noise, labels and data, so that they differ in their times alone.

Candidates are judged against training data, on another seed than ``fewstep evaluate`` reports on:
a choice made on held-out data would flatter what is measured there afterwards.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from fewstep.contract import Sampling
from fewstep.core import UsageError, entropy
from fewstep.data import Dataset
from fewstep.data.specs import conditions_of
from fewstep.evaluation.judging import DRAWS, FIRST_SEED
from fewstep.evaluation.named import decoded
from fewstep.metrics import (
    Features,
    flatten,
    frechet_distance,
    kid,
    moments_of,
    sliced_wasserstein,
)
from fewstep.model import Model
from fewstep.paths import Path as NoisePath
from fewstep.schedule import in_order
from fewstep.system.files import whole_file, whole_folder

Distance = Callable[[Sequence[float]], float]
"""How far the samples made with these times are from data."""

NOISE = (0.002, 80.0)
"""Where sigma/alpha of a path has no end within, it is searched within these."""

TOLERANCE = 0.02
"""A bracket of log(sigma/alpha) that is narrow enough: 2 % of a noise level."""

GOLDEN = 0.381966


class Found(NamedTuple):
    """The times of a number of steps, and those that it had; the same where none were better."""

    times: tuple[float, ...]
    distance: float
    before: tuple[float, ...]
    distance_before: float


def greedy(
    distance: Distance, before: Mapping[int, Sequence[float]], path: NoisePath, evaluations: int
) -> Iterator[tuple[int, Found]]:
    """Times of 1, 2, 3, ... steps, each with all times of the one before, unless older are better.

    Args:
        distance: what to minimise; always the same for the same times.
        before: for 1, 2, 3, ... steps, the times that are used without a search.
        path: of the model.
        evaluations: distances taken for each number of steps, about; half of them to find the
            bracket. One more judges what was there before, and one the single step.
    """
    best = tuple(before[1])
    least = distance(best)
    yield 1, Found(best, least, best, least)
    for steps in range(2, max(before) + 1):
        old = tuple(before[steps])
        times, least = _inserted(distance, best, path, evaluations)
        judged = distance(old)
        best, least = (times, least) if least < judged else (old, judged)
        yield steps, Found(best, least, old, judged)


def _inserted(
    distance: Distance, times: Sequence[float], path: NoisePath, evaluations: int
) -> tuple[tuple[float, ...], float]:
    """The best times with one more among them, and their distance."""
    ends = torch.tensor([path.t_min, *reversed(times)], dtype=torch.float64)
    known = path.ratio(ends).clamp(*NOISE).log().tolist()
    width = (known[-1] - known[0]) / (evaluations // 2 + 1)
    tried: dict[float, float] = {}

    def attempt(place: float) -> None:
        tried[place] = distance(_with(times, place, path))

    for low, high in pairwise(known):
        parts = max(2, round((high - low) / width)) if high - low > TOLERANCE else 1
        for i in range(1, parts):
            attempt(low + (high - low) * i / parts)
    best = min(tried, key=lambda place: tried[place])
    edges = sorted({*known, *tried})
    low, high = edges[edges.index(best) - 1], edges[edges.index(best) + 1]
    while len(tried) < evaluations and high - low > TOLERANCE:
        probe = best + GOLDEN * ((high if high - best > best - low else low) - best)
        attempt(probe)
        if tried[probe] < tried[best]:
            best, probe = probe, best
        low, high = (low, probe) if probe > best else (probe, high)
    return _with(times, best, path), tried[best]


def _with(times: Sequence[float], place: float, path: NoisePath) -> tuple[float, ...]:
    """With the time of a log(sigma/alpha); as few digits as a reader can use."""
    new = float(path.time(torch.tensor([place], dtype=torch.float64).exp()))
    return tuple(sorted((*times, float(f"{new:.6g}")), reverse=True))


def distance_to(
    data: Dataset, model: Model, metric: str, features: Features, n: int, seed: int
) -> Distance:
    """The distance of ``n`` samples of a model to as many training samples, conditions and all.

    Args:
        data: the training data of the model.
        model: to be sampled.
        metric: of ``MEASURES``.
        features: in which all but ``swd`` is taken.
        n: not more than there are data.
        seed: of the noise and of the choice of data.
    """
    chosen = np.random.default_rng(entropy(seed, "search")).permutation(len(data))[:n]
    real = decoded(data, data.batch(np.sort(chosen)))
    cond = conditions_of(real)
    measure, seen = MEASURES[metric], flatten if metric == "swd" else features
    there = seen(real.x0 if real.mask is None else real.x0.masked_fill(real.mask == 0, 0.0))

    def distance(times: Sequence[float]) -> float:
        x = model.sample(len(real), times=times, seed=seed, cond=cond).cpu()
        return measure(seen(x), there)

    return distance


def _frechet(a: Tensor, b: Tensor) -> float:
    return frechet_distance(*(moments_of([x], flatten) for x in (a, b)))


MEASURES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "fd": _frechet,
    "swd": sliced_wasserstein,
    "kid": kid,
}
"""What can be minimised, of features; ``swd`` of the samples themselves."""


def check(sampling: Sampling, method: str, steps: Sequence[int], seed: int) -> None:
    """Refuse what cannot be searched.

    Raises:
        UsageError: a model whose times are not free, steps without a time between, or a seed that
            results are reported on.
    """
    if sampling.kind == "ode":
        raise UsageError(
            f"this {method} model is sampled by a solver of its ODE in many steps, so it has no "
            "few times to choose; distil it first, or give sample more --steps"
        )
    if not sampling.any_times:
        raise UsageError(
            f"this {method} model is made for the times {in_order(sampling)} and no others, so "
            "there is nothing to search"
        )
    if min(steps) < 2:
        raise UsageError(f"--steps must be at least 2 to have a time between, got {min(steps)}")
    if seed < 0 or FIRST_SEED <= seed < FIRST_SEED + DRAWS:
        raise UsageError(
            f"--seed must be at least 0 and none of {FIRST_SEED} to {FIRST_SEED + DRAWS - 1}, on "
            f"which evaluate reports; got {seed}"
        )


def write(
    folder: Path, config: str, chosen: Mapping[int, Found], record: Any, out: Path | None
) -> Path:
    """Put the times into a model's config.json, and how they were found into search.json.

    Args:
        folder: of the model; its weights stay as they are.
        config: the text of its config.json when the search began.
        chosen: by number of steps.
        record: of the search.
        out: a new folder for a copy of the model, which is changed instead.

    Returns:
        The folder that was written.

    Raises:
        UsageError: the model is another one by now.
    """
    if (folder / "config.json").read_text(encoding="utf-8") != config:
        raise UsageError(f"{folder} was written anew during the search; search again")
    known = json.loads(config)
    times = {**known["sampling"]["times"], **{str(k): list(one.times) for k, one in chosen.items()}}
    known["sampling"]["times"] = dict(sorted(times.items(), key=lambda item: int(item[0])))
    Sampling.model_validate(known["sampling"])
    if out is None:
        _write(folder, known, record)
        return folder
    with whole_folder(out) as fresh:
        shutil.copytree(folder, fresh, dirs_exist_ok=True)
        _write(fresh, known, record)
    return out


def _write(folder: Path, config: Any, record: Any) -> None:
    # Both are on the disk before either takes its place.
    with (
        whole_file(folder / "search.json") as outcome,
        whole_file(folder / "config.json") as contract,
    ):
        for fresh, value in ((outcome, record), (contract, config)):
            fresh.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextmanager
def watched(distance: Distance, total: int) -> Iterator[Distance]:
    """The distance with a bar, on a terminal."""
    if not sys.stderr.isatty():
        yield distance
        return
    columns = (
        TextColumn("searching"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}  {task.fields[last]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, last="")

        def shown(times: Sequence[float]) -> float:
            value = distance(times)
            bar.update(task, advance=1, last=f"{value:.4g} at {', '.join(f'{t:g}' for t in times)}")
            return value

        yield shown
