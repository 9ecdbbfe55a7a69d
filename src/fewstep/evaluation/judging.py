"""How good and how fast: one protocol for every model, against held-out data and training data.

Every distance compares as many samples as there are held-out ones with as many data, and is the
mean over draws that all models share (same noise, same labels); two samples of real data under the
same protocol give the floor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fewstep.core import Batch, UsageError, entropy
from fewstep.data.overlap import overlap_note, shared_samples
from fewstep.data.specs import conditions_of
from fewstep.evaluation.judged import Judged, distances, frechet, matched
from fewstep.metrics import (
    Features,
    NamedFeatures,
    References,
    flatten,
    nearest_distance,
    sliced_wasserstein,
)
from fewstep.model import Model
from fewstep.system.bars import bar
from fewstep.system.processes import ALONE, World

METRICS = ("fd", "swd", "nn", "kid", "pr", "dc")
"""What can be measured; the first three are unless others are asked for."""

DRAWS = 5
SOON = 2.0
"""Seconds of an evaluation without a bar."""
FIRST_SEED = 1000
"""Samples are judged on seeds FIRST_SEED, FIRST_SEED + 1, ...; settings are chosen on others."""


@dataclass(frozen=True)
class Protocol:
    """What models are compared with.

    Args:
        train: their training data.
        held_out: what they never saw; its conditions are the samples' conditions. Where samples
            differ in length, masks are the samples' masks too, and what is not real counts as 0.
        features: that the Frechet distance is taken in.
        draws: samples of each model, and of the training data.
        metrics: which of ``METRICS``.
        references: what keeps the statistics of data, where they are expensive.
        world: the processes that share the sampling and the features; each finds all distances.
    """

    train: Batch
    held_out: Batch
    features: Features
    draws: int = DRAWS
    metrics: Sequence[str] = METRICS[:3]
    references: References | None = None
    world: World = ALONE

    def judged_in(self) -> dict[str, dict[str, str]]:
        """Which features, where they were asked for by name."""
        keys = ("name", "distance", "weights", "resize")
        named = isinstance(self.features, NamedFeatures)
        return {"features": {k: getattr(self.features, k) for k in keys}} if named else {}

    @property
    def labelled(self) -> bool:
        """Whether the data has classes."""
        return "label" in self.train.cond

    def quick(self) -> Protocol:
        """The Frechet distance of one draw."""
        return replace(self, draws=1, metrics=("fd",))

    def check(self) -> None:
        """Refuse held-out samples of which at least half are training samples.

        Raises:
            UsageError: they are; the message says how many.
        """
        _ = self._overlap

    def notes(self) -> list[str]:
        """What a reader of the table must know besides."""
        lines = [
            f"fd: {judge['distance']}, of features {judge['name']}, weights "
            f"{judge['weights'][:12] or 'none'}, resize {judge['resize']}"
            for judge in self.judged_in().values()
        ]
        lines += [f"reference: {self.references}"] if self.references else []
        n = len(self.held_out)
        return [
            *lines,
            f"distances: {n:,} samples against {n:,} held-out and {n:,} training data, in "
            f"{_name(self.features)}, means of {self.draws}; compare rows of equal numbers only",
            *([self._overlap] if self._overlap else []),
        ]

    @cached_property
    def _overlap(self) -> str | None:
        """A sentence on the held-out samples that are training samples too; None without any."""
        shared = shared_samples([self.train.x0], [self.held_out.x0])
        return overlap_note(shared, len(self.held_out))

    def floor(self) -> dict[str, float]:
        """Real data judged as a model is: training data against held-out data."""
        rows = []
        with self._progress() as advance:
            for draw in range(self.draws):
                rows.append(self._to_held_out(self._data(self._train_draw(draw))))
                advance(1)
        return _mean(rows)

    def judge(
        self, model: Model, steps: int, guidance: float | None = None, solver: str | None = None
    ) -> dict[str, float]:
        """What was asked for of the model's samples, and its speed.

        ``fd``, ``swd``, ``kid``, ``precision``, ``recall``, ``density``, ``coverage`` are against
        held-out data, ``fd_train``, ``swd_train`` against training data. ``nn`` is the median
        distance to the nearest training sample over that of held-out data: well below 1 is memory.
        Speed is the median over draws of samples per second.
        """
        n = len(self.held_out)
        part = self.world.part(n)
        chosen = {
            "steps": steps,
            "guidance": guidance,
            "solver": solver,
            "first": part.start,
            "cond": {key: value[part] for key, value in conditions_of(self.held_out).items()},
        }
        rows, seconds = [], []
        with self._progress() as advance:
            for draw in range(self.draws):
                began = time.perf_counter()
                x = model.sample(part.stop - part.start, seed=FIRST_SEED + draw, **chosen).cpu()
                x = self._same_length(self.world.together(x))
                seconds.append(time.perf_counter() - began)
                rows.append(self._judged(x, self._data(self._train_draw(draw))))
                advance(1)
        return {**_mean(rows), "images_per_second": n / float(np.median(seconds))}

    def _judged(self, x: Tensor, train: Judged) -> dict[str, float]:
        """Everything but the speed, of one sample of the model and one of the training data."""
        own = Judged(x, self.features, self.world)
        row = self._to_held_out(own)
        if "fd" in self.metrics:
            row["fd_train"] = frechet(own, train)
        if "swd" in self.metrics:
            row["swd_train"] = sliced_wasserstein(x, train.x)
        if "nn" in self.metrics:
            median = float(nearest_distance(x, self._real(self.train)).quantile(0.5))
            row["nn"] = median / self._nearest
        return row

    def _progress(self) -> AbstractContextManager[Callable[[int], None]]:
        """A bar on the first process's terminal, where this takes longer than SOON."""
        if not self.world.first:
            return nullcontext(lambda count: None)
        return bar("evaluating", "draws", self.draws, after=SOON)

    @cached_property
    def _nearest(self) -> float:
        """Median distance of held-out data to the nearest training sample."""
        distances = nearest_distance(self._held_out.x, self._real(self.train))
        median = float(distances.quantile(0.5))
        if median == 0:
            raise UsageError("at least half of the held-out data lies in the training data")
        return median

    @cached_property
    def _held_out(self) -> Judged:
        return self._data(self._real(self.held_out))

    def _real(self, batch: Batch) -> Tensor:
        """Samples, 0 where they are not real, all of the protocol's length.

        Raises:
            UsageError: positions would have to be left out of features of whole samples.
        """
        if batch.mask is None:
            return self._same_length(batch.x0)
        if isinstance(self.features, NamedFeatures):
            raise UsageError(
                f"the features {self.features.name} are of whole images and cannot leave out what "
                "a mask does; leave out --features"
            )
        return self._same_length(batch.x0.masked_fill(batch.mask == 0, 0.0))

    def _same_length(self, x: Tensor) -> Tensor:
        if self.held_out.mask is None:
            return x
        longest = max(self.train.x0.shape[-1], self.held_out.x0.shape[-1])
        return torch.nn.functional.pad(x, (0, longest - x.shape[-1]))

    def _data(self, x: Tensor) -> Judged:
        return Judged(x, self.features, self.world, self.references)

    def _to_held_out(self, own: Judged) -> dict[str, float]:
        return distances(own, self._held_out, self.metrics)

    def _train_draw(self, draw: int) -> Tensor:
        """As many training samples as held-out ones, of the same labels where there are any."""
        rng = np.random.default_rng(entropy(FIRST_SEED, "train draw", draw))
        return self._real(self.train)[matched(self.train, self.held_out, rng)]


def shared(protocol: Protocol, world: World) -> Protocol:
    """The protocol, its work shared by several processes.

    Raises:
        UsageError: more of them than samples.
    """
    n = len(protocol.held_out)
    if world.size > n:
        raise UsageError(f"{world.size} processes cannot share {n} samples; start fewer")
    return replace(protocol, world=world)


def _name(features: Features) -> str:
    """What features are called in a note."""
    if isinstance(features, NamedFeatures):
        return f"features {features.name}"
    if features is flatten:
        return "features pixels"
    return f"features {getattr(features, '__name__', type(features).__name__)}"


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([one[key] for one in rows])) for key in rows[0]}
