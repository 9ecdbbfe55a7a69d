"""What the U-Nets of EDM have in common: names of blocks, and sizes that their tensors show."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fewstep.errors import UsageError
from fewstep.importing.fitting import Target
from fewstep.importing.parts import Part
from fewstep.importing.storages import Lazy, sizes

FILTER = "the filter of resampling, which the model has in its code"


@dataclass(frozen=True)
class UNetShape:
    """Sizes of a U-Net.

    Args:
        resolution: height and width of a picture.
        channels_in: channels of a picture.
        widths: channels of each resolution, from fine to coarse.
        blocks: blocks of each resolution in the encoder.
        attention: whether the blocks of each resolution attend.
        middle_attention: whether the first block in the middle attends.
    """

    resolution: int
    channels_in: int
    widths: tuple[int, ...]
    blocks: int
    attention: tuple[bool, ...]
    middle_attention: bool

    def multipliers(self, channels: int) -> list[int]:
        """The widths in units of a number of channels.

        Raises:
            UsageError: they are no multiples of it.
        """
        if not channels or any(width % channels for width in self.widths):
            raise UsageError(
                f"the widths {self.widths} of the file's network are no multiples of its "
                f"{channels} channels"
            )
        return [width // channels for width in self.widths]

    @property
    def attending(self) -> list[int]:
        """The heights at which blocks attend."""
        levels = enumerate(self.attention)
        return [self.resolution >> level for level, attends in levels if attends]

    def level(self, level: int) -> str:
        """The start of the names of a resolution's blocks."""
        size = self.resolution >> level
        return f"{size}x{size}"


def unet_shape(
    tensors: Mapping[str, Lazy], conv: str = "conv0", attention: str = "qkv"
) -> UNetShape:
    """The sizes of a U-Net of EDM or EDM2.

    Args:
        tensors: of the network, without a prefix.
        conv: the name of a block's first convolution.
        attention: the name of the map to queries, keys and values.

    Raises:
        UsageError: they are of no such network.
    """
    first = [
        int(match[1])
        for name in tensors
        if (match := re.fullmatch(r"enc\.(\d{1,7})x\1_conv\.weight", name))
    ]
    if len(first) != 1 or not first[0]:
        raise UsageError(
            "the file's network has no first convolution under the name that EDM's U-Nets give it"
        )
    resolution = first[0]
    levels = 1 + sum(bool(re.fullmatch(rf"enc\.\d+x\d+_down\.{conv}\.weight", n)) for n in tensors)
    level = [f"{resolution >> i}x{resolution >> i}" for i in range(levels)]
    blocks = sum(
        bool(re.fullmatch(rf"enc\.{level[0]}_block\d+\.{conv}\.weight", n)) for n in tensors
    )
    widths = [sizes(tensors, f"enc.{name}_block0.{conv}.weight", 4)[0] for name in level]
    return UNetShape(
        resolution=resolution,
        channels_in=sizes(tensors, f"enc.{level[0]}_conv.weight", 4)[1],
        widths=tuple(widths),
        blocks=blocks,
        attention=tuple(f"enc.{name}_block0.{attention}.weight" in tensors for name in level),
        middle_attention=f"dec.{level[-1]}_in0.{attention}.weight" in tensors,
    )


def embedding_widths(tensors: Mapping[str, Lazy]) -> tuple[int, int]:
    """The widths of the embedding of time, and of what its first layer makes of it.

    Raises:
        UsageError: there is no such layer.
    """
    wide, narrow = sizes(tensors, "map_layer0.weight", 2)
    return narrow, wide


def module_names(shape: UNetShape) -> dict[str, str]:
    """The modules of one of EDM's U-Nets, and those of this library that do the same."""
    names = {f"enc.{shape.level(0)}_conv": "first"}
    count = 0
    for level in range(len(shape.widths)):
        if level:
            names[f"enc.{shape.level(level)}_down"] = f"encoder.{count}"
            count += 1
        for block in range(shape.blocks):
            names[f"enc.{shape.level(level)}_block{block}"] = f"encoder.{count}"
            count += 1
    count = 0
    for level in reversed(range(len(shape.widths))):
        if level == len(shape.widths) - 1:
            names |= {f"dec.{shape.level(level)}_in{i}": f"middle.{i}" for i in (0, 1)}
        else:
            names[f"dec.{shape.level(level)}_up"] = f"decoder.{count}"
            count += 1
        for block in range(shape.blocks + 1):
            names[f"dec.{shape.level(level)}_block{block}"] = f"decoder.{count}"
            count += 1
    return names


def targets_of(
    tensors: Mapping[str, Lazy],
    modules: Mapping[str, str],
    prefix: str,
    own: Mapping[str, str] | None = None,
) -> tuple[dict[str, Target], dict[str, str]]:
    """Where the tensors of these modules go, and which are filters.

    Args:
        tensors: of the file, without the prefix.
        modules: of the file, and those of the library.
        prefix: of the names in the file.
        own: names within a module of the file that are others in the library.
    """
    targets: dict[str, Target] = {}
    unused: dict[str, str] = {}
    for name in tensors:
        module = name
        while module and module not in modules:
            module = module.rpartition(".")[0]
        if name.endswith(".resample_filter"):
            unused[prefix + name] = FILTER
        elif module:
            layer, dot, last = name.removeprefix(f"{module}.").partition(".")
            targets[prefix + name] = Target(
                f"{modules[module]}.{(own or {}).get(layer, layer)}{dot}{last}"
            )
    return targets, unused


def check_blocks(
    parts: Mapping[str, Part], *, skip_scale: float, adaptive: bool, eps: float
) -> None:
    """Refuse blocks that compute something else than the library's.

    Raises:
        UsageError: an attribute of a block differs.
    """
    for name, part in parts.items():
        want: dict[str, float] = {}
        if part.kind == "UNetBlock":
            want = {"skip_scale": skip_scale, "adaptive_scale": adaptive}
        elif part.kind == "GroupNorm":
            channels = part.tensors["weight"].shape[0] if "weight" in part.tensors else 0
            want = {"eps": eps, "num_groups": max(1, min(32, channels // 4))}
        for attribute, value in want.items():
            have = part.attributes.get(attribute)
            if not isinstance(have, int | float) or not math.isclose(have, value, rel_tol=1e-6):
                raise UsageError(
                    f"{name} in the file has {attribute}={have!r}, the library's network has "
                    f"{value!r} there; this variant of the network cannot be imported"
                )


def check_filters(tensors: Mapping[str, Lazy], taps: tuple[int, ...]) -> None:
    """Refuse resampling by another filter.

    Raises:
        UsageError: it is another.
    """
    total = sum(taps)
    want = [a * b / total**2 for a in taps for b in taps]
    for name, tensor in tensors.items():
        if name.endswith(".resample_filter"):
            have = tensor.tensor().flatten().tolist() if tensor.nbytes <= 1024 else []
            same = len(have) == len(want) and all(
                math.isclose(a, b, abs_tol=1e-6) for a, b in zip(have, want, strict=True)
            )
            if not same:
                raise UsageError(
                    f"{name} in the file is not the filter {list(taps)} of this network family; "
                    "this variant of the network cannot be imported"
                )


def dropout_of(parts: Mapping[str, Part]) -> float:
    """The probability of dropout of the blocks."""
    for part in parts.values():
        if part.kind == "UNetBlock":
            return float(part.number("dropout"))
    return 0.0
