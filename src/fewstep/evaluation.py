"""How good and how fast: one protocol for every model, against held-out data and training data.

Every distance compares as many samples as there are held-out ones with as many data, and is the
mean over draws that all models share (same noise, same labels); two samples of real data under the
same protocol give the floor.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.contract import DataSpec
from fewstep.core import Batch, UsageError, entropy
from fewstep.data import STANDARD, Dataset, Stored, digits, open_images, toy
from fewstep.data.specs import conditions_of
from fewstep.data.stored import is_stored
from fewstep.data.toys import SAMPLERS
from fewstep.errors import nearest
from fewstep.metrics import (
    Features,
    Moments,
    NamedFeatures,
    References,
    StreamingMoments,
    density_coverage,
    digits_features,
    flatten,
    frechet_distance,
    kid,
    named_features,
    nearest_distance,
    precision_recall,
    sliced_wasserstein,
)
from fewstep.model import Model, find
from fewstep.processes import ALONE, World
from fewstep.tables import table, write_metrics

__all__ = [
    "METRICS",
    "Protocol",
    "chosen",
    "digits_protocol",
    "learnt",
    "named_protocol",
    "own_data",
    "shared",
    "table",
    "write_metrics",
]

METRICS = ("fd", "swd", "nn", "kid", "pr", "dc")
"""What can be measured; the first three are unless others are asked for."""

DRAWS = 5
FIRST_SEED = 1000
"""Samples are judged on seeds FIRST_SEED, FIRST_SEED + 1, ...; settings are chosen on others."""


@dataclass(frozen=True)
class Protocol:
    """What models are compared with.

    Args:
        train: what they learnt from.
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

    def notes(self) -> list[str]:
        """What a reader of the table must know besides."""
        lines = [
            f"fd: {told['distance']}, of features {told['name']}, weights "
            f"{told['weights'][:12] or 'none'}, resize {told['resize']}"
            for told in self.judged_in().values()
        ]
        return [*lines, f"reference: {self.references}"] if self.references else lines

    def floor(self) -> dict[str, float]:
        """Real data judged as a model is: training data against held-out data."""
        draws = map(self._train_draw, range(self.draws))
        return _mean([self._to_held_out(self._data(x)) for x in draws])

    def judge(self, model: Model, steps: int, guidance: float | None = None) -> dict[str, float]:
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
            "first": part.start,
            "cond": {key: value[part] for key, value in conditions_of(self.held_out).items()},
        }
        found, seconds = [], []
        for draw in range(self.draws):
            began = time.perf_counter()
            x = model.sample(part.stop - part.start, seed=FIRST_SEED + draw, **chosen).cpu()
            x = self._same_length(self.world.together(x))
            seconds.append(time.perf_counter() - began)
            own = _Judged(x, self.features, self.world)
            train = self._data(self._train_draw(draw))
            row = self._to_held_out(own)
            if "fd" in self.metrics:
                row["fd_train"] = frechet_distance(own.moments, train.moments)
            if "swd" in self.metrics:
                row["swd_train"] = sliced_wasserstein(x, train.x)
            if "nn" in self.metrics:
                median = float(nearest_distance(x, self._real(self.train)).quantile(0.5))
                row["nn"] = median / self._nearest
            found.append(row)
        return {**_mean(found), "images_per_second": n / float(np.median(seconds))}

    @cached_property
    def _nearest(self) -> float:
        """Median distance of held-out data to the nearest training sample."""
        distances = nearest_distance(self._held_out.x, self._real(self.train))
        median = float(distances.quantile(0.5))
        if median == 0:
            raise UsageError("at least half of the held-out data lies in the training data")
        return median

    @cached_property
    def _held_out(self) -> _Judged:
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

    def _data(self, x: Tensor) -> _Judged:
        return _Judged(x, self.features, self.world, self.references)

    def _to_held_out(self, own: _Judged) -> dict[str, float]:
        held_out, row = self._held_out, {}
        if "fd" in self.metrics:
            row["fd"] = frechet_distance(own.moments, held_out.moments)
        if "swd" in self.metrics:
            row["swd"] = sliced_wasserstein(own.x, held_out.x)
        if "kid" in self.metrics:
            row["kid"] = kid(own.features, held_out.features)
        if "pr" in self.metrics:
            row |= asdict(precision_recall(held_out.features, own.features))
        if "dc" in self.metrics:
            row |= asdict(density_coverage(held_out.features, own.features))
        return row

    def _train_draw(self, draw: int) -> Tensor:
        """As many training samples as held-out ones, of the same labels where there are any."""
        rng = np.random.default_rng(entropy(FIRST_SEED, "train draw", draw))
        order = rng.permutation(len(self.train))
        label, x = self.train.cond.get("label"), self._real(self.train)
        if label is None:
            return x[order[: len(self.held_out)]]
        wanted = np.bincount(self.held_out.cond["label"].numpy())
        by_class = label.numpy()[order]
        parts = [order[by_class == k][:count] for k, count in enumerate(wanted)]
        if sum(map(len, parts)) < len(self.held_out):
            raise UsageError("a label has more held-out samples than training samples")
        return x[np.concatenate(parts)]


