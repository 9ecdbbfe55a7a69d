"""One set of samples with its features and their moments, and the distances of two sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from fewstep.core import Batch, UsageError
from fewstep.metrics import (
    Features,
    Moments,
    References,
    StreamingMoments,
    density_coverage,
    frechet_distance,
    frechet_distance_of_samples,
    kid,
    precision_recall,
    sliced_wasserstein,
)
from fewstep.system.processes import World


@dataclass(frozen=True)
class Judged:
    """One set, its features and their moments, each computed when first asked for.

    Args:
        x: the samples.
        judge: the features.
        world: the processes that share the work.
        references: what keeps statistics, where the set is data and they are expensive.
    """

    x: Tensor
    judge: Features
    world: World
    references: References | None = None

    @cached_property
    def features(self) -> Tensor:
        """The features of all samples, ``(n, d)``, which the processes compute together."""
        return self.world.together(self.judge(self.x[self.world.part(len(self.x))]))

    @cached_property
    def moments(self) -> Moments:
        """Mean and covariance of the features; those of data are kept where that saves work."""
        if self.references is not None:
            return self.world.agreed(self.world.first and self.references(self.x).moments)
        moments = StreamingMoments(self.features.shape[1])
        moments.update(self.features)
        return moments.moments()


def frechet(a: Judged, b: Judged) -> float:
    """The Frechet distance, from features where they are computed here and span few dimensions."""
    if a.references is None and b.references is None:
        n, d = a.features.shape
        if min(n, len(b.features)) < d:
            return frechet_distance_of_samples(a.features, b.features)
    return frechet_distance(a.moments, b.moments)


def distances(own: Judged, held_out: Judged, metrics: Sequence[str]) -> dict[str, float]:
    """What was asked for of a set of samples, against held-out data.

    Args:
        own: the samples.
        held_out: the data.
        metrics: names of :data:`~fewstep.evaluation.judging.METRICS`.
    """
    row: dict[str, float] = {}
    if "fd" in metrics:
        row["fd"] = frechet(own, held_out)
    if "swd" in metrics:
        row["swd"] = sliced_wasserstein(own.x, held_out.x)
    if "kid" in metrics:
        row["kid"] = kid(own.features, held_out.features)
    if "pr" in metrics:
        row |= asdict(precision_recall(held_out.features, own.features))
    if "dc" in metrics:
        row |= asdict(density_coverage(held_out.features, own.features))
    return row


def matched(train: Batch, held_out: Batch, rng: np.random.Generator) -> np.ndarray:
    """Indices of as many training samples as held-out ones, of the same labels if there are any.

    Raises:
        UsageError: a label has more held-out samples than training samples.
    """
    order = rng.permutation(len(train))
    label = train.cond.get("label")
    if label is None:
        return order[: len(held_out)]
    wanted = np.bincount(held_out.cond["label"].numpy())
    by_class = label.numpy()[order]
    parts = [order[by_class == k][:count] for k, count in enumerate(wanted)]
    if sum(map(len, parts)) < len(held_out):
        raise UsageError("a label has more held-out samples than training samples")
    return np.concatenate(parts)
