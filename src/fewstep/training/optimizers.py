"""Optimisers of a run, and their state."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import UsageError
from fewstep.training.config import TrainConfig
from fewstep.training.distribution import sharded_as


def _lean(kind: type[torch.optim.Optimizer]) -> Any:
    """An optimiser without what its methods import: torch's compiler, 70 MiB of code."""
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    bare = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), {**bare, "step": step})


ADAM, ADAMW, RADAM = map(_lean, (torch.optim.Adam, torch.optim.AdamW, torch.optim.RAdam))


SMALLEST = 4096
"""Numbers of a tensor below which adam8bit keeps averages in float32."""

BLOCK = 256
"""Numbers of which adam8bit keeps one scale in each average (Dettmers et al. 2022 have 2048)."""


def _bitsandbytes() -> Any:
    try:
        return import_module("bitsandbytes")
    except ImportError as error:
        raise UsageError(
            "train.optimizer adam8bit needs the extra: pip install 'fewstep[adam8bit]'"
        ) from error


def state_size(parameters: Sequence[Tensor], config: TrainConfig) -> int:
    """Bytes of the optimiser's two averages of parameters in float32 or wider."""
    if config.optimizer != "adam8bit":
        return sum(2 * p.numel() * p.element_size() for p in parameters)
    counts = [p.numel() for p in parameters]
    return sum(8 * n if n < SMALLEST else 2 * (n + 4 * -(-n // BLOCK)) for n in counts)


def state_of(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """An optimiser's state by the number of the parameter."""
    state: dict[int, dict[str, Any]] = {}
    for index, entry in optimizer.state_dict()["state"].items():
        state[index] = {}
        for name, value in entry.items():
            # bitsandbytes has its tensors in a dictionary inside.
            state[index] |= value if isinstance(value, dict) else {name: value}
    return state


def optimizer_of(parameters: Sequence[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """The run's optimiser for what a phase trains; fused where torch has a fused kernel."""
    common: dict[str, Any] = {
        "lr": config.lr,
        "betas": config.betas,
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adam8bit":
        return _bitsandbytes().optim.AdamW8bit(parameters, min_8bit_size=SMALLEST, **common)
    if config.optimizer == "radam":
        return RADAM(parameters, **common)
    kind = ADAMW if config.optimizer == "adamw" else ADAM
    fused = all(p.device.type in {"cpu", "cuda"} for p in parameters)
    return kind(parameters, fused=fused, **common)


def load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str
) -> None:
    """Restore its state from the tensors named ``prefix*``; of a shard, its rows."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key in tensors:
        if key.startswith(prefix):
            index, name = key.removeprefix(prefix).split(".", 1)
            state.setdefault(int(index), {})[name] = sharded_as(
                tensors[key], parameters[int(index)]
            )
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.RAdam):
        state = {i: {**entry, "step": int(entry["step"])} for i, entry in state.items()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