@dataclass(frozen=True)
class _Judged:
    """One set, its features and their moments, each computed when first asked for."""

    x: Tensor
    judge: Features
    world: World
    references: References | None = None

    @cached_property
    def features(self) -> Tensor:
        return self.world.together(self.judge(self.x[self.world.part(len(self.x))]))

    @cached_property
    def moments(self) -> Moments:
        if self.references is not None:
            return self.world.agreed(self.world.first and self.references(self.x).moments)
        moments = StreamingMoments(self.features.shape[1])
        moments.update(self.features)
        return moments.moments()


def digits_protocol() -> Protocol:
    """1,200 training digits, 597 held out, and the bundled classifier's features."""
    train, held_out = digits("train"), digits("held_out")
    return Protocol(
        train.batch(np.arange(len(train))),
        held_out.batch(np.arange(len(held_out))),
        digits_features(),
    )


def named_protocol(data: str, held_out: str | None, made: DataSpec, n: int) -> Protocol:
    """The protocol of a data set's name or of two folders of images.

    Args:
        data: ``digits``, a toy, a standard data set, or the images that the model learnt from: a
            folder, a zip or a prepared file.
        held_out: likewise, images that it never saw.
        made: what the model draws; images are read at its resolution.
        n: at most so many held-out images, a seeded choice of them.

    Raises:
        UsageError: the data is not what the model draws, or its held-out part is missing.
    """
    if data == "digits":
        found = digits_protocol()
    elif data in SAMPLERS:
        parts = [toy(data, size, seed) for size, seed in ((20_000, 0), (n, 1))]
        train, rest = (part.batch(np.arange(len(part))) for part in parts)
        found = Protocol(train, rest, flatten)
    else:
        found = _of_images(*_image_sets(data, held_out, made), n)
    for name, part in ((data, found.train), (held_out or data, found.held_out)):
        label = part.cond.get("label")
        classes = 0 if label is None else int(label.max()) + 1
        if not made.fits(part.x0.shape[1:]) or classes != made.labels:
            raise UsageError(
                f"the model draws {tuple(made.shape)} with {made.labels} labels, {name} is "
                f"{tuple(part.x0.shape[1:])} with {classes}; give what it learnt from with --data "
                "and the like, unseen, with --held-out"
            )
    return found


def learnt(
    data: str, made: DataSpec, features: str | None, device: torch.device
) -> tuple[Dataset, Features]:
    """What a model learnt from, without anything held out, and the features to judge it in.

    Args:
        data: as in :func:`named_protocol`.
        made: what the model draws.
        features: NAME or NAME:FILE, or None for the usual ones of the data.
        device: where networks judge.

    Raises:
        UsageError: the data is not what the model draws, or features that cannot be had.
    """
    if data == "digits":
        found = digits("train")
    elif data in SAMPLERS:
        found = toy(data, 20_000, 0)
    elif data in STANDARD:
        found = STANDARD[data]("train")
        found = found if made.labels else found.unlabelled()
    else:
        found = _own_images(data, made)
    if not made.fits(found.shape) or found.labels != made.labels:
        raise UsageError(
            f"the model draws {tuple(made.shape)} with {made.labels} labels, {data} is "
            f"{tuple(found.shape)} with {found.labels}; give what it learnt from with --data"
        )
    if features is not None:
        return found, named_features(features, device)
    return found, digits_features() if data == "digits" else flatten


