"""Which points lie in which balls, each reaching to its centre's k-th neighbour.

Matrix products decide all but the pairs that their rounding leaves open; differences, which see
that a copy is at exactly 0, decide those. So the answers are those of differences throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fewstep.metrics.features import blocks, own_products
from fewstep.metrics.neighbours import pairwise
from fewstep.metrics.products import single

SPARE = 8
"""How many neighbours beyond the k-th are looked at for the k-th."""
OPEN = 0.05
"""The share of open pairs above which a finer rounding, and at last differences, decide all."""


class Balls:
    """The closed balls of a set of points.

    Args:
        points: their centres, float64.
        k: the radius is the distance of the k-th nearest other point; a copy is another point.
        frame: what the points are centred and scaled by before they are rounded.
    """

    def __init__(self, points: Float[Tensor, " n d"], k: int, frame: Frame) -> None:
        self.points, self.k, self.frame = points, k, frame
        self._rounded: dict[torch.dtype, _Rounded] = {}
        self._bounds: dict[torch.dtype, _Bounds] = {}
        self._exact = points.new_full((len(points),), torch.nan)

    def rounded(self, dtype: torch.dtype) -> _Rounded:
        """The points in a precision."""
        if dtype not in self._rounded:
            self._rounded[dtype] = _rounded(self.points, self.frame, dtype)
        return self._rounded[dtype]

    def decided(
        self, x: Tensor, near: _Rounded, product: Tensor, own: slice
    ) -> Bool[Tensor, " m n"] | None:
        """Whether each of ``x`` lies in each of the balls ``own``; None where too many are open.

        Args:
            x: in float64.
            near: ``x`` rounded.
            product: of ``near`` and the rounded centres.
            own: which balls.
        """
        dtype = product.dtype
        mine, bounds = self.rounded(dtype).part(own), self._radii_between(dtype)
        twice = 2 * product
        inside = twice >= near.high[:, None] + (mine.high - bounds.low[own])
        outside = twice < near.low[:, None] + (mine.low - bounds.high[own])
        i, j = (~(inside | outside)).nonzero().unbind(1)
        if len(i) > OPEN * inside.numel():
            return None
        j_own = j + own.start
        inside[i, j] = _apart(x, self.points, i, j_own) <= self._radii(j_own, bounds)
        return inside

    def by_differences(self, x: Tensor, own: slice) -> Bool[Tensor, " m n"]:
        """What ``decided`` says, at the cost of all differences."""
        for part in blocks(torch.arange(own.start, own.stop), len(self.points)):
            which = part[self._exact[part].isnan()]
            self._exact[which] = self._radii_by_differences(which)
        return pairwise(x, self.points[own]) <= self._exact[own]

    def _radii_between(self, dtype: torch.dtype) -> _Bounds:
        if dtype not in self._bounds:
            self._bounds[dtype] = _bounds(self.rounded(dtype), self.k)
        return self._bounds[dtype]

    def _radii(self, which: Int[Tensor, " n"], bounds: _Bounds) -> Float[Tensor, " n"]:
        unknown = which[self._exact[which].isnan()].unique()
        near, far = bounds.near[unknown], bounds.far[unknown]
        # Only those whose bounds meet the radius's may be the k-th; the others are on one side.
        inner = far < bounds.low[unknown, None]
        place, column = (~inner & (near <= bounds.high[unknown, None])).nonzero().unbind(1)
        distance = torch.full_like(near, torch.inf, dtype=torch.float64).masked_fill_(inner, -1.0)
        neighbour = bounds.index[unknown[place], column]
        distance[place, column] = _apart(self.points, self.points, unknown[place], neighbour)
        self._exact[unknown] = distance.kthvalue(self.k + 1).values
        # What is not among those looked at may be as near as the last of them seems.
        unsure = unknown[near[:, -1] <= bounds.high[unknown]] if bounds.partial else unknown[:0]
        unsure = unsure[self._exact[unsure] != 0]
        self._exact[unsure] = self._radii_by_differences(unsure)
        return self._exact[which]

    def _radii_by_differences(self, which: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        # k + 1: the nearest of a point is itself, at exactly 0.
        parts = [
            pairwise(part, self.points).kthvalue(self.k + 1).values
            for part in blocks(self.points[which], len(self.points))
            if len(part)
        ]
        return torch.cat([self.points.new_empty(0), *parts])


def meetings(
    x: Balls, y: Balls, both: bool = True
) -> Iterator[tuple[slice, Bool[Tensor, " part m"], Bool[Tensor, " m part"] | None]]:
    """Yield consecutive parts of the points ``x``, the balls of ``y`` they are in, and vice versa.

    Args:
        x: some points.
        y: others, of the same frame.
        both: whether the balls of ``x`` are of interest.
    """
    end, all_y = 0, slice(0, len(y.points))
    for part in blocks(x.points, len(y.points)):
        which = slice(end, end := end + len(part))
        for dtype in dict.fromkeys((single(), torch.float64)):
            near, other = x.rounded(dtype).part(which), y.rounded(dtype)
            product = near.x @ other.x.T
            there = y.decided(part, near, product, all_y)
            back = x.decided(y.points, other, product.T, which) if both else None
            if there is not None and (back is not None or not both):
                break
        else:
            there = y.by_differences(part, all_y)
            back = x.by_differences(y.points, which) if both else None
        yield which, there, back


@dataclass(frozen=True)
class Frame:
    """What sets are centred and scaled by, so that no square is out of a precision's range."""

    centre: Float[Tensor, " d"]
    scale: float


