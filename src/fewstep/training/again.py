"""Blocks that forget what is inside them, and compute it again when a backward pass asks for it.

``torch.utils.checkpoint`` does the same, but brings torch's compiler, 70 MiB of code, into a
process that compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import get_device_states, set_device_states


class _Slot:
    """Where an operation finds what it had saved; it lives as long as it may be asked for."""

    value: Tensor | None = None


class _Enough(Exception):
    """All that was saved is there again; what is left of the block is of no use."""


def again(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``function(*args, **kwargs)``; with the same dropout and precision when it is run again."""
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)
    slots: list[ReferenceType[_Slot]] = []
    drawn, (devices, states) = torch.get_rng_state(), get_device_states(*args)
    kinds = {"cpu", *(x.device.type for x in args if isinstance(x, Tensor))}
    casts = [
        torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        for kind in kinds
    ]
    kind = next(iter(kinds - {"cpu"}), "cuda")

    def drop(_: Tensor) -> _Slot:
        slot = _Slot()
        slots.append(ref(slot))
        return slot

    def find(slot: _Slot) -> Tensor:
        if slot.value is None:
            fill()
        value, slot.value = slot.value, None
        assert value is not None
        return value

    def fill() -> None:
        coming = iter(slots)
        left = len(slots)

        def put(x: Tensor) -> Tensor:
            nonlocal left
            # An operation that kept its own answer, with its history, would keep itself alive.
            x = x.detach()
            slot = next(coming)()
            if slot is not None:
                slot.value = x
            left -= 1
            if not left:
                raise _Enough
            return x

        with (
            torch.random.fork_rng(devices, device_type=kind),
            torch.enable_grad(),
            saved_tensors_hooks(put, lambda x: x),
            suppress(_Enough),
        ):
            torch.set_rng_state(drawn)
            set_device_states(devices, states, device_type=kind)
            for cast in casts:
                cast.__enter__()
            try:
                function(*args, **kwargs)
            finally:
                for cast in reversed(casts):
                    cast.__exit__(None, None, None)

    with saved_tensors_hooks(drop, find):
        return function(*args, **kwargs)
