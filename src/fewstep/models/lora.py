"""A denoiser that is another one and a little more: shared weights under low-rank adapters.

Only the adapters (see :mod:`fewstep.models.low_rank`) are parameters here, so gradients, optimiser
states, averages and checkpoints hold them alone. DMD-like methods need a critic beside a frozen
teacher: this one costs a few percent of a copy.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from fewstep.core import Cond, UsageError
from fewstep.models.denoiser import AbstractDenoiser, Denoiser
from fewstep.models.low_rank import adapt
from fewstep.paths import Event, Time


class LowRank(AbstractDenoiser):
    """``denoiser`` with adapters to learn; it shares the weights, which stay what they are.

    At first it answers what ``denoiser`` answers, to the bit. Its network is a tree of its own
    over the same parameters, so hooks, checkpointed blocks and modes (train, eval) are apart;
    moving it to a device moves the shared weights too.

    Args:
        denoiser: usually a frozen teacher.
        rank: of the adapters.
        alpha: the adapters' answers are multiplied by ``alpha / rank``; none is ``rank``.

    Raises:
        UsageError: it is not a :class:`~fewstep.models.denoiser.Denoiser`, or has nothing to adapt.
    """

    def __init__(
        self, denoiser: AbstractDenoiser, rank: int = 16, alpha: float | None = None
    ) -> None:
        super().__init__()
        if not isinstance(denoiser, Denoiser):
            raise UsageError(
                f"adapters go on a Denoiser, got {type(denoiser).__name__}; give the one that it "
                "wraps"
            )
        tree = copy.deepcopy(denoiser, {id(p): p for p in denoiser.parameters()})
        adapted = adapt(tree, rank, alpha)
        self.adapters = nn.ModuleDict(
            {name.replace(".", "/"): layer.adapter for name, layer in adapted.items()}
        )
        # In a tuple: not a submodule, or its weights would be this module's parameters.
        self._tree = (tree,)
        self.path, self.two_time = denoiser.path, denoiser.two_time
        self.cond_keys, self.optional_keys = denoiser.cond_keys, denoiser.optional_keys

    @property
    def net(self) -> nn.Module:
        """The network: shared weights and adapters."""
        return self._tree[0].net

    def forward(self, x: Event, t: Time, s: Time | None = None, cond: Cond | None = None) -> Event:
        """x0_hat."""
        return self._tree[0](x, t, s, cond)

    def raw(self, x: Event, t: Time, s: Time | None = None, cond: Cond | None = None) -> Event:
        """The network's prediction."""
        return self._tree[0].raw(x, t, s, cond)

    def train(self, mode: bool = True) -> LowRank:
        """Set the mode of the network too."""
        self._tree[0].train(mode)
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> LowRank:
        self._tree[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)
