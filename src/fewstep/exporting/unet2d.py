"""An ADM network as diffusers' ``UNet2DModel``: the inverse of what an import does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fewstep.errors import UsageError
from fewstep.importing.architectures.diffusers import modules
from fewstep.models.nets import ADM
from fewstep.models.spec import network_spec

DOORS = "export to onnx, openvino or torch instead"
"""Formats that hold every network."""


def unet2d(network: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors of a ``UNet2DModel`` that computes the same.

    Args:
        network: of a model, on any device.

    Returns:
        ``config.json`` as a dictionary, and the tensors by diffusers' names in float32 on the CPU.

    Raises:
        UsageError: ``UNet2DModel`` has no counterpart for something in the network.
    """
    if type(network) is not ADM:
        kind = network_spec(network)["kind"]
        name = type(network).__name__ if kind == "custom" else kind
        raise UsageError(
            f"a network of the kind {name} cannot be held by UNet2DModel, which holds adm; {DOORS}"
        )
    _check(network)
    config = _config(network)
    return config, _tensors(network, len(config["block_out_channels"]), config["layers_per_block"])


def _check(network: ADM) -> None:
    """Refuse what ``UNet2DModel`` has no place for."""
    options = network.options
    reasons = {
        "it reads two times": network.two_time,
        "it reads a guidance scale": bool(options["guidance"]),
        "it reads conditions other than a label": bool({*network.cond_keys} - {"label"}),
        "it normalises the scale and the shift of its blocks": bool(options["double_norm"]),
    }
    for reason, holds in reasons.items():
        if holds:
            raise UsageError(f"UNet2DModel cannot hold this adm network: {reason}; {DOORS}")


def _config(network: ADM) -> dict[str, Any]:
    options = network.options
    channels, height, width = options["shape"]
    widths = [n * options["channels"] for n in options["multipliers"]]
    attends = [height >> level in options["attention"] for level in range(len(widths))]
    middle = options.get("middle_attention", True)
    convolutions = options.get("convolutions", False)
    groups = _groups(network)
    plain = ("DownBlock2D", "UpBlock2D")
    if not convolutions:
        plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    multiple = options.get("embedding_multiplier", 4)
    return {
        "_class_name": "UNet2DModel",
        "sample_size": height if height == width else [height, width],
        "in_channels": channels,
        "out_channels": channels,
        "layers_per_block": options["blocks"],
        "block_out_channels": widths,
        "down_block_types": ["AttnDownBlock2D" if yes else plain[0] for yes in attends],
        "up_block_types": ["AttnUpBlock2D" if yes else plain[1] for yes in reversed(attends)],
        "mid_block_type": "UNetMidBlock2D",
        "add_attention": middle,
        "attention_head_dim": _head_channels(network, widths, attends),
        "downsample_type": "conv" if convolutions else "resnet",
        "upsample_type": "conv" if convolutions else "resnet",
        "downsample_padding": 0 if options.get("asymmetric", False) else 1,
        "resnet_time_scale_shift": "scale_shift" if options["scale_shift"] else "default",
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups,
        "norm_eps": options.get("eps", 1e-5),
        "act_fn": "silu",
        "dropout": options["dropout"],
        "time_embedding_type": "positional",
        "time_embedding_dim": None if multiple == 4 else multiple * options["channels"],
        "flip_sin_to_cos": not options.get("sin_first", False),
        "freq_shift": 1 if options.get("endpoint", False) else 0,
        "num_class_embeds": options["classes"] or None,
    }


def _groups(network: ADM) -> int:
    """The one number of groups of every group normalisation."""
    groups = {part.num_groups for part in network.modules() if isinstance(part, nn.GroupNorm)}
    if len(groups) > 1:
        raise UsageError(
            "UNet2DModel cannot hold this adm network: its normalisations have "
            f"{' and '.join(map(str, sorted(groups)))} groups, where UNet2DModel has one number "
            f"for all (widths of 128 and more have 32); {DOORS}"
        )
    return groups.pop()


def _head_channels(network: ADM, widths: list[int], attends: list[bool]) -> int | None:
    """The channels of every attention head; None for one head of whatever width."""
    options = network.options
    heads = options.get("heads", 0)
    attending = {w for w, yes in zip(widths, attends, strict=True) if yes}
    attending |= {widths[-1]} if options.get("middle_attention", True) else set()
    if not attending or heads == 1:
        return None
    sizes = {w // heads if heads else options.get("head_channels", 64) for w in attending}
    if len(sizes) > 1:
        raise UsageError(
            f"UNet2DModel cannot hold this adm network: it has {heads} attention heads at the "
            f"widths {sorted(attending)}, where UNet2DModel's heads are equally wide; {DOORS}"
        )
    return sizes.pop()


def _tensors(network: ADM, levels: int, blocks: int) -> dict[str, Tensor]:
    theirs = {ours: name for name, ours in modules(levels, blocks).items()}
    tensors: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        module, _, last = name.rpartition(".")
        value = value.detach().float().cpu()
        if module.endswith((".qkv", ".proj")):
            value = value.flatten(1) if value.ndim > 1 else value
        if module.endswith(".qkv"):
            tensors |= _split(theirs[module], last, value)
        else:
            tensors[f"{theirs[module]}.{last}"] = value.contiguous()
    return tensors


def _split(module: str, last: str, rows: Tensor) -> Mapping[str, Tensor]:
    """Queries, keys and values; the library's rows are ordered by head, channel, then q, k, v."""
    block = module.removesuffix(".qkv")
    return {
        f"{block}.{name}.{last}": rows[i::3].clone()
        for i, name in enumerate(("to_q", "to_k", "to_v"))
    }
