"""Sliced Wasserstein distance, Rabin et al. 2011; Bonneel et al. 2015, by Monte Carlo."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core import UsageError, entropy
from fewstep.metrics.features import blocks, row_pair


def sliced_wasserstein(
    a: Float[Tensor, " n ..."],
    b: Float[Tensor, " m ..."],
    *,
    projections: int = 512,
    p: int | float = 2,
    seed: int = 0,
) -> float:
    r"""$(E_\phi W_p^p(\phi^T a, \phi^T b))^{1/p}$ over uniform unit directions; at least 0.

    Events are flattened. Between one-dimensional sets of equal size the optimal coupling is by
    rank, so each direction costs two sorts.

    Args:
        a: one set.
        b: the other, as many samples.
        projections: number of directions; the Monte Carlo error falls as its root.
        p: order, at least 1.
        seed: the directions depend on it and on the dimension only.

    Raises:
        UsageError: sizes or dimensions that differ, values that are not finite, p below 1, or no
            projections.
    """
    a, b = row_pair(a, b)
    if len(a) != len(b):
        raise UsageError(f"a has {len(a)} samples and b has {len(b)}; give sets of equal size")
    if p < 1 or projections < 1:
        raise UsageError(f"p={p}, projections={projections}; both must be at least 1")
    # A stream of its own: samples drawn with the same seed would share numbers with the directions.
    rng = torch.Generator().manual_seed(entropy(seed, "sliced wasserstein"))
    directions = torch.randn(projections, a.shape[1], generator=rng, dtype=torch.float64)
    directions = (directions / directions.norm(dim=1, keepdim=True)).to(a.device)
    cost = a.new_zeros(())
    for phi in blocks(directions, len(a)):
        # (projections, n): sorting runs along contiguous memory.
        gap = (phi @ a.T).sort(1).values - (phi @ b.T).sort(1).values
        cost += gap.abs().pow(p).mean(1).sum()
    return float((cost / projections) ** (1 / p))
