"""What every other module shares: the batch, broadcasting, reductions, derivatives, randomness.

Shapes. Data is ``(b, *event)`` with event ``(c, *space)``; only axis 0 is ever indexed here.
Times are ``(b,)``, running from data (0) to noise (``t_max``).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from fewstep.errors import UsageError

__all__ = [
    "Batch",
    "Cond",
    "Rng",
    "UsageError",
    "entropy",
    "expand",
    "local",
    "normal",
    "null_like",
    "per_sample",
    "same_dropout",
    "uniform",
    "widest",
]

Cond = Mapping[str, Tensor]
"""Conditions by name, batch first; objectives only pass them on, networks declare their keys."""


@dataclass(frozen=True)
class Batch:
    """One batch of data.

    Args:
        x0: clean data ``(b, *event)``, float32, images in [-1, 1].
        cond: conditions by name, each ``(b, ...)``; ``label`` is int64 in [0, k).
        mask: 1 where ragged data is real, broadcastable to ``x0``; used by distances only.
        aux: whatever a method precomputed for these samples.
    """

    x0: Tensor
    cond: Cond = field(default_factory=dict)
    mask: Tensor | None = None
    aux: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x0)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(
            self.x0.to(device),
            {k: v.to(device) for k, v in self.cond.items()},
            None if self.mask is None else self.mask.to(device),
            {k: v.to(device) for k, v in self.aux.items()},
        )


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    """``scale * torch.randn(*shape)`` for first weights; on the device ``meta`` nothing is drawn.

    Models are built there before they are loaded. torch would import its compiler and sympy to draw
    or to multiply, which takes longer than all else that loading does.
    """
    numbers = torch.empty(shape)
    return numbers if numbers.is_meta else numbers.normal_() * scale


def uniform(*shape: int, scale: float = 1.0) -> Tensor:
    """``scale * torch.rand(*shape)`` for first weights, as :func:`normal`."""
    numbers = torch.empty(shape)
    return numbers if numbers.is_meta else numbers.uniform_() * scale


def expand(t: Shaped[Tensor, " b"], x: Float[Tensor, " b *event"]) -> Tensor:
    """``t`` as ``(b, 1, ..., 1)`` in ``x``'s precision, so that it broadcasts against ``x``.

    Scalars of time are computed in float64 and meet the event once, here. Booleans stay booleans.
    """
    t = t if t.dtype == torch.bool else t.to(x.dtype)
    return t.reshape(-1, *[1] * (x.ndim - 1))


def per_sample(
    error: Float[Tensor, " b *event"], mask: Tensor | None = None
) -> Float[Tensor, " b"]:
    """Mean over the event; with a mask, over the unmasked part of it."""
    if mask is None:
        return error.flatten(1).mean(1)
    mask = mask.expand_as(error).flatten(1)
    return (error.flatten(1) * mask).sum(1) / mask.sum(1)


def null_like(value: Tensor, null: Tensor | float) -> Tensor:
    """A condition's null, ``(...)`` without a batch or one number, as a batch like ``value``."""
    if isinstance(null, Tensor) and null.ndim:
        return null.to(value.device, value.dtype).expand_as(value)
    return torch.full_like(value, null.item() if isinstance(null, Tensor) else null)


@contextmanager
def same_dropout(x: Tensor) -> Iterator[None]:
    """Rewind the generator of ``x``'s device on exit, so that what follows draws the same masks.

    OpenAI's PyTorch code rewinds the CPU's generator only, which does nothing for masks on a GPU.
    """
    device = x.device
    module: Any = torch.random if device.type == "cpu" else torch.get_device_module(device)
    args = () if device.type in {"cpu", "mps"} else (device,)
    state = module.get_rng_state(*args)
    yield
    module.set_rng_state(state, *args)


def local(tensor: Tensor) -> Tensor:
    """This process's rows of a sharded tensor; any other tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore[reportAttributeAccessIssue]


def widest(device: torch.device | str) -> torch.dtype:
    """The widest float of a device: float64, or float32 on mps, which has no other."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def entropy(seed: int, *keys: int | str) -> int:
    """A 64-bit seed from a seed and keys; strings count by their CRC-32, never by ``hash()``."""
    words = [zlib.crc32(k.encode()) if isinstance(k, str) else k for k in keys]
    return int(np.random.SeedSequence((seed, *words)).generate_state(1, np.uint64)[0])


class Rng(torch.Generator):
    """The generator of one loss: a function of (seed, step, phase, shard), so nothing to resume.

    ``common`` leaves out the shard: for draws that all ranks must share.
    """

    def __new__(
        cls, seed: int, step: int, phase: str, shard: int = 0, device: str | torch.device = "cpu"
    ) -> Rng:
        """Allocate on ``device``."""
        return super().__new__(cls, device)  # pyright: ignore[reportCallIssue]

    def __init__(
        self, seed: int, step: int, phase: str, shard: int = 0, device: str | torch.device = "cpu"
    ) -> None:
        self.manual_seed(entropy(seed, step, phase, shard))
        self.common = torch.Generator(device)
        # A word of its own: SeedSequence pads with zeros, so leaving shard 0 out changes nothing.
        self.common.manual_seed(entropy(seed, step, phase, "common"))
