"""Optimisers of a run, and their state."""

from __future__ import annotations

import inspect
import math
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


class FusedRAdam(RADAM):
    """RAdam (Liu et al. 2020) by torch's fused kernel of Adam, equal to torch's RAdam to rounding.

    RAdam's step is Adam's with another rate and eps: with the rectification r of the step and
    v_hat = v / (1 - beta2^k), RAdam moves by lr r m_hat / (sqrt(v_hat) + eps / sqrt(1 - beta2^k)).
    Its first steps, for which there is no r, are torch's own. All parameters lie on the CPU and
    have one type.
    """

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters that have a gradient."""
        updates: list[tuple[dict[str, Any], Sequence[list[Any]], int, float]] = []
        for group in self.param_groups:
            lists: list[list[Any]] = [[] for _ in range(5)]
            self._init_group(group, *lists)
            counts = {int(step) + 1 for step in lists[-1]}
            rates = [rectification(count, group["betas"][1]) for count in counts]
            if len(counts) > 1 or None in rates:
                super().step()
                return
            updates += [(group, lists, n, r) for n, r in zip(counts, rates, strict=True) if r]
        for group, (*lists, steps), count, rate in updates:
            beta1, beta2 = group["betas"]
            torch._foreach_add_(steps, 1)  # pyright: ignore[reportPrivateImportUsage]
            torch._fused_adam_(  # pyright: ignore[reportPrivateImportUsage]
                *lists,
                max_exp_avg_sqs=[],
                state_steps=steps,
                lr=group["lr"] * rate,
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"] / math.sqrt(1 - beta2**count),
                amsgrad=False,
                maximize=False,
            )


def rectification(count: int, beta2: float) -> float | None:
    """RAdam's factor of the rate at an update, counted from 1; None while there is none."""
    last = 2 / (1 - beta2) - 1
    length = last - 2 * count * beta2**count / (1 - beta2**count)
    if length <= 5:
        return None
    top = (length - 4) * (length - 2) * last
    return math.sqrt(top / ((last - 4) * (last - 2) * length))


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
        one = {(p.device.type, p.dtype) for p in parameters}
        return (FusedRAdam if one <= {("cpu", torch.float32)} else RADAM)(parameters, **common)
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
