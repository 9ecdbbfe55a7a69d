"""Low-rank adapters on the layers of a network (Hu et al. 2022, LoRA).

The weight W of a linear map or of a convolution becomes W + (alpha / rank) up down, where ``down``
has ``rank`` outputs and ``up`` has ``rank`` inputs. W itself is frozen. An adapter adds its answer
to the layer's answer, so W + ... is never built; only where a layer normalises its weights
(:class:`~fewstep.models.nets.magnitude.MPConv`) the sum is built and normalised as a whole.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fewstep.core import UsageError
from fewstep.models.nets.magnitude import MPConv
from fewstep.models.nets.stock import LCM_TARGETS as LCM_TARGETS

M = TypeVar("M", bound=nn.Module)

_WHOLE = "_learned_whole"
"""Attribute of a network: the parameters that learn as a whole beside its adapters."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
"""What is adapted beside linear maps."""


class LowRankMap(nn.Module):
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

    def product(self) -> Tensor:
        """up down, in the shape of the layer's weight."""
        down, up = self.down.weight, self.up.weight
        return (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])


class Adapted(nn.Module):
    """A layer and its adapter, in the layer's place.

    Args:
        layer: whose weights stay what they are.
        adapter: what is added to it.
        alpha: the adapter's answer is multiplied by ``alpha / rank``.
    """

    def __init__(self, layer: nn.Module, adapter: LowRankMap, alpha: float) -> None:
        super().__init__()
        self.layer, self.adapter, self.alpha = layer, adapter, alpha
        self.scale = alpha / len(adapter.down.weight)

    @property
    def weight(self) -> Any:
        """The layer's, for code that asks for its type or device."""
        return self.layer.weight

    @property
    def bias(self) -> Any:
        """The layer's."""
        return self.layer.bias

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        """The layer's answer and the adapter's."""
        if isinstance(self.layer, MPConv):
            whole = {"weight": self.layer.weight + self.scale * self.adapter.product()}
            return torch.func.functional_call(self.layer, whole, (x, *more))
        y = self.layer(x, *more)
        return y.add_(self.adapter(x).to(y.dtype), alpha=self.scale)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The layer with the product added to its weight; this changes the layer."""
        layer: Any = self.layer
        wide = self.adapter.double().product() * self.scale
        layer.weight = nn.Parameter(
            (layer.weight.double() + wide).to(layer.weight.dtype), layer.weight.requires_grad
        )
        return layer


def adapt(
    network: nn.Module,
    rank: int,
    alpha: float | None = None,
    *,
    targets: Sequence[str] | None = None,
    but: Collection[str] = (),
) -> dict[str, Adapted]:
    """Put adapters on layers of a network, in place.

    Args:
        network: whose answers stay the same at first, to the bit.
        rank: of the adapters, 1 or more.
        alpha: their answers are multiplied by ``alpha / rank``; by default ``alpha`` is ``rank``.
        targets: ends of the names of the layers, such as :data:`LCM_TARGETS`; by default all linear
            maps and convolutions, but for those in several groups and those that share weights.
        but: names of layers that get none.

    Returns:
        The adapted layers by the names of the layers that they replace.

    Raises:
        UsageError: the rank or alpha is none, or there is no layer to adapt.
    """
    if rank < 1:
        raise UsageError(f"the rank of adapters must be at least 1, got {rank}")
    alpha = float(rank) if alpha is None else alpha
    if not 0 < alpha < float("inf"):
        raise UsageError(f"alpha of adapters must be above 0, got {alpha}")
    adapted: dict[str, Adapted] = {}
    for name, layer in _layers(network).items():
        chosen = targets is None or any(f".{name}".endswith(f".{end}") for end in targets)
        if chosen and name not in but:
            adapted[name] = Adapted(layer, LowRankMap(layer, rank), alpha)
            _put(network, name, adapted[name])
    if not adapted:
        known = "" if targets is None else f" that ends in {' or '.join(targets)}"
        raise UsageError(f"{type(network).__name__} has no linear map and no convolution{known}")
    return adapted


def learn_adapters(
    network: nn.Module,
    rank: int,
    alpha: float | None = None,
    *,
    targets: Sequence[str] | None = None,
    whole: Collection[str] = (),
) -> None:
    """Freeze a network and put adapters on it, in place, so that little of it learns.

    Args:
        network: whose weights are frozen.
        rank: of the adapters.
        alpha: see :func:`adapt`.
        targets: see :func:`adapt`; by default the ``lora_targets`` of the network, if it has any.
        whole: names of parameters that learn as a whole, because they are new. Their layers get no
            adapters.
    """
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in whole)
    targets = getattr(network, "lora_targets", None) if targets is None else targets
    adapt(network, rank, alpha, targets=targets, but={name.rpartition(".")[0] for name in whole})
    network.__dict__[_WHOLE] = tuple(whole)


def learned_whole(network: nn.Module) -> tuple[str, ...]:
    """The parameters that learned as a whole beside a network's adapters, by name."""
    return network.__dict__.get(_WHOLE, ())


