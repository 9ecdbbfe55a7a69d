"""Kernel distance (KID), Binkowski et al. 2018 (arXiv:1801.01401), section 4."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core import UsageError, entropy
from fewstep.metrics.features import blocks, own_products, row_pair
from fewstep.metrics.products import single

WIDE = 256
"""From so many dimensions on, products dominate the time, and subsets take them in float32."""
CACHED = 2**16
"""Kernel values at a time."""


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
    return _mmd(*_centred(*row_pair(a, b)))


def kid_subsets(
    a: Float[Tensor, " n ..."],
    b: Float[Tensor, " m ..."],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> KidEstimate:
    """``kid`` of ``subsets`` pairs of random subsets: the mean and the spread papers report.

    Each subset is drawn without replacement, from a generator that depends on ``seed`` only. In
    many dimensions the products of centred samples are in float32, whose rounding their mean over
    all pairs leaves out.

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
    near_a, near_b = _centred(a, b, single() if a.shape[1] >= WIDE else torch.float64)
    values = [
        _mmd(
            near_a.part(rng.choice(len(a), subset_size, replace=False)),
            near_b.part(rng.choice(len(b), subset_size, replace=False)),
        )
        for _ in range(subsets)
    ]
    return KidEstimate(float(np.mean(values)), float(np.std(values)))


@dataclass(frozen=True)
class _Centred:
    """A set about a centre c: x.y is (x - c).(y - c) + x.c + y.c - c.c.

    Only the first term costs a matrix product, and only it may be rounded to single precision. It
    is the small one, so that the rounding is of what differs between samples.

    Args:
        x: ``(n, d)``, centred.
        along: ``(n,)`` in float64, product of the samples with the centre less half of c.c.
    """

    x: Tensor
    along: Tensor

    def part(self, which: np.ndarray) -> _Centred:
        return _Centred(self.x[which], self.along[which])


def _centred(a: Tensor, b: Tensor, dtype: torch.dtype = torch.float64) -> tuple[_Centred, _Centred]:
    centre = (a.mean(0) + b.mean(0)) / 2
    along = centre @ centre / 2
    one, other = (_Centred((x - centre).to(dtype), x @ centre - along) for x in (a, b))
    return one, other


def _mmd(a: _Centred, b: _Centred) -> float:
    n, m = len(a.x), len(b.x)
    within = _within_sum(a) / (n * (n - 1)) + _within_sum(b) / (m * (m - 1))
    return float(within - 2 * _between_sum(a, b) / (n * m))


def _within_sum(a: _Centred) -> Tensor:
    """Over all pairs of different samples, both ways round."""
    total, dim = a.along.new_zeros(()), a.x.shape[1]
    for rows, product in own_products(a.x):
        total += _kernel_sum(product, a.along[rows], a.along, dim)
        own = a.along[rows]
        total -= _kernel_sum(product.diagonal(rows.start)[:, None], 2 * own, own.new_zeros(1), dim)
    return total


def _between_sum(a: _Centred, b: _Centred) -> Tensor:
    total, end = a.along.new_zeros(()), 0
    for part in blocks(a.x, len(b.x)):
        along = a.along[end : (end := end + len(part))]
        total += _kernel_sum(part @ b.x.T, along, b.along, b.x.shape[1])
    return total


def _kernel_sum(product: Tensor, along_a: Tensor, along_b: Tensor, dim: int) -> Tensor:
    total, right = along_a.new_zeros(()), along_b / dim
    left = along_a[:, None] / dim + 1
    # A few rows at a time stay in the cache.
    rows = max(1, CACHED // product.shape[1])
    for part, add in zip(product.split(rows), left.split(rows), strict=True):
        value = part.double().div(dim).add_(add).add_(right)
        total += (value * value).mul_(value).sum()
    return total
