"""What a phase does not need waits in the CPU's memory, and is back before it is used.

Frozen networks wait while a phase's losses do not call them, optimisers' states while other phases
learn, averages but when they follow. Tensors move by their ``data``, so that everyone who holds
them sees it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from fewstep.models import LowRank
from fewstep.models.low_rank import base_names
from fewstep.objectives.base import Objective
from fewstep.training.averages import Averages
from fewstep.training.distribution import networks

Optimizers = Mapping[str, torch.optim.Optimizer]


class Offload:
    """What one trainer moves to the CPU; the last phase's things stay until another begins.

    A frozen network comes back when it, or a module in it, is called. It then stays through this
    phase's later turns, so a network that a phase never calls does not move in and out.

    Args:
        objective: on its device. Frozen networks that adapters share are not moved.
        averages: of its student.
        device: to which things come back.
    """

    def __init__(self, objective: Objective, averages: Averages, device: torch.device) -> None:
        self.device = torch.empty(0, device=device).device
        shared = {id(t) for t in _tensors(objective)}
        self.apart: dict[nn.Module, list[Tensor]] = {
            copy: [t for t in _tensors(copy) if id(t) not in shared]
            for copy in averages.copies.values()
        }
        adapted = {
            id(p) for m in objective.modules() if isinstance(m, LowRank) for p in m.net.parameters()
        }
        base = base_names(objective)
        adapted |= {
            id(p) for n, p in objective.named_parameters(remove_duplicate=False) if n in base
        }
        frozen = networks(objective.get_submodule(name) for name in objective.frozen)
        self.frozen = [net for net in frozen if adapted.isdisjoint(map(id, net.parameters()))]
        self.of = {module: net for net in self.frozen for module in net.modules()}
        self.hooks = [module.register_forward_pre_hook(self._before) for module in self.of]
        self.called: dict[str, set[nn.Module]] = {p.name: set() for p in objective.phases()}
        self.phase = ""
        self.copies: Any = WeakTensorKeyDictionary()

    def begin(self, phase: str, optimizers: Optimizers) -> None:
        """Send away what ``phase`` does not need, and have back what it does."""
        self.phase = phase
        for net in self.frozen:
            if net not in self.called[phase]:
                self._leave(_tensors(net), changed=False)
        for tensors in self.apart.values():
            self._leave(tensors)
        for name, optimizer in optimizers.items():
            if name != phase:
                self._leave(_state(optimizer))
        for net in self.called[phase]:
            self._return(_tensors(net))
        self._return(_state(optimizers[phase]))
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)  # copies may be read from now on

    def end(self) -> None:
        """Have everything back, and watch no more."""
        for hook in self.hooks:
            hook.remove()
        for tensor in [*self.copies]:
            self._return([tensor])

    def have(self, module: nn.Module) -> None:
        """Have an average back, until the next phase begins."""
        self._return(self.apart[module])

    def waiting(self, phase: str, sizes: Mapping[str, int]) -> int:
        """Bytes that a phase, whose losses were computed before, has elsewhere.

        Args:
            phase: its name.
            sizes: of the optimisers' states, by phase.
        """
        waiting = [_tensors(net) for net in self.frozen if net not in self.called[phase]]
        waiting += self.apart.values()
        others = sum(size for name, size in sizes.items() if name != phase)
        return others + sum(t.nbytes for tensors in waiting for t in tensors)

    def _before(self, module: nn.Module, _: Any) -> None:
        net = self.of.get(module)
        if self.phase and net is not None and net not in self.called[self.phase]:
            self.called[self.phase].add(net)
            self._return(_tensors(net))

    def _leave(self, tensors: Iterable[Tensor], changed: bool = True) -> None:
        for tensor in tensors:
            copy = self.copies.get(tensor)
            if tensor.device != self.device or _same(tensor, copy):
                continue
            if copy is None or changed:
                if copy is None:
                    pinned = self.device.type != "cpu"
                    copy = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
                copy.copy_(tensor.detach(), non_blocking=True)
            self.copies[tensor] = copy
            tensor.data = copy

    def _return(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            copy = self.copies.get(tensor)
            if _same(tensor, copy):
                tensor.data = copy.to(self.device, non_blocking=True, copy=True)


def _same(tensor: Tensor, copy: Tensor | None) -> bool:
    return copy is not None and tensor.data_ptr() == copy.data_ptr()


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    entries = optimizer.state.values()
    return [v for entry in entries for v in entry.values() if isinstance(v, Tensor)]
