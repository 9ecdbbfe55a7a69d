"""Blocks that forget what is inside them, and compute it again when a backward pass asks for it.

``torch.utils.checkpoint`` does the same, but brings torch's compiler, 70 MiB of code, into a
process that compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
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


def again(function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """The function's answer; with the same dropout and precision when it is run again."""
    if not torch.is_grad_enabled():
        return function(*args, **named)
    slots: list[tuple[ReferenceType[_Slot], torch.Size]] = []
    whole = (*args, *named.values())
    drawn, (devices, states) = torch.get_rng_state(), get_device_states(*whole)
    kinds = sorted({"cpu", *(x.device.type for x in whole if isinstance(x, Tensor))})
    casts = [
        (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in kinds
    ]

    def forget(x: Tensor) -> _Slot:
        slot = _Slot()
        slots.append((ref(slot), x.shape))
        return slot

    def find(slot: _Slot) -> Tensor:
        if slot.value is None:
            repeat()
        value, slot.value = slot.value, None
        if value is None:
            raise RuntimeError("a block did something else when it was computed again")
        return value

    def repeat() -> None:
        coming = iter(slots)

        def keep(x: Tensor) -> Tensor:
            (slot, shape), x = next(coming), x.detach()
            if (alive := slot()) is not None and x.shape == shape:
                alive.value = x
            if slot is slots[-1][0]:
                raise _Enough
            # Detached: an operation that kept its own answer's history would never go.
            return x

        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices, device_type=kinds[-1]))
            torch.set_rng_state(drawn)
            set_device_states(devices, states, device_type=kinds[-1])
            for kind, dtype, enabled in casts:
                stack.enter_context(torch.autocast(kind, dtype, enabled))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(suppress(_Enough))
            stack.enter_context(saved_tensors_hooks(keep, lambda x: x))
            function(*args, **named)

    with saved_tensors_hooks(forget, find):
        return function(*args, **named)
