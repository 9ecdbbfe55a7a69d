"""DiT and SiT, which are one network."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from fewstep.errors import UsageError
from fewstep.importing.fitting import Description, Target
from fewstep.importing.options import ImportOptions
from fewstep.importing.storages import Lazy, sizes
from fewstep.models.nets.dit import position_embedding

MODULES = {
    "x_embedder.proj": "first",
    "t_embedder.mlp.0": "time.first",
    "t_embedder.mlp.2": "time.last",
    "y_embedder.embedding_table": "label",
    "final_layer.adaLN_modulation.1": "modulate",
    "final_layer.linear": "last",
}
BLOCK = {
    "attn.qkv": "qkv",
    "attn.proj": "proj",
    "mlp.fc1": "up",
    "mlp.fc2": "down",
    "adaLN_modulation.1": "modulate",
}
HALF = (
    "the second half of the network's output (DiT's variance, which SiT leaves unused) is left out"
)


def dit(tensors: Mapping[str, Lazy], options: ImportOptions) -> Description:
    """The network of the library that computes what a DiT or a SiT computes.

    Args:
        tensors: of the file.
        options: heads, which the tensors do not show.

    Raises:
        UsageError: it is no such network, or an option is needed.
    """
    width, channels, patch, _ = sizes(tensors, "x_embedder.proj.weight", 4)
    tokens = sizes(tensors, "pos_embed", 3)[1]
    rows = sizes(tensors, "final_layer.linear.weight", 2)[0]
    classes = sizes(tensors, "y_embedder.embedding_table.weight", 2)[0] - 1
    side = math.isqrt(tokens)
    numbers = {int(m[1]) for n in tensors if (m := re.match(r"blocks\.(\d{1,4})\.", n))}
    if side**2 != tokens or numbers != {*range(len(numbers))}:
        raise UsageError(f"the file's network has {tokens} tokens and blocks {sorted(numbers)[:9]}")
    if options.heads is None and options.head_channels is None:
        raise UsageError(
            "the file does not say how many attention heads its network has; give --heads N (6, "
            "12, 16 and 16 in the published sizes S, B, L and XL)"
        )
    heads = options.heads or width // (options.head_channels or width)
    if width % 4 or not heads or width % heads:
        raise UsageError(
            f"the file's network has {width} channels, which {heads} heads cannot share"
        )
    _check_positions(tensors["pos_embed"], side, width)
    modules = dict(MODULES)
    for number in numbers:
        modules |= {f"blocks.{number}.{t}": f"blocks.{number}.{o}" for t, o in BLOCK.items()}
    targets: dict[str, Target] = {"pos_embed": Target("position", lambda t: t[0])}
    for name in tensors:
        module, _, last = name.rpartition(".")
        if module in modules:
            targets[name] = Target(f"{modules[module]}.{last}")
    targets["x_embedder.proj.weight"] = Target("first.weight", lambda t: t.flatten(1))
    halved = rows == 2 * channels * patch**2

    def first_half(values: Tensor) -> Tensor:
        # Rows are ordered by row and column of the patch, then channel.
        return values.unflatten(0, (patch**2, -1))[:, :channels].flatten(0, 1).clone()

    for last in ("weight", "bias") if halved else ():
        targets[f"final_layer.linear.{last}"] = Target(f"last.{last}", first_half)
    spec = {
        "kind": "dit",
        "shape": [channels, side * patch, side * patch],
        "patch": patch,
        "depth": len(numbers),
        "width": width,
        "heads": heads,
        "classes": classes,
    }
    return Description(spec, targets, {}, (HALF,) if halved else ())


def _check_positions(stored: Lazy, side: int, width: int) -> None:
    """Refuse other positions than the library's, which some continue by themselves.

    Raises:
        UsageError: the positions are others.
    """
    if stored.shape != (1, side * side, width) or stored.nbytes > 2**28:
        raise UsageError(f"the file's positions have the shape {stored.shape}")
    if not torch.allclose(
        stored.tensor()[0].float(), position_embedding(side, side, width), atol=1e-4
    ):
        raise UsageError(
            "the file's pos_embed is not the sines and cosines of DiT; this variant of the network "
            "cannot be imported"
        )
