"""Adapters of an ADM network by the names of diffusers' ``UNet2DModel``, and back.

The library's attention has queries, keys and values in one map, ``qkv``, whose rows are ordered by
head, channel, and then q, k, v; diffusers has three maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from fewstep.adapters import Adapter, Factors, flattened
from fewstep.importing.architectures.diffusers import modules
from fewstep.models.nets import ADM

THREE = ("to_q", "to_k", "to_v")


def to_unet2d(network: ADM, adapter: Adapter) -> Adapter | None:
    """The same adapter by diffusers' names; None where a layer has no counterpart."""
    names = {ours: theirs for theirs, ours in _modules(network).items()}
    layers: dict[str, Factors] = {}
    for ours, factors in adapter.layers.items():
        if ours not in names:
            return None
        theirs = names[ours]
        if not ours.endswith((".qkv", ".proj")):
            layers[theirs] = factors
            continue
        down, up = factors.down.flatten(1), factors.up.flatten(1)
        if ours.endswith(".proj"):
            layers[theirs] = replace(factors, down=down, up=up)
            continue
        for i, name in enumerate(THREE):
            rows = up[i::3].clone()
            layers[f"{theirs.removesuffix('qkv')}{name}"] = replace(factors, down=down, up=rows)
    return replace(adapter, layers=layers)


def from_unet2d(network: ADM, adapter: Adapter) -> Adapter:
    """The same adapter by the library's names; as it is where it is not by diffusers'."""
    names: dict[str, str] = {}
    for theirs, ours in _modules(network).items():
        stem = theirs.removesuffix("qkv")
        names |= {stem + n: ours for n in THREE} if ours.endswith(".qkv") else {theirs: ours}
    known = {flattened(name) if adapter.flat else name: name for name in names}
    if not all(name in known for name in adapter.layers):
        return adapter
    layers: dict[str, Factors] = {}
    threes: dict[str, dict[str, Factors]] = {}
    for name, factors in adapter.layers.items():
        theirs = known[name]
        if names[theirs].endswith(".qkv"):
            threes.setdefault(names[theirs], {})[theirs.rpartition(".")[2]] = factors
        else:
            layers[names[theirs]] = factors
    layers |= {ours: _joined(parts) for ours, parts in threes.items()}
    return replace(adapter, layers=layers, flat=False)


def _modules(network: ADM) -> dict[str, str]:
    return modules(len(network.options["multipliers"]), network.options["blocks"])


def _joined(parts: Mapping[str, Factors]) -> Factors:
    """The change of one map of three, whose rank is the sum of theirs."""
    down = torch.cat([factors.down.flatten(1) for factors in parts.values()])
    rows = len(next(iter(parts.values())).up)
    up, start = (
        torch.zeros(3 * rows, len(down), dtype=torch.promote_types(down.dtype, torch.float32)),
        0,
    )
    for name, factors in parts.items():
        end = start + factors.rank
        up[THREE.index(name) :: 3, start:end] = factors.up.flatten(1) * factors.scale
        start = end
    return Factors(down, up, float(len(down)))
