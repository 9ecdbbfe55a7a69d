"""Jumps of denoisers of two times: errors of their estimates, and how users sample by them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.contract import Sampling, Start
from fewstep.core import Batch, Cond, UsageError, expand
from fewstep.models import AbstractDenoiser
from fewstep.objectives.shared.distances import Distance, l2
from fewstep.paths import Event, Path, Time


def jumped(denoiser: AbstractDenoiser, x: Event, t: Time, s: Time, cond: Cond) -> Event:
    """Jump from ``t`` to ``s``; where s = t return ``x``, as on clean data transport is 0/0."""
    moves = s < t
    there = denoiser.jump(x, torch.where(moves, t, denoiser.path.t_max), s, cond)
    return torch.where(expand(moves, x), there, x)


def estimate_error(
    student: AbstractDenoiser, x: Event, t: Time, batch: Batch, _: Distance
) -> Tensor:
    """The squared error ``(b,)`` of D(x, t, t), as in CTM's denoising term."""
    return l2(student(x, t, None, batch.cond), batch.x0, batch.mask)


def jump_error(
    student: AbstractDenoiser, x: Event, t: Time, batch: Batch, distance: Distance
) -> Tensor:
    """The distance ``(b,)`` of the jump to ``t_min`` from the data, as in Consistency Policy."""
    end = torch.full_like(t, student.path.t_min)
    return distance(jumped(student, x, t, end, batch.cond), batch.x0, batch.mask)


def with_gamma(path: Path, gamma: float, std: float | None, chain: Sequence[float]) -> Sampling:
    """Jumps between any two times, with a share of fresh noise between them.

    Args:
        path: of the model.
        gamma: the share, in [0, 1].
        std: of the noise that a sample starts from; the path's own if not given.
        chain: descending times below ``t_max``, at which further calls of one sample are made.

    Raises:
        UsageError: the deviation is not above 0, or the times do not descend within the path.
    """
    first = path.t_max
    if std is not None and not 0 < std < math.inf:
        raise UsageError(f"the noise that samples start from needs a deviation above 0, got {std}")
    if any(not 0 < low < high for high, low in pairwise((first, *chain))):
        raise UsageError(f"the chain must descend from below {first} and stay above 0, got {chain}")
    times: dict[int, tuple[float, ...]] = {1: (first,)}
    if chain:
        times[1 + len(chain)] = (first, *chain)
    start = Start(t=first, std=path.start_std() if std is None else std)
    return Sampling(start=start, kind="gamma", times=times, any_times=True, gamma=gamma)
