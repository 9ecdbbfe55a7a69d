"""The one-dimensional U-Net of Diffusion Policy and Consistency Policy."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fewstep.errors import UsageError
from fewstep.importing.fitting import Description, Target
from fewstep.importing.storages import Lazy, sizes

FIRST = "diffusion_step_encoder.1.weight"
"""A tensor that every such network has."""

BLOCK = {
    "blocks.0.block.0": "before.conv",
    "blocks.0.block.1": "before.norm",
    "blocks.1.block.0": "after.conv",
    "blocks.1.block.1": "after.norm",
    "cond_encoder.1": "modulate",
    "residual_conv": "skip",
}
MODULES = {
    "diffusion_step_encoder.1": "time.first",
    "diffusion_step_encoder.3": "time.last",
    "final_conv.0.block.0": "last_block.conv",
    "final_conv.0.block.1": "last_block.norm",
    "final_conv.1": "last",
}
PAIR = ("first", "second")


def policy_unet(
    tensors: Mapping[str, Lazy], *, horizon: int, groups: int, two_time: bool
) -> Description:
    """The network of the library that computes what such a U-Net computes.

    Args:
        tensors: of the network, by name.
        horizon: steps of a chunk.
        groups: of each normalisation.
        two_time: whether it reads a second time beside the first.

    Raises:
        UsageError: it is no such network.
    """
    embedding = sizes(tensors, FIRST, 2)[1]
    width, actions, kernel = sizes(tensors, "down_modules.0.0.blocks.0.block.0.weight", 3)
    rows, read = sizes(tensors, "down_modules.0.0.cond_encoder.1.weight", 2)
    numbers = {int(m[1]) for n in tensors if (m := re.match(r"down_modules\.(\d{1,2})\.", n))}
    if numbers != {*range(len(numbers))} or rows != 2 * width:
        raise UsageError(
            "the file's network has other resolutions than a U-Net of diffusion policies, or its "
            "blocks only shift and do not scale, which the library's do"
        )
    levels = [
        sizes(tensors, f"down_modules.{k}.0.blocks.0.block.0.weight", 3)[0] for k in sorted(numbers)
    ]
    observed = read - embedding * (2 if two_time else 1)
    if observed < 1:
        raise UsageError(f"the file's network reads {read} numbers, and none of observations")
    last = len(levels) - 1
    modules = dict(MODULES)
    places = {f"mid_modules.{k}": f"middle.{PAIR[k]}" for k in range(2)}
    for k in range(len(levels)):
        places |= {f"down_modules.{k}.{i}": f"encoder.{k}.{PAIR[i]}" for i in range(2)}
    for k in range(last):
        places |= {f"up_modules.{k}.{i}": f"decoder.{k}.{PAIR[i]}" for i in range(2)}
        modules |= {f"down_modules.{k}.2.conv": f"down.{k}", f"up_modules.{k}.2.conv": f"up.{k}"}
    for theirs, ours in places.items():
        modules |= {f"{theirs}.{t}": f"{ours}.{o}" for t, o in BLOCK.items()}
    targets = {}
    for name in tensors:
        module, _, kind = name.rpartition(".")
        if module in modules:
            targets[name] = Target(f"{modules[module]}.{kind}")
    spec = {
        "kind": "unet1d",
        "shape": [actions, horizon],
        "widths": levels,
        "embedding": embedding,
        "kernel": kernel,
        "two_time": two_time,
        "vectors": {"observation": observed},
        "joined": True,
        "groups": groups,
    }
    return Description(spec, targets)
