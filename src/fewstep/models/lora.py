"""A denoiser that is another one and a little more: shared weights under low-rank adapters.

Each linear map or convolution W becomes W + (alpha / rank) up down (Hu et al. 2022, LoRA); only
``down`` and ``up`` are parameters here, so gradients, optimiser states, averages and checkpoints
hold them alone. DMD-like methods need a critic beside a frozen teacher: this one costs a few
percent of a copy.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core import Cond, UsageError
from fewstep.models.denoiser import AbstractDenoiser, Denoiser
from fewstep.models.nets.magnitude import MPConv
from fewstep.paths import Event, Time

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
"""What is adapted beside linear maps."""


class Adapter(nn.Module):
    """up(down(x)), zero at first.

    Args:
        layer: what it is added to, whose shapes it takes.
        rank: channels between the two.
    """

    def __init__(self, layer: nn.Module, rank: int) -> None:
        super().__init__()
        self.down, self.up = _pair(layer, rank)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.up.weight)
        weight: Any = layer.weight
        # Small weights in half precision would lose their updates.
        self.to(device=weight.device, dtype=torch.promote_types(weight.dtype, torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """In the precision of ``x``."""
        own = self.down.weight.dtype
        with torch.autocast(x.device.type, x.dtype, enabled=x.dtype.itemsize < own.itemsize):
            return self.up(self.down(x))


class _Adapted(nn.Module):
    """A layer and its adapter, in the layer's place."""

    def __init__(self, layer: nn.Module, adapter: Adapter, scale: float) -> None:
        super().__init__()
        self.layer, self.adapter, self.scale = layer, adapter, scale

    @property
    def weight(self) -> Any:
        """The layer's, for code that asks for its type or device."""
        return self.layer.weight

    @property
    def bias(self) -> Any:
        """The layer's."""
        return self.layer.bias

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        y = self.layer(x, *more)
        return y.add_(self.adapter(x).to(y.dtype), alpha=self.scale)


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
        if rank < 1:
            raise UsageError(f"the rank of adapters must be at least 1, got {rank}")
        tree = copy.deepcopy(denoiser, {id(p): p for p in denoiser.parameters()})
        self.adapters = nn.ModuleDict()
        for name, layer in [*tree.named_modules()]:
            if isinstance(layer, (nn.Linear, MPConv, *CONVOLUTIONS)):
                adapter = Adapter(layer, rank)
                self.adapters[name.replace(".", "/")] = adapter
                parent, _, last = name.rpartition(".")
                adapted = _Adapted(layer, adapter, (alpha or rank) / rank)
                setattr(tree.get_submodule(parent), last, adapted)
        if not self.adapters:
            raise UsageError(f"{type(denoiser.net).__name__} has no linear map and no convolution")
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


def _pair(layer: Any, rank: int) -> tuple[Any, Any]:
    """Two maps from a layer's input to its output, of its strides, by ``rank`` channels."""
    if isinstance(layer, MPConv):
        c_out, c_in, *sides = layer.weight.shape
        if not sides:
            return nn.Linear(c_in, rank, bias=False), nn.Linear(rank, c_out, bias=False)
        down = nn.Conv2d(c_in, rank, sides[0], padding=sides[0] // 2, bias=False)
        return down, nn.Conv2d(rank, c_out, 1, bias=False)
    if isinstance(layer, nn.Linear):
        shapes = (layer.in_features, rank), (rank, layer.out_features)
        return nn.Linear(*shapes[0], bias=False), nn.Linear(*shapes[1], bias=False)
    kind: Any = next(kind for kind in CONVOLUTIONS if isinstance(layer, kind))
    down = kind(
        layer.in_channels,
        rank,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        bias=False,
        padding_mode=layer.padding_mode,
    )
    return down, kind(rank, layer.out_channels, 1, bias=False)
