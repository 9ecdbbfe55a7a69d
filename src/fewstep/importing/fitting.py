"""Tensors of a checkpoint put into a network of the library, strictly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import MANY, UsageError
from fewstep.importing.storages import Lazy, checked
from fewstep.models.spec import build_network


@dataclass(frozen=True)
class Target:
    """Where a tensor of a checkpoint goes.

    Args:
        name: in the library's network.
        change: makes the library's tensor of the checkpoint's; None leaves it as it is.
    """

    name: str
    change: Callable[[Tensor], Tensor] | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """The library's tensor."""
        return tensor if self.change is None else self.change(tensor)


@dataclass(frozen=True)
class Description:
    """A network of the library that computes what a checkpoint's network computes.

    Args:
        spec: kind and options, from which the library builds the network.
        targets: for each tensor of the checkpoint where it goes.
        unused: for each tensor that the network does not need, why.
        notes: what a user should know.
    """

    spec: Mapping[str, Any]
    targets: Mapping[str, Target]
    unused: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def fit(
    description: Description, tensors: Mapping[str, Lazy], source: Path, size: int
) -> nn.Module:
    """The described network with the checkpoint's weights in float32.

    Args:
        description: of the network.
        tensors: of the checkpoint, by name.
        source: named in messages.
        size: bytes of the checkpoint; its tensors cannot have more.

    Raises:
        UsageError: a tensor is missing, unexpected, of the wrong shape or not finite; the message
            lists the names.
    """
    targets = description.targets
    with torch.device("meta"):
        network = build_network(description.spec)
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    lines = [f"missing: {name}" for name in targets if name not in tensors]
    lines += [
        f"unexpected: {name} {tensor.shape}"
        for name, tensor in tensors.items()
        if name not in targets and name not in description.unused
    ]
    reached = {target.name for target in targets.values()}
    lines += [
        f"missing: nothing becomes {name} of the model" for name in wanted if name not in reached
    ]
    for name, target in targets.items():
        if name in tensors and target.name in wanted:
            have = _shape(target, tensors[name])
            if have != wanted[target.name]:
                shape = tensors[name].shape
                lines.append(
                    f"wrong shape: {name} {shape}, expected {wanted[target.name]} or alike"
                )
        elif target.name not in wanted:
            lines.append(f"unexpected: {name}, for which the model has no place")
    if lines:
        more = [f"and {len(lines) - MANY} others"] if len(lines) > MANY else []
        kind = description.spec["kind"]
        raise UsageError(
            f"{source} does not hold the tensors of the {kind} network that it describes:\n  "
            + "\n  ".join(lines[:MANY] + more)
        )
    total = sum(tensors[name].nbytes for name in targets)
    if total > size:
        raise UsageError(
            f"{source} is damaged: its tensors would have {total} bytes, it has {size}"
        )
    state = {
        target.name: target.of(checked(name, tensors[name])) for name, target in targets.items()
    }
    network.load_state_dict(state, assign=True)
    return network


def _shape(target: Target, tensor: Lazy) -> tuple[int, ...] | None:
    try:
        return tuple(target.of(torch.empty(tensor.shape, device="meta")).shape)
    except (RuntimeError, IndexError):
        return None
