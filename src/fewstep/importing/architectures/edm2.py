"""EDM2's magnitude-preserving ``UNet``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from fewstep.errors import UsageError
from fewstep.importing.architectures.heads import heads_option
from fewstep.importing.architectures.karras import module_names, targets_of, unet_shape
from fewstep.importing.fitting import Description, Target
from fewstep.importing.parts import Part
from fewstep.importing.storages import Lazy, sizes
from fewstep.models.nets.edm2_block import Balance

LAYERS = {
    "emb_gain": "gain",
    "conv_res0": "conv0",
    "conv_res1": "conv1",
    "emb_linear": "modulate",
    "conv_skip": "skip",
    "attn_qkv": "qkv",
    "attn_proj": "proj",
}
"""The layers of a block, and their names in the library."""

MODULES = {"emb_fourier": "fourier", "emb_noise": "time", "emb_label": "label", "out_conv": "last"}
BUFFERS = {"freqs": "frequencies", "phases": "phases"}


def edm2_unet(
    tensors: Mapping[str, Lazy], parts: Mapping[str, Part], prefix: str = ""
) -> Description:
    """The network of the library that computes what EDM2's ``UNet`` computes.

    Args:
        tensors: of the network, by their names without the prefix.
        parts: its modules by name.
        prefix: of the tensors' names in the file.

    Raises:
        UsageError: it is no such network, or a variant that the library does not have.
    """
    shape = unet_shape(tensors, "conv_res0", "attn_qkv")
    embedding, wide = sizes(tensors, "emb_noise.weight", 2)
    classes = sizes(tensors, "emb_label.weight", 2)[1] if "emb_label.weight" in tensors else 0
    # The finest width is a multiple of the channels; the largest number that all widths share
    # describes the same network.
    channels = math.gcd(*shape.widths, embedding, wide)
    targets, unused = targets_of(tensors, {**MODULES, **module_names(shape)}, prefix, LAYERS)
    targets |= {
        f"{prefix}emb_fourier.{theirs}": Target(f"fourier.{ours}")
        for theirs, ours in BUFFERS.items()
    }
    for name, target in [*targets.items()]:
        if name.endswith(".emb_gain"):
            targets[name] = Target(target.name, _row)
    targets[f"{prefix}out_gain"] = Target("last_gain", _row)
    spec: dict[str, Any] = {
        "kind": "edm2",
        "shape": [shape.channels_in - 1, shape.resolution, shape.resolution],
        "channels": channels,
        "multipliers": shape.multipliers(channels),
        "blocks": shape.blocks,
        "attention": shape.attending,
        "dropout": _shared(parts, "dropout", 0.0),
        "classes": classes,
        "middle_attention": shape.middle_attention,
        "noise_multiplier": 0 if wide == shape.widths[0] else wide // channels,
        "embedding_multiplier": 0 if embedding == max(shape.widths) else embedding // channels,
        **heads_option(parts),
    }
    if "heads" in spec:
        raise UsageError("the file's EDM2 network has heads of different widths")
    unet = parts[""].attributes
    balance = {
        "residual": _shared(parts, "res_balance", 0.3),
        "attention": _shared(parts, "attn_balance", 0.3),
        "limit": _shared(parts, "clip_act", 256.0),
        "concat": _number(unet.get("concat_balance"), 0.5),
        "label": _number(unet.get("label_balance"), 0.5),
    }
    usual = asdict(Balance())
    spec["balance"] = {name: own for name, own in balance.items() if own != usual[name]}
    return Description(spec, targets, unused)


def _row(scalar: Tensor) -> Tensor:
    return scalar.reshape(1)


def _number(value: Any, usual: float) -> float:
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"the file's EDM2 network has a balance that is no number: {value!r:.100}")
    return float(value)


def _shared(parts: Mapping[str, Part], name: str, usual: float) -> float:
    """A number that all blocks have."""
    values = {_number(p.attributes.get(name), usual) for p in parts.values() if p.kind == "Block"}
    if len(values) > 1:
        raise UsageError(f"the blocks of the file's EDM2 network differ in {name}: {values}")
    return values.pop() if values else usual
