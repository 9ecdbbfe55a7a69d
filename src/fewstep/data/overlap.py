"""Samples that lie in training data and in held-out data as well."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from fewstep.core import UsageError
from fewstep.system.bars import bar

if TYPE_CHECKING:
    from fewstep.data import Dataset

STRETCH = 256
"""Samples that are read at once."""
SOON = 2.0
"""Seconds of a comparison without a bar."""


def shared_samples(train: Iterable[Tensor], held_out: Iterable[Tensor]) -> int:
    """The number of held-out samples that equal a training sample, value by value.

    Args:
        train: batches of training samples, each ``(b, *shape)``.
        held_out: batches of held-out samples, likewise.
    """
    known = [digest for batch in held_out for digest in _digests(batch)]
    wanted = {*known}
    seen = {digest for batch in train for digest in _digests(batch) if digest in wanted}
    return sum(digest in seen for digest in known)


def overlap_note(shared: int, n: int) -> str | None:
    """A sentence on the held-out samples that are training samples too; None without any.

    Args:
        shared: how many there are, as of :func:`shared_samples`.
        n: held-out samples.

    Raises:
        UsageError: they are at least half of the held-out samples, so that distances to these would
            say nothing of unseen data.
    """
    if 2 * shared >= n:
        raise UsageError(
            f"{shared:,} of the {n:,} held-out samples lie in the training data as well, at least "
            "half of them; give data that training does not see, and each sample once"
        )
    verb = "lies" if shared == 1 else "lie"
    sentence = f"{shared:,} of the {n:,} held-out samples {verb} in the training data as well"
    return sentence if shared else None


def compared(train: Dataset, held_out: Dataset) -> str | None:
    """Read two data sets whole, and say what :func:`overlap_note` says of them.

    Raises:
        UsageError: at least half of the held-out samples are training samples.
    """
    total = len(train) + len(held_out)
    with bar("comparing held-out data", "samples", total, after=SOON) as advance:

        def read(data: Dataset) -> Iterator[Tensor]:
            for start in range(0, len(data), STRETCH):
                index = range(start, min(start + STRETCH, len(data)))
                yield data.batch(index).x0
                advance(len(index))

        return overlap_note(shared_samples(read(train), read(held_out)), len(held_out))


def _digests(batch: Tensor) -> Iterator[bytes]:
    for row in np.ascontiguousarray(batch.numpy()):
        yield hashlib.blake2b(row.tobytes(), digest_size=16).digest()
