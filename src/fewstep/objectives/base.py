"""What a method is: phases that draw and compute losses, and a student with its contract.

``draw`` holds all randomness and every scheduled value, as tensors; ``loss`` is a pure function of
parameters, batch and draws. So a test can give any draws to the public loss, and a resumed run
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
    """Scalars: the trainer back-propagates the sum of ``terms``, and only records ``logs``.

    A loss without terms, as one that starts at a later step, does nothing.
    """

    terms: Mapping[str, Tensor]
    logs: Mapping[str, Tensor] = field(default_factory=dict)

    def total(self) -> Tensor:
        """Add up the terms."""
        return torch.stack([*self.terms.values()]).sum()


def always(step: int) -> bool:
    """Make a phase run at every step."""
    return True


def every(k: int) -> Callable[[int], bool]:
    """Make a phase run at the steps 0, k, 2k, ..."""
    return lambda step: step % k == 0


@dataclass(frozen=True)
class Phase:
    """One update of one module.

    Args:
        name: seeds the random numbers and names the optimiser's state; unique in a method.
        module: the module whose parameters the phase trains, while all others are frozen.
        draw: ``(batch, step, rng) -> draws``.
        loss: ``(batch, draws) -> Loss``.
        due: whether the phase runs at a step, counted from 0.
        more: further losses of the same draws, added to the first. Each is back-propagated before
            the next is computed, so that memory holds one of them at a time.
        rate: factor on the run's learning rate, above 0.
        before: ``(batch, draws) -> draws`` with what the losses share, computed once and without
            gradient. A loss computes it itself where the draws do not have it.
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
        """Add to the draws what the losses share."""
        return draws if self.before is None else self.before(batch, draws)

    @property
    def losses(self) -> Sequence[Callable[[Batch, Any], Loss]]:
        """All losses, in order."""
        return self.loss, *self.more


@dataclass(frozen=True)
class Capabilities:
    """What a method needs of the training around it.

    Args:
        forward_mode: a loss takes directional derivatives of the student.
        second_order: a loss differentiates such a derivative again, which only forward mode allows.
        shardable: weights may be sharded. They may not where a loss takes a gradient inside itself.
        batch_multiple: every microbatch must have a multiple of this number of samples, 1 or more.
        batch_least: every microbatch must have at least this number of samples, 1 or more.
    """

    forward_mode: bool = False
    second_order: bool = False
    shardable: bool = True
    batch_multiple: int = 1
    batch_least: int = 1


class Objective(nn.Module, ABC):
    """A method. Its parameters, buffers and submodules are its whole state.

    Attributes:
        student: the denoiser that the method trains.
        frozen: names of the submodules that training never changes, such as teachers. Checkpoints
            keep only a hash of them.
        capabilities: what the method needs of the training around it.
        derivative: computes directional derivatives where a loss needs them; the trainer sets it.
    """

    student: AbstractDenoiser
    frozen: tuple[str, ...] = ()
    capabilities: Capabilities = Capabilities()
    derivative: Derivative

    @abstractmethod
    def phases(self) -> Sequence[Phase]:
        """Return the updates of a step, in order, which share one batch."""

    @abstractmethod
    def contract(self, data: DataSpec) -> Contract:
        """Describe how users may generate with the result of :meth:`deliver`."""

    def after_step(self, step: int) -> None:
        """Update what follows the student, after the optimisers of ``step``."""
        return

    def stage(self, step: int) -> int:
        """Number the stage of a step; a new one restarts optimisers, rate and averages."""
        return 0

    def deliver(self, student: AbstractDenoiser) -> AbstractDenoiser:
        """Return the model that users get, given the (averaged) student."""
        return student
