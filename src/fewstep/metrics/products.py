"""Matrix products of the metrics that cost less than in their plain form."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

PANEL = 256
"""Columns of a symmetric product at a time; only the blocks on and below its diagonal are made."""


def scatter(x: Float[Tensor, " n d"]) -> Float[Tensor, " d d"]:
    """``x.T @ x``, on a CPU at half the cost.

    numpy calls BLAS's product of a matrix with its own transpose, which computes one triangle;
    torch has no call for it.
    """
    if x.device.type != "cpu":
        return x.T @ x
    values = x.detach().numpy()
    return torch.from_numpy(values.T @ values)


def congruence(
    a: Float[Tensor, " d d"], lower: Float[Tensor, " d d"], panel: int = PANEL
) -> Float[Tensor, " d d"]:
    """The lower triangle of ``lower.T @ a @ lower``, for symmetric ``a``; zeros far above it.

    A third of the operations of two full products: what the zeros of ``lower`` and the symmetry of
    the result make needless is left out, a panel of columns at a time.
    """
    out = torch.zeros_like(a)
    for i in range(0, len(a), panel):
        rows = lower[i:, i : i + panel].T @ a[i:, i:]
        out[i:, i : i + panel] = (rows @ lower[i:, i:]).T
    return out


def single() -> torch.dtype:
    """float32, or float64 where float32 products are allowed to round their factors further."""
    return torch.float32 if torch.get_float32_matmul_precision() == "highest" else torch.float64


def finite(x: Tensor) -> bool:
    """Whether all values are, in one pass and without a copy."""
    return not x.numel() or all(bool(end.isfinite()) for end in x.aminmax())
