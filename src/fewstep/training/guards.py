"""What stands between a bad gradient and the weights."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor, nn


class LossScale:
    """Dynamic loss scaling for fp16; any other precision has the scale 1.

    The decision is made on the norm of the whole gradient, which all processes share, so that
    they stay in step; torch's own scaler looks at each process's shard.

    Args:
        precision: of the run.
    """

    def __init__(self, precision: str) -> None:
        self.dynamic = precision == "fp16"
        self.value = 2.0**10 if self.dynamic else 1.0
        self.since = 0

    def undo(self, parameters: Sequence[nn.Parameter]) -> None:
        """Divide the gradients by the scale."""
        if self.value != 1:
            gradients = [p.grad for p in parameters if p.grad is not None]
            torch._foreach_mul_(gradients, 1 / self.value)  # pyright: ignore[reportPrivateImportUsage]

    def adapt(self, finite: bool) -> bool:
        """Halve after an overflow, double after 2,000 steps without; returns ``finite``."""
        if self.dynamic:
            self.since = self.since + 1 if finite else 0
            if not finite:
                self.value = max(1.0, self.value / 2)
            elif self.since % 2000 == 0:
                self.value *= 2
        return finite

    def state(self) -> tuple[float, int]:
        """Scale, and good steps since the last overflow."""
        return self.value, self.since


class Spikes:
    """Whether a gradient's norm is like those before it.

    Args:
        factor: largest norm over the median of the last 100 accepted ones; 0 allows everything.
    """

    WINDOW = 100
    LEAST = 20
    """Norms that must be known before one is refused."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.norms: list[float] = []

    def allow(self, norm: Tensor) -> bool:
        """Judge a norm, and remember it if it is accepted."""
        if not self.factor:
            return True
        value = float(norm)
        if len(self.norms) >= self.LEAST and value > self.factor * median(self.norms):
            return False
        self.norms = [*self.norms, value][-self.WINDOW :]
        return True
