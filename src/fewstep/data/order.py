"""The order in which training sees the data: a function of seed and step, with no state to resume.

The stream of one run is a permutation of the data for epoch 0, another for epoch 1, and so on;
step k hands its shards consecutive stretches of it. So a rank and an accumulated microbatch are
interchangeable, and no sample is dropped at the end of an epoch.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fewstep.core import UsageError, entropy


@lru_cache(maxsize=4)  # training and evaluation sets, each across an epoch's border
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(entropy(seed, "order", epoch)))
    order = rng.permutation(n).astype(np.int64)
    order.setflags(write=False)
    return order


def positions(
    seed: int, step: int, batch: int, n: int, shard: int = 0, shards: int = 1
) -> np.ndarray:
    """Data indices of one shard of one step.

    Args:
        seed: of the run, at least 0.
        step: at least 0.
        batch: samples per shard; may exceed ``n``.
        n: length of the data.
        shard: in [0, ``shards``).
        shards: ranks times accumulated microbatches.

    Returns:
        int64 ``(batch,)``, each in [0, ``n``): the stream from ``(step * shards + shard) * batch``.

    Raises:
        UsageError: an argument is out of its range.
    """
    if min(seed, step) < 0 or min(batch, n) < 1 or not 0 <= shard < shards:
        raise UsageError(
            f"no batch of {batch} from {n} samples at seed {seed}, step {step}, shard {shard} of "
            f"{shards}; seed and step start at 0, batch and n at 1, and shard lies in [0, shards)"
        )
    start = (step * shards + shard) * batch
    stop = start + batch
    parts = []
    for epoch in range(start // n, (stop - 1) // n + 1):
        first = epoch * n
        order = _permutation(seed, epoch, n)
        parts.append(order[max(start - first, 0) : min(stop - first, n)])
    return np.concatenate(parts)
