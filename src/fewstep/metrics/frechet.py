"""Frechet distance between Gaussian fits; Heusel et al. 2017 (arXiv:1706.08500), equation 6."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from fewstep.core import UsageError
from fewstep.metrics.features import Features, flatten, row_pair, rows
from fewstep.metrics.products import finite, scatter
from fewstep.metrics.roots import trace_of_root, trace_of_root_between


@dataclass(frozen=True, eq=False)
class Moments:
    """What the Frechet distance knows of a set: float64, on the CPU.

    Args:
        n: number of samples.
        mean: ``(d,)``.
        cov: ``(d, d)``, unbiased (divided by n - 1).
    """

    n: int
    mean: Float[Tensor, " d"]
    cov: Float[Tensor, " d d"]


class StreamingMoments:
    """Mean and covariance of features that arrive in batches, in one pass.

    Batches are merged as in Chan, Golub and LeVeque (1979): by means and centred scatter matrices,
    never by E[x x^T] - mean mean^T, which cancels when the mean is large.
    """

    def __init__(self, dim: int) -> None:
        self.n = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, features: Float[Tensor, " b *f"]) -> None:
        """Add a batch of at least one sample.

        Raises:
            UsageError: empty, not finite, or of another dimension.
        """
        x = rows(features, "features", minimum=1)
        self._same_dim(x.shape[1])
        mean = x.mean(0)
        centred = x - mean
        self._add(len(x), mean.cpu(), scatter(centred).cpu())

    def merge(self, other: StreamingMoments) -> None:
        """Add everything ``other`` has seen, as one of several workers.

        Raises:
            UsageError: the dimensions differ.
        """
        self._same_dim(len(other.mean))
        if other.n:
            self._add(other.n, other.mean, other.scatter)

    def moments(self) -> Moments:
        """The moments of everything seen so far.

        Raises:
            UsageError: fewer than 2 samples were seen.
        """
        if self.n < 2:
            raise UsageError(f"{self.n} samples seen; a covariance needs at least 2")
        return Moments(self.n, self.mean.clone(), self.scatter / (self.n - 1))

    def _same_dim(self, dim: int) -> None:
        if dim != len(self.mean):
            raise UsageError(f"features have {dim} dimensions, expected {len(self.mean)}")

    def _add(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.n + n
        delta = mean - self.mean
        self.scatter.add_(scatter).addr_(delta, delta, alpha=self.n * n / total)
        self.mean.add_(delta, alpha=n / total)
        self.n = total


def reduce_moments(moments: StreamingMoments) -> StreamingMoments:
    """What all ranks of ``torch.distributed`` have seen together, the same on each.

    Every rank must call it, one that saw nothing too. Without a process group, or in a group of
    one, it is what was given. Sums are over float64, of centred scatter as in ``merge``.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return moments
    # nccl sums on its GPUs only.
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"

    def total(value: Tensor) -> Tensor:
        value = value.to(device)
        dist.all_reduce(value)
        return value.cpu()

    streaming = StreamingMoments(len(moments.mean))
    streaming.n = int(total(torch.tensor(moments.n)))
    streaming.mean = total(moments.mean * moments.n) / max(streaming.n, 1)
    delta = moments.mean - streaming.mean
    streaming.scatter = total(moments.scatter + torch.outer(delta, delta) * moments.n)
    return streaming


@torch.no_grad()
def moments_of(batches: Iterable[Float[Tensor, " ..."]], features: Features) -> Moments:
    """Moments of the features of all ``batches`` ``(b, *event)``; one is held at a time.

    Raises:
        UsageError: fewer than 2 samples in all, or features that are not finite.
    """
    stream: StreamingMoments | None = None
    for x in batches:
        feature = features(x).flatten(1)
        if stream is None:
            stream = StreamingMoments(feature.shape[1])
        stream.update(feature)
    if stream is None:
        raise UsageError("no batches given; moments need at least 2 samples")
    return stream.moments()


def frechet_distance(a: Moments, b: Moments) -> float:
    r"""$|\mu_a - \mu_b|^2 + \mathrm{tr}(S_a + S_b) - 2 \sum \sqrt{\mathrm{eig}(S_a S_b)}$, squared.

    As published values are: no root is taken. Not negative but for rounding, symmetric, and biased
    upwards when the moments are of few samples, so compare equal counts only.

    Raises:
        UsageError: the dimensions differ, or a moment is not finite.
    """
    if a.mean.shape != b.mean.shape:
        raise UsageError(f"moments of {len(a.mean)} and of {len(b.mean)} dimensions")
    if not all(finite(m) for m in (a.mean, a.cov, b.mean, b.cov)):
        raise UsageError("moments are not finite")
    root = trace_of_root(a.cov, b.cov)
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * root)


def frechet_distance_of_samples(a: Float[Tensor, " n ..."], b: Float[Tensor, " m ..."]) -> float:
    """``frechet_distance`` of the moments of two sets of features.

    Where either set has fewer samples than dimensions, no covariance is computed: the cost is that
    of a matrix of ``n`` rows and ``m`` columns, not of one of a row and a column a dimension.

    Raises:
        UsageError: fewer than 2 samples, values that are not finite, or dimensions that differ.
    """
    a, b = row_pair(a, b)
    if min(len(a), len(b)) >= a.shape[1]:
        return frechet_distance(*(moments_of([x], flatten) for x in (a, b)))
    spread = sum(x.var(0).sum() for x in (a, b))
    root = trace_of_root_between(a, b)
    return float((a.mean(0) - b.mean(0)).square().sum() + spread - 2 * root)