def _own_images(source: str, made: DataSpec) -> Dataset:
    """A folder, zip or prepared file at the model's resolution, or stored arrays."""
    if is_stored(source):
        return Stored(source, labels="auto" if made.labels else "none")
    channels, side, width = made.shape if len(made.shape) == 3 else (0, 0, 0)
    if channels not in (1, 3) or side is None or side != width:
        raise UsageError(f"the model draws {tuple(made.shape)}, which no image folder holds")
    kind = "auto" if made.labels else "none"
    return open_images(Path(source), side, kind, channels=channels)


def _image_sets(data: str, held_out: str | None, made: DataSpec) -> tuple[Dataset, Dataset]:
    """What a model of images learnt from, and what it never saw."""
    if data in STANDARD:
        if held_out is not None:
            raise UsageError(f"{data} has held-out images of its own; leave out --held-out")
        learnt, unseen = (STANDARD[data](split) for split in ("train", "held_out"))
        return (learnt, unseen) if made.labels else (learnt.unlabelled(), unseen.unlabelled())
    if held_out is None:
        raise UsageError(
            f"to judge on {data} also give images that the model never saw: --held-out FOLDER"
        )
    return _own_images(data, made), _own_images(held_out, made)


def _of_images(learnt: Dataset, unseen: Dataset, n: int) -> Protocol:
    order = np.random.default_rng(entropy(FIRST_SEED, "held out")).permutation(len(unseen))
    rest = unseen.batch(np.sort(order[:n]))
    if len(rest) > len(learnt):
        raise UsageError(
            f"the held-out images ({len(rest)}) must not outnumber the others ({len(learnt)})"
        )
    return Protocol(learnt.batch(np.arange(len(learnt))), rest, flatten)


def chosen(
    protocol: Protocol, metrics: str, features: str | None, device: torch.device
) -> Protocol:
    """The protocol with what the command line asks for.

    Args:
        protocol: with the usual features of its data.
        metrics: names from ``METRICS``, with commas between them.
        features: NAME or NAME:FILE of ``fewstep.metrics.FEATURES``, or None for the usual ones.
        device: where networks judge.

    Raises:
        UsageError: an unknown name, or features that cannot be had.
    """
    names = metrics.split(",")
    for name in names:
        if name not in METRICS:
            raise UsageError(f"--metrics: unknown {name!r}; {nearest(name, METRICS)}")
    if features is None:
        return replace(protocol, metrics=names)
    found = named_features(features, device)
    references = References(found) if found.expensive else None
    return replace(protocol, metrics=names, features=found, references=references)


def shared(protocol: Protocol, world: World) -> Protocol:
    """The protocol, its work shared by several processes.

    Raises:
        UsageError: more of them than samples.
    """
    n = len(protocol.held_out)
    if world.size > n:
        raise UsageError(f"{world.size} processes cannot share {n} samples; start fewer")
    return replace(protocol, world=world)


def own_data(model: str) -> str:
    """The data that a run learnt from, by its run.json; ``digits`` where there is none.

    Raises:
        UsageError: no such model, or its run.json is damaged.
    """
    # A model lies in RUN/model or in RUN/averages/NAME.
    records = [folder / "run.json" for folder in find(model).resolve().parents[:2]]
    record = next(filter(Path.is_file, records), None)
    if record is None:
        return "digits"
    try:
        run = json.loads(record.read_text(encoding="utf-8"))["run"]
        standard = (name for name in STANDARD if run["recipe"].startswith(f"{name}-"))
        data = run["arguments"].get("data", next(standard, "digits"))
        return str(data).replace("_", "-") if run["recipe"].startswith("toy") else str(data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{record} is damaged ({error!r}); say with --data what the model learnt from"
        ) from error


def _mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([one[key] for one in found])) for key in found[0]}
