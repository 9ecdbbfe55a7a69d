"""Conditions that training drops, and the draws of methods that noise data to one time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.contract import DataSpec, Guidance
from fewstep.core import Batch, Cond, Rng, null_like


@dataclass(frozen=True)
class ConditionDrop:
    """Replace conditions by null for a share of the samples: classifier-free guidance's training.

    Args:
        probability: of a sample losing its conditions.
        null: their values there by key: tensors without a batch, as
            :attr:`fewstep.contract.DataSpec.nulls` has them, or numbers.
    """

    probability: float
    null: Mapping[str, Tensor | float]

    def draw(self, b: int, rng: torch.Generator) -> Tensor:
        """Which samples lose them: bool ``(b,)``."""
        return torch.rand(b, generator=rng, device=rng.device) < self.probability

    def apply(self, cond: Cond, dropped: Tensor) -> Cond:
        """The conditions with nulls where ``dropped``."""
        return {
            key: torch.where(
                dropped.reshape(-1, *[1] * (value.ndim - 1)),
                null_like(value, self.null[key]),
                value,
            )
            if key in self.null
            else value
            for key, value in cond.items()
        }


def guidance_of(drop: ConditionDrop | None, data: DataSpec) -> Guidance | None:
    """The guidance of a model that was trained with these conditions dropped; None if none were."""
    if drop is None or drop.probability <= 0:
        return None
    every = drop.null.keys() >= data.nulls.keys()
    return Guidance(keys=None if every else tuple(drop.null))


def conditions(cond: Cond, drop: ConditionDrop | None, dropped: Tensor | None) -> Cond:
    """Return the conditions for the model, with null in the samples to drop."""
    return cond if drop is None or dropped is None else drop.apply(cond, dropped)


class Draws(NamedTuple):
    """``t`` and ``dropped`` are ``(b,)``, and ``noise`` has the shape of the data."""

    t: Tensor
    noise: Tensor
    dropped: Tensor | None = None


def draw_noised(batch: Batch, t: Tensor, drop: ConditionDrop | None, rng: Rng) -> Draws:
    """Draw noise for the times ``t``, and the samples whose conditions are dropped."""
    noise = torch.randn(batch.x0.shape, generator=rng, device=rng.device, dtype=batch.x0.dtype)
    return Draws(t, noise, drop.draw(len(batch), rng) if drop else None)
