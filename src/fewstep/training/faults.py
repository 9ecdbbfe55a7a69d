"""Samples whose values are not finite, looked for where a gradient is not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from fewstep.core import Batch
from fewstep.data.pairs import Paired
from fewstep.data.parts import Part

SHOWN = 5
"""Samples that a sentence names."""


def unsound(batches: Iterable[Batch], indices: Iterable[np.ndarray]) -> list[int]:
    """The samples with values, conditions or precomputed values that are not finite.

    Args:
        batches: of one step.
        indices: int64 ``(b,)`` for each batch, which samples of the data it holds.

    Returns:
        Their indices in the data, ascending.
    """
    rows: set[int] = set()
    for batch, index in zip(batches, indices, strict=True):
        sound = torch.ones(len(batch), dtype=torch.bool, device=batch.x0.device)
        for value in (batch.x0, *batch.cond.values(), *batch.aux.values()):
            sound &= value.reshape(len(batch), -1).isfinite().all(1)
        rows |= {*index[(~sound).cpu().numpy()].tolist()}
    return sorted(rows)


class Unsound:
    """The samples with values that are not finite which a training has met.

    Args:
        data: what is trained on.
    """

    def __init__(self, data: Any) -> None:
        self.data = data
        self.rows: dict[str, list[list[int]]] = {}
        self.said: set[int] = set()
        self.unsaid: set[int] = set()

    def good(self, phase: str) -> None:
        """Take note of an update that was made."""
        self.rows[phase] = []

    def bad(self, phase: str, samples: list[int]) -> None:
        """Take note of an update that was skipped, and of such samples in its batches."""
        self.rows.setdefault(phase, []).append(samples)
        self.unsaid |= {*samples} - self.said

    def cause(self, phase: str) -> str | None:
        """A sentence on such samples where all updates that a phase skipped in a row met some."""
        rows = self.rows.get(phase, [])
        return named(self.data, sorted({*chain(*rows)})) if rows and all(rows) else None

    def news(self) -> str | None:
        """A sentence on the samples that no sentence has named yet; None without any."""
        new, self.unsaid = self.unsaid, set()
        self.said |= new
        return named(self.data, sorted(new)) if new else None


def named(data: Any, indices: Sequence[int]) -> str:
    """A sentence on such samples: ``sample 1017 of FILE has values that are not finite``."""
    places = [_place(data, index) for index in indices[:SHOWN]]
    where, name = places[0][0], ", ".join(str(index) for _, index in places)
    more = f" and {len(indices) - SHOWN:,} more" if len(indices) > SHOWN else ""
    if len(indices) == 1:
        return f"sample {name} of {where} has values that are not finite"
    return f"samples {name}{more} of {where} have values that are not finite"


def _place(data: Any, index: int) -> tuple[str, int]:
    """The file that a sample lies in, or what it is called without one, and its index there."""
    while isinstance(data, Part | Paired):
        if isinstance(data, Part):
            data, index = data.whole, int(data.index[index])
        else:
            data, index = data.data, index % len(data.data)
    return str(getattr(data, "path", None) or "the data"), index
