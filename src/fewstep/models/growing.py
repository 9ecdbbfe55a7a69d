"""A trained denoiser with further inputs, which starts as what it was."""

from __future__ import annotations

import copy
from inspect import signature
from typing import Any

import torch

from fewstep.core import UsageError
from fewstep.models.denoiser import AbstractDenoiser, Denoiser
from fewstep.models.nets import NETWORKS
from fewstep.models.spec import build_network, network_spec


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
    spec = network_spec(net)
    if spec["kind"] == "custom":
        raise UsageError(
            f"{type(net).__name__} is a network of your own: build it with {' and '.join(new)} "
            "yourself, load the old weights with strict=False, let the new ones start at zero, and "
            "make a Denoiser of it with the same preconditioning"
        )
    for name, what in (("guidance", "guidance scale"), ("two_time", "second time")):
        if name in new and name not in spec:
            able = [c.__name__ for c in NETWORKS.values() if name in signature(c).parameters]
            raise UsageError(
                f"{type(net).__name__} has no input for a {what}; {', '.join(able)} have one"
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bigger = build_network({**spec, **new})
    one = next(net.parameters())
    bigger.to(device=one.device, dtype=one.dtype).train(net.training)
    state, own = net.state_dict(), getattr(bigger, "grown_state", None)
    bigger.load_state_dict(state if own is None else own(state), strict=False)
    return Denoiser(bigger, denoiser.preconditioning)
