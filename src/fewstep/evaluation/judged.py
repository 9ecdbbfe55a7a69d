"""One set of samples with its features and their moments, and the distance of two."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from fewstep.metrics import (
    Features,
    Moments,
    References,
    StreamingMoments,
    frechet_distance,
    frechet_distance_of_samples,
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
