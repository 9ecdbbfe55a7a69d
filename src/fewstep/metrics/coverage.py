"""Fidelity and coverage by nearest neighbours, each ball reaching to a point's k-th neighbour.

Precision and recall: Kynkaanniemi et al. 2019 (arXiv:1904.06991), equations 1 and 2. Density and
coverage: Naeem et al. 2020 (arXiv:2002.09797), equations 3 and 4. A point is not its own neighbour,
but a duplicate of it is. Balls are closed everywhere, as the first paper has them; the second
paper's code takes them open, which differs where a distance equals a radius, as between copies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core import UsageError
from fewstep.metrics.balls import Balls, frame, meetings
from fewstep.metrics.features import row_pair


@dataclass(frozen=True)
class PrecisionRecall:
    """Fidelity and coverage, each in [0, 1].

    Args:
        precision: fraction of fakes on the manifold of the reals.
        recall: fraction of reals on the manifold of the fakes.
    """

    precision: float
    recall: float


@dataclass(frozen=True)
class DensityCoverage:
    """Fidelity and coverage that one outlier cannot change much.

    Args:
        density: mean number of balls of reals around a fake, over k: 1 on average for fresh draws
            of the data's law, more where fakes crowd, never below 0.
        coverage: fraction of reals with a fake in their ball, in [0, 1].
    """

    density: float
    coverage: float


def precision_recall(
    real: Float[Tensor, " n ..."], fake: Float[Tensor, " m ..."], k: int = 3
) -> PrecisionRecall:
    """Precision and recall, a manifold being the balls of all its points.

    Raises:
        UsageError: values that are not finite, dimensions that differ, or k outside [1, size - 1].
    """
    real, fake = row_pair(real, fake, ("real", "fake"))
    _check_k(k, {"real": real, "fake": fake})
    both = frame(real, fake)
    precise, recalled = [], torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for _, there, back in meetings(Balls(fake, k, both), Balls(real, k, both)):
        precise.append(there.any(1))
        if back is not None:
            recalled |= back.any(1)
    return PrecisionRecall(
        precision=float(torch.cat(precise).double().mean()),
        recall=float(recalled.double().mean()),
    )


def density_coverage(
    real: Float[Tensor, " n ..."], fake: Float[Tensor, " m ..."], k: int = 5
) -> DensityCoverage:
    """Density and coverage; the balls are those of the reals only.

    Raises:
        UsageError: values that are not finite, dimensions that differ, or k outside
            [1, number of reals - 1].
    """
    real, fake = row_pair(real, fake, ("real", "fake"), minimum=1)
    _check_k(k, {"real": real})
    both = frame(real, fake)
    count, covered = 0, torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for _, there, _ in meetings(Balls(fake, k, both), Balls(real, k, both), both=False):
        count += int(there.sum())
        covered |= there.any(0)
    return DensityCoverage(density=count / len(fake) / k, coverage=float(covered.double().mean()))


def _check_k(k: int, sets: dict[str, Tensor]) -> None:
    largest = min(map(len, sets.values())) - 1
    if not 1 <= k <= largest:
        sizes = " and ".join(f"{len(x)} {name}" for name, x in sets.items())
        raise UsageError(f"k={k} with {sizes} samples; give one from 1 to {largest}")
