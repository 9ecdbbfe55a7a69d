"""Adapters out of networks in training, and added to the weights of networks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fewstep.adapters.adapter import Adapter, Factors, some
from fewstep.adapters.dialects import flattened
from fewstep.errors import UsageError
from fewstep.models.low_rank import CONVOLUTIONS, adapted_layers, learned_whole
from fewstep.models.nets.magnitude import MPConv
from fewstep.models.nets.stock import StockNetwork

M = TypeVar("M", bound=nn.Module)

_LAYERS = (nn.Linear, MPConv, *CONVOLUTIONS)


def adapter_of(network: nn.Module, model: Mapping[str, Any] | None = None) -> Adapter | None:
    """The adapter that a network in training has learned.

    Args:
        network: with layers that :func:`~fewstep.models.low_rank.adapt` adapted.
        model: see :class:`Adapter`.

    Returns:
        Copies on the CPU; None where there are no adapters, or where other weights learned too, so
        that the adapters alone are not what was learned.
    """
    layers = adapted_layers(_named(network))
    if not layers or learned_whole(network):
        return None
    return Adapter(
        {
            name: Factors(
                _kept(layer.adapter.down.weight), _kept(layer.adapter.up.weight), layer.alpha
            )
            for name, layer in layers.items()
        },
        model=model or {},
    )


def matched(network: nn.Module, adapter: Adapter) -> dict[str, Factors]:
    """The changes by the names of the network's layers.

    Raises:
        UsageError: a change belongs to no layer of the network, or has another shape; the message
            lists them.
    """
    weights = {
        name: tuple(part.weight.shape)
        for name, part in _named(network).named_modules()
        if isinstance(part, _LAYERS)
    }
    known: dict[str, list[str]] = {}
    for name in weights:
        known.setdefault(flattened(name) if adapter.flat else name, []).append(name)
    every, where = len(adapter.layers), type(network).__name__
    unknown = [name for name in adapter.layers if name not in known]
    if unknown:
        raise UsageError(
            f"{adapter.source} is an adapter of another model: {len(unknown)} of the {every} "
            f"layers that it changes are not in this one ({where}): {some(unknown)}"
        )
    several = [name for name in adapter.layers if len(known[name]) > 1]
    if several:
        raise UsageError(
            f"{adapter.source} names layers with underscores for dots, and several layers of "
            f"{where} have the names {some(several)}; give a file of another dialect"
        )
    found = {known[name][0]: factors for name, factors in adapter.layers.items()}
    wrong = [
        f"{name} (the model's {weights[name]}, the adapter's {factors.shape})"
        for name, factors in found.items()
        if _core(weights[name]) != _core(factors.shape)
    ]
    if wrong:
        raise UsageError(
            f"{adapter.source} is an adapter of another model: {len(wrong)} of the {every} layers "
            f"that it changes have other shapes in this one: {some(wrong)}"
        )
    return found


def _named(network: nn.Module) -> nn.Module:
    """The module by whose names other programs know a network's layers."""
    return network.net if isinstance(network, StockNetwork) else network


@torch.no_grad()
def add(network: M, adapters: Sequence[Adapter], scales: Sequence[float] | None = None) -> M:
    """A copy of a network with adapters added to its weights.

    Several adapters are added exactly: the change is the sum of their changes, whatever their
    ranks. It is computed in float64 and rounded to the weights' precision once.

    Args:
        network: any module with linear maps or convolutions of the adapters' names.
        adapters: of this network.
        scales: what each adapter is multiplied by; by default 1.

    Raises:
        UsageError: there is not one finite scale for each adapter, or an adapter is of another
            network.
    """
    scales = [1.0] * len(adapters) if scales is None else scales
    if len(scales) != len(adapters) or not all(abs(s) < float("inf") for s in scales):
        raise UsageError(
            f"expected one finite scale for each of the {len(adapters)} adapters, got {[*scales]}"
        )
    changes: dict[str, Tensor] = {}
    for adapter, scale in zip(adapters, scales, strict=True):
        for name, factors in matched(network, adapter).items():
            change = scale * factors.delta()
            changes[name] = changes[name] + change if name in changes else change
    whole = copy.deepcopy(network)
    for name, change in changes.items():
        weight: Any = _named(whole).get_submodule(name).weight
        wide = weight.double() + change.reshape(weight.shape).to(weight.device)
        if not wide.isfinite().all():
            raise UsageError(f"with the adapters some weights of {name} are not finite")
        weight.copy_(wide)
    return whole


def _core(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape without sides of 1 at its end: a linear map is a convolution of one pixel."""
    sides = [*shape]
    while len(sides) > 2 and sides[-1] == 1:
        sides.pop()
    return tuple(sides)


def _kept(weight: Tensor) -> Tensor:
    return weight.detach().cpu().clone()
