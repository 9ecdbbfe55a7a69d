"""Kernel distance (KID), Binkowski et al. 2018 (arXiv:1801.01401), section 4."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from fewstep.core import UsageError, entropy
from fewstep.metrics.features import blocks, row_pair


@dataclass(frozen=True)
class KidEstimate:
    """KID over random subsets.

    Args:
        mean: average over the subsets.
        std: standard deviation over the subsets (divided by their number).
    """

    mean: float
    std: float


def kid(a: Float[Tensor, " n ..."], b: Float[Tensor, " m ..."]) -> float:
    """Unbiased squared MMD under the kernel (x.y / d + 1)^3; n and m may differ.

    Between draws of one law its mean is 0, so there it is often negative.

    Raises:
        UsageError: fewer than 2 samples, values that are not finite, or dimensions that differ.
    """
    return _mmd(*row_pair(a, b))


def kid_subsets(
    a: Float[Tensor, " n ..."],
    b: Float[Tensor, " m ..."],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> KidEstimate:
    """``kid`` of ``subsets`` pairs of random subsets: the mean and the spread papers report.

    Each subset is drawn without replacement, from a generator that depends on ``seed`` only.

    Raises:
        UsageError: as ``kid``, no subsets, or a subset larger than a set or smaller than 2.
    """
    a, b = row_pair(a, b)
    if subsets < 1:
        raise UsageError(f"subsets={subsets}; at least 1 is needed")
    if not 2 <= subset_size <= min(len(a), len(b)):
        raise UsageError(
            f"subset_size={subset_size} with sets of {len(a)} and {len(b)} samples; "
            f"give one from 2 to {min(len(a), len(b))}"
        )
    rng = np.random.default_rng(entropy(seed, "kid"))
    values = [
        _mmd(
            a[rng.choice(len(a), subset_size, replace=False)],
            b[rng.choice(len(b), subset_size, replace=False)],
        )
        for _ in range(subsets)
    ]
    return KidEstimate(float(np.mean(values)), float(np.std(values)))


def _mmd(a: Tensor, b: Tensor) -> float:
    n, m = len(a), len(b)
    within_a = (_kernel_sum(a, a) - _diagonal_sum(a)) / (n * (n - 1))
    within_b = (_kernel_sum(b, b) - _diagonal_sum(b)) / (m * (m - 1))
    return float(within_a + within_b - 2 * _kernel_sum(a, b) / (n * m))


def _kernel(dot: Tensor, dim: int) -> Tensor:
    return (dot / dim + 1) ** 3


def _diagonal_sum(x: Tensor) -> Tensor:
    return _kernel(x.square().sum(1), x.shape[1]).sum()


def _kernel_sum(a: Tensor, b: Tensor) -> Tensor:
    total = a.new_zeros(())
    for part in blocks(a, len(b)):
        total += _kernel(part @ b.T, a.shape[1]).sum()
    return total
