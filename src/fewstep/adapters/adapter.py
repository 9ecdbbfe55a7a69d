"""An adapter as a value: two small matrices and a scale for each layer that it changes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UsageError


@dataclass(frozen=True)
class Factors:
    """The change of one weight, (alpha / rank) up down.

    Args:
        down: ``(rank, in)`` of a linear map, or ``(rank, in, *kernel)`` of a convolution.
        up: ``(out, rank)``, or ``(out, rank, 1, ...)``.
        alpha: finite and not 0.

    Raises:
        UsageError: the shapes do not fit together, or a number is not finite.
    """

    down: Tensor
    up: Tensor
    alpha: float

    def __post_init__(self) -> None:
        shapes = f"down {tuple(self.down.shape)}, up {tuple(self.up.shape)}"
        if min(self.down.ndim, self.up.ndim) < 2 or not self.down.numel() or not self.up.numel():
            raise UsageError(f"expected two matrices with numbers in them, got {shapes}")
        if self.up.shape[1] != len(self.down) or any(n != 1 for n in self.up.shape[2:]):
            raise UsageError(
                f"expected up to be (out, rank) where down is (rank, in), got {shapes}"
            )
        floating = self.down.is_floating_point() and self.up.is_floating_point()
        if not floating or not (self.down.isfinite().all() and self.up.isfinite().all()):
            raise UsageError("some of its numbers are not finite")
        if not math.isfinite(self.alpha) or self.alpha == 0:
            raise UsageError(f"its alpha is {self.alpha}")

    @property
    def rank(self) -> int:
        """The rank of the change, at most."""
        return len(self.down)

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""
        return self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight that is changed."""
        return (len(self.up), *self.down.shape[1:])

    def delta(self) -> Tensor:
        """The change, in float64 and of the weight's shape."""
        product = self.up.double().flatten(1) @ self.down.double().flatten(1)
        return (self.scale * product).reshape(self.shape)

    def with_alpha(self, alpha: float) -> Factors:
        """The same change with another alpha, not 0, which is made up for in ``up``."""
        if self.alpha == alpha:
            return self
        wide = torch.promote_types(self.up.dtype, torch.float32)
        return replace(self, up=self.up.to(wide) * (self.alpha / alpha), alpha=float(alpha))


@dataclass(frozen=True)
class Adapter:
    """Low-rank changes of a network's weights.

    Args:
        layers: by the name of the layer in the network.
        source: where it is from, in messages.
        flat: names are kohya's, in which every dot is an underscore.
        model: what the adapted network is as a model of this library, as ``config.json`` has it
            (``denoiser`` and the contract); empty where nobody knows.
    """

    layers: Mapping[str, Factors]
    source: str = "the adapter"
    flat: bool = False
    model: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.layers:
            raise UsageError(f"{self.source} holds no adapter: it changes no layer")

    @property
    def rank(self) -> int:
        """The largest rank of its layers."""
        return max(factors.rank for factors in self.layers.values())


def some(names: Iterable[str], shown: int = 5) -> str:
    """The first few of the names, and how many more there are."""
    every = [*names]
    more = f" and {len(every) - shown} more" if len(every) > shown else ""
    return ", ".join(every[:shown]) + more
