"""Optimisers of a run, and their state."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.training.config import TrainConfig
from fewstep.training.distribution import sharded_as


def _lean(kind: type[torch.optim.Optimizer]) -> Any:
    """An optimiser without what its methods import: torch's compiler, 70 MiB of code."""
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    bare = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), {**bare, "step": step})


ADAM, ADAMW, RADAM = map(_lean, (torch.optim.Adam, torch.optim.AdamW, torch.optim.RAdam))


def optimizer_of(parameters: Sequence[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """The run's optimiser for what a phase trains; fused where torch has a fused kernel."""
    common: dict[str, Any] = {
        "lr": config.lr,
        "betas": config.betas,
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
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
    state: dict[int, dict[str, Tensor]] = {}
    for key in tensors:
        if key.startswith(prefix):
            index, name = key.removeprefix(prefix).split(".", 1)
            state.setdefault(int(index), {})[name] = sharded_as(
                tensors[key], parameters[int(index)]
            )
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
