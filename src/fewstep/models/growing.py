"""A trained denoiser with further inputs, which starts as what it was."""

from __future__ import annotations

import copy
import inspect
from typing import Any

from fewstep.core import UsageError
from fewstep.models.denoiser import AbstractDenoiser, Denoiser
from fewstep.models.nets import NETWORKS


def grown(
    denoiser: AbstractDenoiser, *, two_time: bool = False, guidance: bool = False
) -> Denoiser:
    """A copy that reads a second time or a guidance scale, and at first ignores both.

    All weights are copied and what is new adds nothing, so the answers are the same, to the bit,
    whatever the second time and the scale. Without anything new to read it is a plain copy.

    Args:
        denoiser: on one of the library's networks.
        two_time: read a second time.
        guidance: read ``cond["guidance"]``, ``(b,)``.

    Raises:
        UsageError: the network is not the library's, or has no such input.
    """
    if not isinstance(denoiser, Denoiser):
        raise UsageError(
            f"only a Denoiser has a network to grow, got {type(denoiser).__name__}; grow the one "
            "that it wraps"
        )
    net: Any = denoiser.net
    wanted = {
        "two_time": two_time and not net.two_time,
        "guidance": guidance and "guidance" not in net.cond_keys,
    }
    new = {name: True for name, yes in wanted.items() if yes}
    if not new:
        return copy.deepcopy(denoiser)
    if type(net) not in NETWORKS.values():
        raise UsageError(
            f"{type(net).__name__} is a network of your own: build it with {' and '.join(new)} "
            "yourself, load the old weights with strict=False, let the new ones start at zero, and "
            "make a Denoiser of it with the same preconditioning"
        )
    if unknown := [name for name in new if name not in net.options]:
        able = [cls.__name__ for cls in NETWORKS.values() if unknown[0] in _parameters(cls)]
        raise UsageError(
            f"{type(net).__name__} cannot read {unknown[0]}; these can: {', '.join(able)}"
        )
    bigger = type(net)(**{**net.options, **new})
    one = next(net.parameters())
    bigger.to(device=one.device, dtype=one.dtype).train(net.training)
    bigger.load_state_dict(net.state_dict(), strict=False)
    return Denoiser(bigger, denoiser.preconditioning)


def _parameters(cls: type) -> list[str]:
    return list(inspect.signature(cls).parameters)
