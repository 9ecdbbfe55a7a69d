"""Improved precision and recall, Kynkaanniemi et al. 2019 (arXiv:1904.06991), equations 1 and 2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewstep.core import UsageError
from fewstep.metrics.features import blocks, row_pair
from fewstep.metrics.neighbours import pairwise


@dataclass(frozen=True)
class PrecisionRecall:
    """Fidelity and coverage, each in [0, 1].

    Args:
        precision: fraction of fakes on the manifold of the reals.
        recall: fraction of reals on the manifold of the fakes.
    """

    precision: float
    recall: float


def precision_recall(
    real: Float[Tensor, " n ..."], fake: Float[Tensor, " m ..."], k: int = 3
) -> PrecisionRecall:
    """Precision and recall, a manifold being the balls from each point to its k-th neighbour.

    A point is not its own neighbour, but a duplicate of it is. Balls are closed.

    Raises:
        UsageError: values that are not finite, dimensions that differ, or k outside [1, size - 1].
    """
    real, fake = row_pair(real, fake, ("real", "fake"))
    if not 1 <= k < min(len(real), len(fake)):
        raise UsageError(
            f"k={k} with {len(real)} real and {len(fake)} fake samples; "
            f"give one from 1 to {min(len(real), len(fake)) - 1}"
        )
    return PrecisionRecall(
        precision=float(_on_manifold(fake, real, k).double().mean()),
        recall=float(_on_manifold(real, fake, k).double().mean()),
    )


def _on_manifold(x: Tensor, points: Tensor, k: int) -> Bool[Tensor, " n"]:
    # k + 1: the nearest of a point is itself, at exactly 0.
    radii = [pairwise(p, points).kthvalue(k + 1).values for p in blocks(points, len(points))]
    radius = torch.cat(radii)
    return torch.cat([(pairwise(p, points) <= radius).any(1) for p in blocks(x, len(points))])