def frame(a: Float[Tensor, " n d"], b: Float[Tensor, " m d"]) -> Frame:
    """The mean of the first set, and the largest magnitude of both."""
    ends = torch.stack([end for x in (a, b) for end in x.aminmax()])
    return Frame(a.mean(0), float(ends.abs().amax()) or 1.0)


@dataclass(frozen=True)
class _Rounded:
    """A set in a precision.

    The squared distance of two points is at least the sum of their ``low`` less twice their
    product, and at most the sum of their ``high`` less that.
    """

    x: Tensor
    low: Tensor
    high: Tensor

    def part(self, which: slice) -> _Rounded:
        return _Rounded(self.x[which], self.low[which], self.high[which])


def _rounded(points: Float[Tensor, " n d"], frame: Frame, dtype: torch.dtype) -> _Rounded:
    x = points.sub(frame.centre).div_(frame.scale).to(dtype)
    square = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64).square().to(dtype)
    # A product of d terms is off by at most d roundings of the product of the two norms (Higham
    # 2002, eq. 3.5), which is at most half the sum of their squares; the few others are of the
    # factors, the squares and the sums. What underflows is in the last term.
    dim, kind = points.shape[1], torch.finfo(dtype)
    share, least = (dim + 16) * kind.eps / 2, dim * kind.tiny
    return _Rounded(x, square * (1 - share) - least, square * (1 + share) + least)


@dataclass(frozen=True)
class _Bounds:
    """What a precision tells of the squared radii of ``n`` points.

    Args:
        low: at most the squared radius.
        high: at least that.
        index: of the points that seem nearest, the centre among them, in their order.
        near: at most the squared distances of these; no other point is nearer than the last.
        far: at least the squared distances of these.
        partial: whether there are other points.
    """

    low: Tensor
    high: Tensor
    index: Tensor
    near: Tensor
    far: Tensor
    partial: bool


def _bounds(points: _Rounded, k: int) -> _Bounds:
    n = len(points.x)
    count, near, index = min(k + 1 + SPARE, n), [], []
    for rows, product in own_products(points.x):
        nearest = (points.low - 2 * product).topk(count, largest=False)
        near.append(nearest.values + points.low[rows, None])
        index.append(nearest.indices)
    near, index = torch.cat(near), torch.cat(index)
    spread = points.high - points.low
    far = near + (spread[:, None] + spread[index])
    return _Bounds(near[:, k], far[:, : k + 1].amax(1), index, near, far, count < n)


def _apart(
    x: Float[Tensor, " n d"], y: Float[Tensor, " m d"], i: Int[Tensor, " p"], j: Int[Tensor, " p"]
) -> Float[Tensor, " p"]:
    """Distances of ``x[i]`` from ``y[j]``, to the bit those of ``pairwise``."""
    pairs = zip(blocks(i, x.shape[1]), blocks(j, x.shape[1]), strict=True)
    return torch.cat([pairwise(x[p][:, None], y[q][:, None])[:, 0, 0] for p, q in pairs])
