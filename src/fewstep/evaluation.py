"""How good and how fast: one protocol for every model, against held-out data and training data.

Every distance compares as many samples as there are held-out ones with as many data, and is the
mean over draws that all models share (same noise, same labels); two samples of real data under the
same protocol give the floor.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fewstep.contract import DataSpec
from fewstep.core import Batch, UsageError, entropy
from fewstep.data import ImageFolder, digits, toy
from fewstep.data.toys import SAMPLERS
from fewstep.files import write_json
from fewstep.metrics import (
    Features,
    Moments,
    StreamingMoments,
    digits_features,
    flatten,
    frechet_distance,
    nearest_distance,
    sliced_wasserstein,
)
from fewstep.model import Model

DRAWS = 5
FIRST_SEED = 1000
"""Samples are judged on seeds FIRST_SEED, FIRST_SEED + 1, ...; settings are chosen on others."""


@dataclass(frozen=True)
class Protocol:
    """What models are compared with.

    Args:
        train: what they learnt from.
        held_out: what they never saw; its labels are the samples' labels.
        features: that the Frechet distance is taken in.
        draws: samples of each model, and of the training data.
    """

    train: Batch
    held_out: Batch
    features: Features
    draws: int = DRAWS

    def floor(self) -> dict[str, float]:
        """Real data judged as a model is: ``fd`` and ``swd`` of training data to held-out data."""
        reference = self._moments(self.held_out.x0)
        found = [
            {
                "fd": frechet_distance(self._moments(x), reference),
                "swd": sliced_wasserstein(x, self.held_out.x0),
            }
            for x in map(self._train_draw, range(self.draws))
        ]
        return _mean(found)

    def judge(self, model: Model, steps: int, guidance: float | None = None) -> dict[str, float]:
        """``fd``, ``swd`` to held-out, ``fd_train``, ``swd_train`` to training data, ``nn``, speed.

        ``nn`` is the median distance to the nearest training sample over that of held-out data:
        well below 1 is memory. Speed is the median over draws of samples per second.
        """
        n = len(self.held_out)
        label = self.held_out.cond.get("label")
        held_out = self._moments(self.held_out.x0)
        found, seconds = [], []
        for draw in range(self.draws):
            began = time.perf_counter()
            seed = FIRST_SEED + draw
            x = model.sample(n, steps=steps, seed=seed, label=label, guidance=guidance).cpu()
            seconds.append(time.perf_counter() - began)
            train, own = self._train_draw(draw), self._moments(x)
            found.append(
                {
                    "fd": frechet_distance(own, held_out),
                    "swd": sliced_wasserstein(x, self.held_out.x0),
                    "fd_train": frechet_distance(own, self._moments(train)),
                    "swd_train": sliced_wasserstein(x, train),
                    "nn": float(nearest_distance(x, self.train.x0).quantile(0.5)) / self._nearest,
                }
            )
        return {**_mean(found), "images_per_second": n / float(np.median(seconds))}

    @cached_property
    def _nearest(self) -> float:
        """Median distance of held-out data to the nearest training sample."""
        median = float(nearest_distance(self.held_out.x0, self.train.x0).quantile(0.5))
        if median == 0:
            raise UsageError("at least half of the held-out data lies in the training data")
        return median

    def _moments(self, x: Tensor) -> Moments:
        features = self.features(x)
        moments = StreamingMoments(features.shape[1])
        moments.update(features)
        return moments.moments()

    def _train_draw(self, draw: int) -> Tensor:
        """As many training samples as held-out ones, of the same labels where there are any."""
        rng = np.random.default_rng(entropy(FIRST_SEED, "train draw", draw))
        order = rng.permutation(len(self.train))
        label = self.train.cond.get("label")
        if label is None:
            return self.train.x0[order[: len(self.held_out)]]
        wanted = np.bincount(self.held_out.cond["label"].numpy())
        by_class = label.numpy()[order]
        parts = [order[by_class == k][:count] for k, count in enumerate(wanted)]
        if sum(map(len, parts)) < len(self.held_out):
            raise UsageError("a label has more held-out samples than training samples")
        return self.train.x0[np.concatenate(parts)]


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
        data: ``digits``, a toy, or a folder or zip of images that the model learnt from.
        held_out: a folder or zip of images that it never saw.
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
    elif held_out is None:
        raise UsageError(
            f"to judge on {data} also give images that the model never saw: --held-out FOLDER"
        )
    else:
        channels, *sides = made.shape if len(made.shape) == 3 else (0, 0, 0)
        if channels not in (1, 3) or sides[0] != sides[1]:
            raise UsageError(f"the model draws {tuple(made.shape)}, which no image folder holds")
        kind = "auto" if made.labels else "none"
        parts = [
            ImageFolder(Path(part), sides[0], channels=channels, labels=kind)
            for part in (data, held_out)
        ]
        train, rest = (part.batch(np.arange(len(part))) for part in parts)
        chosen = np.random.default_rng(entropy(FIRST_SEED, "held out")).permutation(len(rest))[:n]
        index = np.sort(chosen)
        rest = Batch(rest.x0[index], {k: v[index] for k, v in rest.cond.items()})
        if len(rest) > len(train):
            raise UsageError(
                f"the held-out images ({len(rest)}) must not outnumber the others ({len(train)})"
            )
        found = Protocol(train, rest, flatten)
    for name, part in ((data, found.train), (held_out or data, found.held_out)):
        label = part.cond.get("label")
        classes = 0 if label is None else int(label.max()) + 1
        if (tuple(part.x0.shape[1:]), classes) != (tuple(made.shape), made.labels):
            raise UsageError(
                f"the model draws {tuple(made.shape)} with {made.labels} labels, {name} is "
                f"{tuple(part.x0.shape[1:])} with {classes}; give what it learnt from with --data "
                "and the like, unseen, with --held-out"
            )
    return found


# Tables.


LEGEND = (
    "fd, swd: Frechet and sliced Wasserstein distance to held-out data (train: to training data);\n"
    "nn: nearest training sample, over that of held-out data (well below 1 is memory)"
)
COLUMNS = ("fd", "swd", "fd_train", "swd_train", "nn", "images_per_second")


def table(rows: Sequence[tuple[str, Mapping[str, float]]], baseline: float) -> str:
    """Rows of metrics as text; ``speed-up`` is over ``baseline`` images per second."""
    names = ("", "fd", "swd", "fd train", "swd train", "nn", "images/s", "speed-up")
    lines: list[tuple[str, ...]] = [names]
    for name, row in rows:
        cells = [f"{row[k]:.3f}" if k in row else "-" for k in COLUMNS[:-1]]
        speed = row.get("images_per_second")
        cells += ["-", "-"] if speed is None else [f"{speed:,.0f}", f"{speed / baseline:.1f}x"]
        lines.append((name, *cells))
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    lines_of_text = "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
    return f"{lines_of_text}\n\n{LEGEND}"


def write_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """``metrics.json``, numbers rounded to six significant digits."""
    write_json(
        path, json.loads(json.dumps(metrics), parse_float=lambda s: float(f"{float(s):.6g}"))
    )


def _mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([one[key] for one in found])) for key in found[0]}
