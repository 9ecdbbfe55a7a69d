"""The conditions of a data set in words: what each is, and what its values span."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.conditions import OF_TOKENS, Condition, Image, Label, Mask, Sequence, Text
from fewstep.contract import DataSpec
from fewstep.core import Batch
from fewstep.data.specs import conditions_of
from fewstep.values import lengths_of

Span = tuple[float, float]
"""The smallest and the largest of some numbers."""


class Columns:
    """What the conditions other than ``label`` span, batch by batch.

    Args:
        spec: of the data, which declares its conditions.
    """

    def __init__(self, spec: DataSpec) -> None:
        self.kinds = {k: one for k, one in spec.conditions.items() if k != "label"}
        self._spans: dict[str, Span] = {}

    def add(self, batch: Batch) -> None:
        """Take the samples of a batch into account."""
        cond = conditions_of(batch)
        for name, one in self.kinds.items():
            if isinstance(one, Mask):
                self._widen(name, torch.tensor(lengths_of(cond[name])))
                continue
            self._widen(name, cond[name])
            if isinstance(one, OF_TOKENS):
                self._widen(f"{name}_mask", cond[f"{name}_mask"].sum(1))

    def described(self) -> tuple[tuple[str, str], ...]:
        """Name and description of each condition."""
        return tuple((name, self._words(name, one)) for name, one in self.kinds.items())

    def _widen(self, key: str, values: Tensor) -> None:
        low, high = float(values.min()), float(values.max())
        known = self._spans.get(key, (low, high))
        self._spans[key] = min(low, known[0]), max(high, known[1])

    def _words(self, name: str, one: Condition) -> str:
        low, high = self._spans[name]
        values = f"values in [{low:g}, {high:g}]"
        if isinstance(one, Mask):
            return f"samples of {low:g} to {high:g} positions along the last axis"
        if isinstance(one, Label):
            names = f" ({', '.join(one.names)})" if one.names else ""
            return f"one of {one.classes} classes{names}"
        if isinstance(one, Text):
            least, most = self._spans[f"{name}_mask"]
            return f"a text of {least:g} to {most:g} tokens, {one.length} at most"
        if isinstance(one, Sequence):
            least, most = self._spans[f"{name}_mask"]
            return (
                f"a sequence of {least:g} to {most:g} tokens, {one.length} at most, each of shape "
                f"{one.shape}, {values}"
            )
        kind = "an image" if isinstance(one, Image) else "a vector"
        return f"{kind} of shape {one.shape}, {values}"
