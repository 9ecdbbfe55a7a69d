"""What a method is: phases that draw and score, and a student that is delivered with a contract.

``draw`` holds all randomness and every scheduled value as tensors; ``loss`` is a pure function of
parameters, batch and draws. So a test injects draws through the public loss, and a resumed run
repeats an uninterrupted one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.contract import Contract, DataSpec
from fewstep.core import Batch, Rng
from fewstep.derivatives import Derivative
from fewstep.models import AbstractDenoiser


@dataclass(frozen=True)
class Loss:
    """Scalars: ``terms`` are summed and back-propagated, ``logs`` only recorded.

    Without terms, as of a loss whose time has not come, there is nothing to do.
    """

    terms: Mapping[str, Tensor]
    logs: Mapping[str, Tensor] = field(default_factory=dict)

    def total(self) -> Tensor:
        """Sum of the terms."""
        return torch.stack([*self.terms.values()]).sum()


def always(step: int) -> bool:
    """A phase that is due at every step."""
    return True


def every(k: int) -> Callable[[int], bool]:
    """A phase that is due at steps 0, k, 2k, ..."""
    return lambda step: step % k == 0


@dataclass(frozen=True)
class Phase:
    """One update of one module.

    Args:
        name: seeds the draws and names the optimiser's state.
        module: whose parameters this phase trains; all others are frozen meanwhile.
        draw: ``(batch, step, rng) -> draws``.
        loss: ``(batch, draws) -> Loss``.
        due: whether the phase runs at a step.
        more: further losses of the same draws, added to the first; each is back-propagated before
            the next is computed, so that memory holds one of them at a time.
        rate: its learning rate is so many times the run's.
        before: ``(batch, draws) -> draws`` with what the losses share, made once, without gradient.
            Given draws without it, a loss makes it itself.
    """

    name: str
    module: nn.Module
    draw: Callable[[Batch, int, Rng], Any]
    loss: Callable[[Batch, Any], Loss]
    due: Callable[[int], bool] = always
    more: Sequence[Callable[[Batch, Any], Loss]] = ()
    rate: float = 1.0
    before: Callable[[Batch, Any], Any] | None = None

    @torch.no_grad()
    def prepared(self, batch: Batch, draws: Any) -> Any:
        """The draws, with what the losses share."""
        return draws if self.before is None else self.before(batch, draws)

    @property
    def losses(self) -> Sequence[Callable[[Batch, Any], Loss]]:
        """All of them, in order."""
        return self.loss, *self.more


@dataclass(frozen=True)
class Capabilities:
    """What a method needs of a training, and what it allows there.

    Args:
        forward_mode: a loss takes directional derivatives of the student.
        second_order: a loss differentiates such a derivative again, which only forward mode allows.
        shardable: weights may be sharded. They may not where a loss takes a gradient in itself.
        batch_multiple: a microbatch must have a multiple of this number of samples.
        batch_least: a microbatch must have at least this number of samples.
    """

    forward_mode: bool = False
    second_order: bool = False
    shardable: bool = True
    batch_multiple: int = 1
    batch_least: int = 1


class Objective(nn.Module, ABC):
    """A method. Its parameters, buffers and submodules are its whole state.

    Attributes:
        student: the denoiser that is trained and delivered.
        frozen: names of submodules that training never changes, as teachers. Checkpoints keep only
            their hash.
        capabilities: what the method needs of a training.
        derivative: takes directional derivatives, where a loss needs them; the trainer sets it.
    """

    student: AbstractDenoiser
    frozen: tuple[str, ...] = ()
    capabilities: Capabilities = Capabilities()
    derivative: Derivative

    @abstractmethod
    def phases(self) -> Sequence[Phase]:
        """The updates of a step, in order, on one batch."""

    @abstractmethod
    def contract(self, data: DataSpec) -> Contract:
        """How what :meth:`deliver` returns may be sampled."""

    def after_step(self, step: int) -> None:
        """Update what follows the student; called after the optimisers of ``step``."""
        return

    def stage(self, step: int) -> int:
        """When this changes, optimisers, learning rate and averages start anew."""
        return 0

    def deliver(self, student: AbstractDenoiser) -> AbstractDenoiser:
        """What users sample from, given the (averaged) student."""
        return student
