"""diffusers' ``UNet2DModel`` with the blocks of DDPM, ADM and consistency models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UsageError
from fewstep.importing.fitting import Description, Target
from fewstep.importing.storages import Lazy

RESIDUAL = {
    "norm1": "norm0",
    "conv1": "conv0",
    "time_emb_proj": "affine",
    "norm2": "norm1",
    "conv2": "conv1",
    "conv_shortcut": "skip",
}
ATTENTION = {"group_norm": "norm2", "qkv": "qkv", "to_out.0": "proj"}
OLDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names that attention had before diffusers 0.13."""
DOWN = {"DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"}
UP = {"UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"}
FIXED: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1, 1.0),
    "act_fn": ("silu", "swish"),
    "class_embed_type": (None,),
    "freq_shift": (0, 1),
    "downsample_padding": (0, 1),
    "resnet_time_scale_shift": ("default", "scale_shift"),
}
"""Values that the library's network has a counterpart for; the first is diffusers' default."""
DEFAULTS = {
    "time_embedding_dim": None,
    "flip_sin_to_cos": True,
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "dropout": 0.0,
    "add_attention": True,
    "num_class_embeds": None,
    "downsample_padding": 1,
    "attn_norm_num_groups": None,
}
"""diffusers' defaults, for configurations that leave these out."""


def prepared(tensors: Mapping[str, Lazy], heads: Mapping[int, int]) -> dict[str, Lazy]:
    """The tensors under today's names, with queries, keys and values as one.

    Args:
        tensors: of the network.
        heads: the number of heads of an attention with that many channels.

    Raises:
        UsageError: a block lacks one of the three.
    """
    named: dict[str, Lazy] = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if "attentions" in parts and len(parts) > 2 and parts[-2] in OLDER:
            parts[-2] = OLDER[parts[-2]]
        named[".".join(parts)] = tensor
    for name in [name for name in named if re.search(r"\.to_q\.(weight|bias)$", name)]:
        three = [name.replace(".to_q.", f".{each}.") for each in ("to_q", "to_k", "to_v")]
        if any(each not in named for each in three):
            raise UsageError(f"the file's network has {name} without the keys or the values")
        block = [named.pop(each) for each in three]
        named[name.replace(".to_q.", ".qkv.")] = _joined(name, block, heads)
    return named


def _joined(name: str, block: list[Lazy], heads: Mapping[int, int]) -> Lazy:
    shape = block[0].shape
    if not shape or any(each.shape != shape for each in block) or shape[0] not in heads:
        raise UsageError(f"the queries, keys and values at {name} do not fit together")
    count = heads[shape[0]]

    def load() -> Tensor:
        three = torch.stack([each.tensor() for each in block])
        split = three.reshape(3, count, -1, *shape[1:])
        # The library's rows are ordered by head, then channel, then q, k, v.
        return split.permute(1, 2, 0, *range(3, split.ndim)).reshape(3 * shape[0], *shape[1:])

    return Lazy((3 * shape[0], *shape[1:]), block[0].dtype, load)


