"""How a phase's loss is computed and synchronised in one process or several."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fewstep.core import Batch, UsageError, local
from fewstep.models import Denoiser, Judge, LowRank
from fewstep.objectives.base import Loss, Phase
from fewstep.training.again import again

Parameters = Sequence[nn.Parameter]
Score = Callable[[Batch, Any], Loss]


class Strategy(ABC):
    """How the losses of phases are computed on this process."""

    @abstractmethod
    def microbatch(self, phase: Phase, loss: Score, last: bool) -> Any:
        """A context in which the score that it gives, one of a phase's losses, is back-propagated.

        Gradients are synchronised in the ``last`` microbatch of an update, or in :meth:`rest`.
        """

    def rest(self, phase: Phase) -> None:
        """Make ``parameters()``, and their gradients, those that the optimiser steps on."""
        return


class Alone(Strategy):
    """One process."""

    @contextmanager
    def microbatch(self, phase: Phase, loss: Score, last: bool) -> Iterator[Score]:
        """The loss itself."""
        yield loss


class _Shim(nn.Module):
    """A phase's loss as a module whose only submodule is what the phase trains.

    Not the objective, whose other networks must not be synchronised, and not the network, through
    whose wrapper forward-mode derivatives do not go.
    """

    def __init__(self, phase: Phase) -> None:
        super().__init__()
        self.module = phase.module
        self.score = phase.loss

    def forward(self, batch: Batch, draws: Any) -> Loss:
        return self.score(batch, draws)


class Replicated(Strategy):
    """DDP: every process holds everything; gradients are averaged.

    DDP waits for every parameter in one backward pass, so it cannot serve a phase of several
    losses: that one's gradients are averaged at the end.

    Args:
        phases: of the objective.
        trained: what each of them trains, by its name.
    """

    def __init__(self, phases: Sequence[Phase], trained: Mapping[str, Parameters]) -> None:
        self.wrapped: dict[str, nn.parallel.DistributedDataParallel] = {}
        for phase in (p for p in phases if not p.more):
            for p in trained[phase.name]:
                p.requires_grad_(True)  # DDP hooks what is trainable when it is made
            self.wrapped[phase.name] = nn.parallel.DistributedDataParallel(
                _Shim(phase), broadcast_buffers=False
            )

    @contextmanager
    def microbatch(self, phase: Phase, loss: Score, last: bool) -> Iterator[Score]:
        """The loss through DDP, or one of several losses."""
        if phase.more:
            yield loss
            return
        wrapped = self.wrapped[phase.name]
        if last:
            yield wrapped
        else:
            with wrapped.no_sync():
                yield wrapped

    def rest(self, phase: Phase) -> None:
        """Average what DDP did not."""
        if phase.more:
            for p in phase.module.parameters():
                if p.grad is not None:
                    dist.all_reduce(p.grad)
                    p.grad /= dist.get_world_size()


class Sharded(Strategy):
    """FSDP2: weights, gradients, optimiser states and averages are split over the processes.

    Each network is sharded in place, block by block where it names its ``units``.
    """

    def __init__(self, modules: Iterable[nn.Module], device: torch.device, size: int) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        # It warns of answers that are views, in case somebody writes into them; nobody does.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        mesh = init_device_mesh(device.type, (size,))
        self.roots: list[Any] = [*networks(modules)]
        _separate(self.roots)
        for root in self.roots:
            for unit in units(root):
                fully_shard(unit, mesh=mesh)
            fully_shard(root, mesh=mesh)
            if hasattr(root, "features"):
                register_fsdp_forward_method(root, "features")

    @contextmanager
    def microbatch(self, phase: Phase, loss: Score, last: bool) -> Iterator[Score]:
        """The loss itself; what it calls gathers and scatters itself.

        A block that one of several losses does not reach would keep what it had not sent yet.
        """
        for root in self.roots:
            root.set_requires_gradient_sync(last or bool(phase.more))
        yield loss

    def rest(self, phase: Phase) -> None:
        """Networks whose answer was not back-propagated are still gathered."""
        for root in self.roots:
            for module in root.modules():
                if hasattr(module, "reshard"):
                    module.reshard()


def _separate(roots: Sequence[nn.Module]) -> None:
    """Give each network weights of its own: what two of them share cannot be sharded twice."""
    before: set[int] = set()
    for root in roots:
        own: dict[int, nn.Parameter] = {}
        for module in root.modules():
            for name, p in [*module.named_parameters(recurse=False)]:
                if id(p) in before:
                    fresh = own.setdefault(id(p), nn.Parameter(p.detach().clone(), p.requires_grad))
                    setattr(module, name, fresh)
        before |= {id(p) for p in root.parameters()}


def networks(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Every module that is called as a whole: a denoiser's network, or a module without one."""
    seen: set[int] = set()
    kinds = (Denoiser, LowRank)

    def inside(module: nn.Module) -> Iterator[nn.Module]:
        if isinstance(module, kinds):
            yield module.net
        elif isinstance(module, Judge):
            yield module.heads  # which are called on their own too
        elif not any(isinstance(m, kinds) for m in module.modules()):
            if any(True for _ in module.parameters()):
                yield module
        elif any(True for _ in module.parameters(recurse=False)):
            raise UsageError(
                f"{type(module).__name__} has parameters of its own beside a network's and cannot "
                "be sharded; take --train.parallel ddp, or give them a module of their own"
            )
        else:
            for child in module.children():
                yield from inside(child)

    for module in modules:
        for network in inside(module):
            if id(network) not in seen:
                seen.add(id(network))
                yield network


def units(network: nn.Module) -> list[nn.Module]:
    """The blocks that a network names as its units."""
    kinds: tuple[type[nn.Module], ...] = getattr(network, "units", ())
    return [m for m in network.modules() if isinstance(m, kinds) and m is not network]


def full(tensor: Tensor) -> Tensor:
    """All rows of a sharded tensor, on every process that takes part; any other tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore


def rows(whole: Tensor, like: Tensor) -> Tensor:
    """The rows of ``whole`` that belong to this process's shard of ``like``."""
    if local(like) is like:
        return whole
    chunk = -(-len(whole) // dist.get_world_size())
    return whole[dist.get_rank() * chunk :][:chunk]


def sharded_as(whole: Tensor, like: Tensor) -> Tensor:
    """``whole`` split as ``like`` is, if it has its shape; else itself, as a step count does."""
    if local(like) is like or whole.shape != like.shape:
        return whole
    from torch.distributed.tensor import DTensor

    split: Any = like
    own = rows(whole, like).to(local(like).device)
    return DTensor.from_local(
        own, split.device_mesh, split.placements, shape=split.shape, stride=split.stride()
    )


def checkpoint_blocks(network: nn.Module) -> list[nn.Module]:
    """Let each unit of a network forget what is inside it, and compute it again when needed.

    Returns:
        The units; deleting their attribute ``forward`` undoes it.

    Raises:
        UsageError: the network names no units.
    """
    blocks = units(network)
    if not blocks:
        raise UsageError(
            f"{type(network).__name__} names no units to checkpoint; give the class an attribute "
            "units = (BlockClass, ...), or leave out --train.checkpointing"
        )
    for unit in blocks:
        unit.forward = partial(again, unit.forward)
    return blocks
