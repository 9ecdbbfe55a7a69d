"""EDM's ``SongUNet`` in its two published variants, DDPM++ and NCSN++."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fewstep.errors import UsageError
from fewstep.importing.architectures.karras import (
    check_blocks,
    check_filters,
    dropout_of,
    embedding_widths,
    module_names,
    targets_of,
    unet_shape,
)
from fewstep.importing.fitting import Description, Target
from fewstep.importing.parts import Part
from fewstep.importing.storages import Lazy, sizes

EMBEDDINGS = {
    "map_layer0": "map_layer0",
    "map_layer1": "map_layer1",
    "map_label": "map_label.linear",
    "map_augment": "map_augment",
    "map_layer0_s": "end_layer0",
    "map_layer1_s": "end_layer1",
}
SCALE = "the learned uncertainty, which training needs and generating does not"


def song(
    tensors: Mapping[str, Lazy], parts: Mapping[str, Part] | None = None, prefix: str = ""
) -> Description:
    """The network of the library that computes what a ``SongUNet`` computes.

    Args:
        tensors: of the network, by their names without the prefix.
        parts: its modules by name, where the file has them.
        prefix: of the tensors' names in the file.

    Raises:
        UsageError: it is no such network, or a variant that the library does not have.
    """
    parts = parts or {}
    shape = unet_shape(tensors)
    noise, embedding = embedding_widths(tensors)
    channels = sizes(tensors, f"enc.{shape.level(0)}_conv.weight", 4)[0]
    fourier = "map_noise.freqs" in tensors
    pyramid = any(name.endswith("_aux_residual.weight") for name in tensors)
    extra = [n for n in tensors if "_aux_down" in n or "_aux_skip" in n or "_aux_up" in n]
    if fourier != pyramid or extra:
        raise UsageError(
            "the file's SongUNet mixes embeddings and encoders as no published network does; "
            "DDPM++ (positional, standard) and NCSN++ (fourier, residual) can be imported"
        )
    separate = "map_layer0_s.weight" in tensors
    joined = not fourier and not separate and noise == 2 * channels
    if noise != channels * (1 + fourier + joined) or embedding != 4 * channels:
        raise UsageError(
            f"the file's SongUNet embeds time in {noise} and {embedding} channels; "
            f"the published networks of {channels} channels have {channels * (1 + fourier)} and "
            f"{4 * channels}"
        )
    if not shape.middle_attention:
        raise UsageError("the file's SongUNet has no attention in the middle")
    check_blocks(parts, skip_scale=math.sqrt(0.5), adaptive=False, eps=1e-6)
    heads = {p.attributes.get("num_heads") for p in parts.values() if "qkv" in p.children}
    if heads - {1}:
        raise UsageError(f"the file's SongUNet has {heads} attention heads, expected 1")
    check_filters(tensors, (1, 3, 3, 1) if fourier else (1, 1))

    modules = {**EMBEDDINGS, **module_names(shape)}
    modules |= {f"dec.{shape.level(0)}_aux_norm": "last_norm"}
    modules |= {f"dec.{shape.level(0)}_aux_conv": "last"}
    if fourier:
        modules |= {
            f"enc.{shape.level(level)}_aux_residual": f"pyramid.{level - 1}.conv"
            for level in range(1, len(shape.widths))
        }
    targets, unused = targets_of(tensors, modules, prefix)
    if fourier:
        targets[f"{prefix}map_noise.freqs"] = Target("map_noise.frequencies")
    classes, augment = (
        sizes(tensors, f"{name}.weight", 2)[1] if f"{name}.weight" in tensors else 0
        for name in ("map_label", "map_augment")
    )
    spec = {
        "kind": "ncsnpp" if fourier else "ddpmpp",
        "shape": [shape.channels_in, shape.resolution, shape.resolution],
        "channels": channels,
        "multipliers": shape.multipliers(channels),
        "blocks": shape.blocks,
        "attention": shape.attending,
        "dropout": dropout_of(parts),
        "classes": classes,
        "augment": augment,
    }
    if separate or joined:
        spec |= {"two_time": True, "end": "separate" if separate else "joined"}
    unused |= {f"{prefix}{name}": SCALE for name in tensors if name.startswith("logvar_")}
    return Description(spec, targets, unused)