def base_names(module: nn.Module) -> set[str]:
    """Names of the frozen weights in a module's networks of which adapters alone learn."""
    names: set[str] = set()
    for place, network in module.named_modules(remove_duplicate=False):
        if _WHOLE in network.__dict__:
            learned = set(learned_whole(network))
            for name, layer in adapted_layers(network).items():
                learned |= {
                    f"{name}.adapter.{part}" for part, _ in layer.adapter.named_parameters()
                }
            every = {name for name, _ in network.named_parameters(remove_duplicate=False)}
            names |= {f"{place}.{name}" if place else name for name in every - learned}
    return names


def share_base(module: nn.Module, frozen: nn.Module) -> int:
    """Let networks of which adapters alone learn use the equal weights of a frozen module.

    Args:
        module: holds these networks, such as a student.
        frozen: whose weights never change, such as the student's teacher.

    Returns:
        How many parameters are shared now.
    """
    donors = [dict(part.named_parameters()) for part in frozen.modules()]
    count = 0
    for network in [m for m in module.modules() if _WHOLE in m.__dict__]:
        own = {name: network.get_parameter(name) for name in base_names(network)}
        plain = {name: name.replace(".layer.", ".") for name in own}
        # The part of the frozen module that has all of these names is the same network.
        donor = next((d for d in donors if d.keys() >= {*plain.values()}), {})
        for name, bare in plain.items():
            if bare in donor and torch.equal(own[name], donor[bare]):
                place, _, last = name.rpartition(".")
                setattr(network.get_submodule(place), last, donor[bare])
                count += 1
    return count


def adapted_layers(module: nn.Module) -> dict[str, Adapted]:
    """The adapted layers of a module by name."""
    return {name: m for name, m in module.named_modules() if isinstance(m, Adapted)}


def merged(module: M) -> M:
    """A copy whose adapters are added to the weights of their layers, so that none is left."""
    whole = copy.deepcopy(module)
    for name, layer in adapted_layers(whole).items():
        _put(whole, name, layer.merged())
    return whole


def _put(module: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, part)


def _layers(network: nn.Module) -> dict[str, nn.Module]:
    """The layers that can be adapted, by name.

    Layers and weights that occur in several places are left out: an adapter would belong to one of
    these places, but the weight that it is added to in the end belongs to all. So are projections
    of :class:`torch.nn.MultiheadAttention`, which reads their weights and does not call them.
    """
    named = [*network.named_modules(remove_duplicate=False)]
    places = Counter(id(module) for _, module in named)
    uses = Counter(id(p) for m in network.modules() for p in m.parameters(recurse=False))
    inside = {id(m.out_proj) for m in network.modules() if isinstance(m, nn.MultiheadAttention)}
    return {
        name: layer
        for name, layer in named
        if isinstance(layer, (nn.Linear, MPConv, *CONVOLUTIONS))
        and places[id(layer)] == uses[id(layer.weight)] == 1
        and getattr(layer, "groups", 1) == 1
        and id(layer) not in inside
    }


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
