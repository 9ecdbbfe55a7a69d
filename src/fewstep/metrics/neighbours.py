"""Nearest neighbours: is a sample nearer to the training set than fresh data is?"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core import UsageError
from fewstep.metrics.features import blocks, row_pair

CANDIDATES = 8
"""Number of nearest neighbours in single precision, of which the nearest in double is taken."""


def pairwise(
    a: Float[Tensor, " *batch n d"], b: Float[Tensor, " *batch m d"]
) -> Float[Tensor, " *batch n m"]:
    """Euclidean distances, from differences and not from dot products: a copy is at exactly 0."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def nearest_distance(
    x: Float[Tensor, " n ..."], reference: Float[Tensor, " m ..."]
) -> Float[Tensor, " n"]:
    """Euclidean distance of each of ``x`` to its nearest in ``reference``; float64, at least 0.

    Raises:
        UsageError: an empty set, values that are not finite, or dimensions that differ.
    """
    x, reference = row_pair(x, reference, ("x", "reference"), minimum=1)
    # Dot products find the candidates, many times quicker; differences of these are exact.
    centre = reference.mean(0)
    near, far = (x - centre).float(), (reference - centre).float()
    half, count = far.square().sum(1) / 2, min(CANDIDATES, len(reference))
    nearest = []
    for part, rough in zip(blocks(x, len(reference)), blocks(near, len(reference)), strict=True):
        index = (half - rough @ far.T).topk(count, largest=False).indices
        nearest.append(torch.linalg.vector_norm(part[:, None] - reference[index], dim=2).amin(1))
    return torch.cat(nearest)


def neighbour_ratio(
    samples: Float[Tensor, " n ..."],
    train: Float[Tensor, " m ..."],
    held_out: Float[Tensor, " k ..."],
) -> float:
    """Median nearest-train distance of ``samples`` over that of ``held_out``.

    A check for memorisation: about 1 for fresh draws of the data's law, below 1 when samples are
    nearer to the training set than fresh data is, 0 when at least half are copies.

    Raises:
        UsageError: as ``nearest_distance``, or half of ``held_out`` lies in ``train``.
    """
    fresh = nearest_distance(held_out, train).quantile(0.5)
    if fresh == 0:
        raise UsageError("half of held_out lies in train; give data that was not trained on")
    return float(nearest_distance(samples, train).quantile(0.5).to(fresh.device) / fresh)