def diffusers_unet(
    config: Mapping[str, Any], tensors: Mapping[str, Lazy]
) -> tuple[Description, dict[str, Lazy]]:
    """The network of the library that computes what such a network computes, and its tensors.

    Args:
        config: of the network.
        tensors: of its weights.

    Raises:
        UsageError: the configuration has something that the library's network has not.
    """
    whole = {**{name: values[0] for name, values in FIXED.items()}, **DEFAULTS, **config}
    for name, values in FIXED.items():
        if whole[name] not in values:
            raise UsageError(
                f"the network's {name} is {whole[name]!r:.100}; "
                f"{' or '.join(map(repr, values))} can be imported"
            )
    widths = _numbers(whole, "block_out_channels")
    levels, blocks = len(widths), _number(whole, "layers_per_block")
    down, up = (whole.get(f"{name}_block_types") for name in ("down", "up"))
    if not (isinstance(down, list) and isinstance(up, list) and len(down) == len(up) == levels):
        raise UsageError("the network's lists of blocks are not as long as block_out_channels")
    attention = ["Attn" in str(kind) for kind in down]
    strange = {*map(str, down)} - DOWN | {*map(str, up)} - UP
    if strange or attention != ["Attn" in str(kind) for kind in reversed(up)]:
        raise UsageError(
            f"the network's blocks {down} and {up} are not those of DDPM, ADM or consistency "
            f"models, which are {sorted(DOWN)} and {sorted(UP)}"
        )
    size = whole.get("sample_size")
    side = [size, size] if isinstance(size, int) else size
    if not (isinstance(side, list) and len(side) == 2 and all(type(n) is int for n in side)):
        raise UsageError(f"the network's sample_size is {size!r:.100}; expected a number")
    each = whole["attention_head_dim"]
    attending = [w for w, attends in zip(widths, attention, strict=True) if attends]
    attending += widths[-1:] if whole["add_attention"] else []
    heads = {w: w // each if type(each) is int and each > 0 else 1 for w in attending}
    if not all(count and width % count == 0 for width, count in heads.items()):
        raise UsageError(f"the widths {attending} do not split into heads of {each} channels")
    groups, inner = _number(whole, "norm_num_groups"), whole["attn_norm_num_groups"]
    if inner not in (None, groups) or any(width % widths[0] for width in widths):
        raise UsageError(
            f"the network has widths {widths} with {groups} groups and {inner} groups in "
            "attention; widths that are multiples of the first, and one number of groups, can be "
            "imported"
        )
    embedding = whole["time_embedding_dim"] and _number(whole, "time_embedding_dim")
    if embedding and embedding % widths[0]:
        raise UsageError(
            f"the network embeds time in {embedding} channels; multiples of its first width "
            f"{widths[0]} can be imported"
        )
    named = prepared(tensors, heads)
    names = modules(levels, blocks)
    targets: dict[str, Target] = {}
    for name in named:
        module, _, last = name.rpartition(".")
        if module in names:
            change = _image if module.endswith((".qkv", ".to_out.0")) and last == "weight" else None
            targets[name] = Target(f"{names[module]}.{last}", change)
    spec = {
        "kind": "adm",
        "shape": [_number(whole, "in_channels", 3), *side],
        "channels": widths[0],
        "multipliers": [width // widths[0] for width in widths],
        "blocks": blocks,
        "attention": [side[0] >> level for level, attends in enumerate(attention) if attends],
        "dropout": whole["dropout"],
        "classes": _number(whole, "num_class_embeds") if whole["num_class_embeds"] else 0,
        "scale_shift": whole["resnet_time_scale_shift"] == "scale_shift",
        "middle_attention": bool(whole["add_attention"]),
        "groups": groups,
        "eps": whole["norm_eps"],
        "convolutions": any(name.endswith("downsamplers.0.conv.weight") for name in named),
        "asymmetric": whole["downsample_padding"] == 0,
        "sin_first": not whole["flip_sin_to_cos"],
        "endpoint": whole["freq_shift"] == 1,
        **({"embedding_multiplier": embedding // widths[0]} if embedding else {}),
        **({"head_channels": each} if type(each) is int else {"heads": 1}),
    }
    if whole.get("out_channels", spec["shape"][0]) != spec["shape"][0]:
        raise UsageError("the network has another number of output channels than of input channels")
    return Description(spec, targets), named


def modules(levels: int, blocks: int) -> dict[str, str]:
    """The modules of such a network, and those of the library that do the same.

    Args:
        levels: the number of resolutions.
        blocks: the number of residual blocks of each resolution in the encoder.
    """
    names = {
        "conv_in": "first",
        "time_embedding.linear_1": "map_layer0",
        "time_embedding.linear_2": "map_layer1",
        "class_embedding": "map_label",
        "conv_norm_out": "last_norm",
        "conv_out": "last",
    }

    def add(place: str, index: int, ours: str) -> None:
        names.update({f"{place}.resnets.{index}.{t}": f"{ours}.{o}" for t, o in RESIDUAL.items()})
        names.update(
            {f"{place}.attentions.{index}.{t}": f"{ours}.{o}" for t, o in ATTENTION.items()}
        )

    def resample(place: str, ours: str) -> None:
        names.update({f"{place}.0.{t}": f"{ours}.{o}" for t, o in RESIDUAL.items()})
        names[f"{place}.0.conv"] = f"{ours}.conv"

    count = 0
    for level in range(levels):
        for index in range(blocks):
            add(f"down_blocks.{level}", index, f"encoder.{count}")
            count += 1
        if level < levels - 1:
            resample(f"down_blocks.{level}.downsamplers", f"encoder.{count}")
            count += 1
    add("mid_block", 0, "middle.0")
    names |= {f"mid_block.resnets.1.{t}": f"middle.1.{o}" for t, o in RESIDUAL.items()}
    count = 0
    for level in range(levels):
        for index in range(blocks + 1):
            add(f"up_blocks.{level}", index, f"decoder.{count}")
            count += 1
        if level < levels - 1:
            resample(f"up_blocks.{level}.upsamplers", f"decoder.{count}")
            count += 1
    return names


def _image(weight: Tensor) -> Tensor:
    return weight.reshape(*weight.shape[:2], 1, 1)


def _number(config: Mapping[str, Any], name: str, usual: int | None = None) -> int:
    value = config.get(name, usual)
    if type(value) is not int or not 0 < value <= 2**20:
        raise UsageError(f"the network's {name} is {value!r:.100}; expected a whole number above 0")
    return value


def _numbers(config: Mapping[str, Any], name: str) -> list[int]:
    values = config.get(name)
    if not isinstance(values, list) or not 0 < len(values) <= 20:
        raise UsageError(f"the network's {name} is {values!r:.100}; expected a list of numbers")
    return [_number({name: value}, name) for value in values]
