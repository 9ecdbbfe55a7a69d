"""The score of episodes: rewards and successes with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fewstep.control.rollouts import Episode

Z = 1.959963984540054
"""Of the normal law, so that 95 % lie within."""

RESAMPLES = 2000

Interval = tuple[float, float]


@dataclass(frozen=True)
class Score:
    """What episodes say of a policy.

    Args:
        reward: mean over the episodes of each one's largest reward, with its 95 % interval.
        success: share of the episodes that succeeded, with its 95 % interval.
        episodes: their number.
    """

    reward: float
    reward_interval: Interval
    success: float
    success_interval: Interval
    episodes: int


def score(episodes: Sequence[Episode]) -> Score:
    """The score of episodes."""
    rewards = [one.reward for one in episodes]
    successes = sum(one.success for one in episodes)
    n = len(episodes)
    return Score(
        float(np.mean(rewards)), bootstrap(rewards), successes / n, wilson(successes, n), n
    )


def wilson(successes: int, n: int) -> Interval:
    """The 95 % interval of a share (Wilson 1927)."""
    share, z2 = successes / n, Z * Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(values: Sequence[float], seed: int = 0) -> Interval:
    """The 95 % interval of a mean, from resamples of the values (Efron 1979)."""
    x = np.asarray(values, np.float64)
    chosen = np.random.default_rng(seed).integers(0, len(x), (RESAMPLES, len(x)))
    low, high = np.percentile(x[chosen].mean(1), [2.5, 97.5])
    return float(low), float(high)
