"""The U-Net of OpenAI's guided-diffusion and consistency_models, which is ADM by other names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fewstep.errors import UsageError
from fewstep.importing.fitting import Description, Target
from fewstep.importing.options import ImportOptions
from fewstep.importing.storages import Lazy, sizes

EMBEDDINGS = {
    "time_embed.0": "map_layer0",
    "time_embed.2": "map_layer1",
    "time_embed_s.0": "end_layer0",
    "time_embed_s.2": "end_layer1",
    "label_emb": "map_label",
    "out.0": "last_norm",
    "out.2": "last",
    "input_blocks.0.0": "first",
}
RESIDUAL = {
    "in_layers.0": "norm0",
    "in_layers.2": "conv0",
    "emb_layers.1": "affine",
    "out_layers.0": "norm1",
    "out_layers.3": "conv1",
    "skip_connection": "skip",
}
ATTENTION = {"norm": "norm2", "qkv": "qkv", "proj_out": "proj"}
GROUPS = 32
"""Groups of every group normalisation."""
VARIANCE = "the second half of the network's output, a learned variance, is left out"


@dataclass(frozen=True)
class Layout:
    """Which of a network's blocks stand where.

    Args:
        blocks: residual blocks of each resolution in the encoder.
        widths: channels of each resolution.
        attention: whether the blocks of each resolution attend.
        convolutions: whether bare convolutions resample.
        modules: the modules of the file, and those of the library that do the same.
    """

    blocks: int
    widths: tuple[int, ...]
    attention: tuple[bool, ...]
    convolutions: bool
    modules: Mapping[str, str]


def layout_of(tensors: Mapping[str, Lazy]) -> Layout:
    """The blocks of such a network.

    Raises:
        UsageError: they are not regular.
    """
    inputs, outputs = (_count(tensors, name) for name in ("input_blocks", "output_blocks"))
    # The last block of a resolution in the decoder is followed by what doubles the resolution.
    ups: dict[int, str] = {}
    for name in tensors:
        match = re.fullmatch(r"output_blocks\.(\d+)\.([12])\.(in_layers\.0|conv)\.weight", name)
        if match:
            ups[int(match[1])] = f"{match[1]}.{match[2]}"
    each = min(ups, default=outputs - 1) + 1
    levels = outputs // each if each else 0
    regular = [each * (level + 1) - 1 for level in range(levels - 1)]
    if each < 2 or outputs != each * levels or inputs != outputs or sorted(ups) != regular:
        raise UsageError(
            f"the file's network has {inputs} input blocks and {outputs} output blocks, which are "
            "not as many for each resolution"
        )
    modules = dict(EMBEDDINGS)
    widths: list[int] = []
    attention: list[bool] = []
    for level in range(levels):
        first = 1 + level * each
        widths.append(sizes(tensors, f"input_blocks.{first}.0.in_layers.2.weight", 4)[0])
        attention.append(f"input_blocks.{first}.1.qkv.weight" in tensors)
    convolutions = any(re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", name) for name in tensors)
    for i in range(1, inputs):
        down = convolutions and i % each == 0
        modules |= (
            {f"input_blocks.{i}.0.op": f"encoder.{i - 1}.conv"}
            if down
            else _block(f"input_blocks.{i}", f"encoder.{i - 1}")
        )
    modules |= _block("middle_block", "middle.0") | _residual("middle_block.2", "middle.1")
    place = 0
    for i in range(outputs):
        modules |= _block(f"output_blocks.{i}", f"decoder.{place}")
        place += 1
        if i in ups:
            up = f"output_blocks.{ups[i]}"
            conv = {f"{up}.conv": f"decoder.{place}.conv"}
            modules |= conv if convolutions else _residual(up, f"decoder.{place}")
            place += 1
    return Layout(each - 1, tuple(widths), tuple(attention), convolutions, modules)


def openai_unet(tensors: Mapping[str, Lazy], options: ImportOptions) -> Description:
    """The network of the library that computes what such a network computes.

    Args:
        tensors: of the file.
        options: resolution and heads, which the tensors do not show.

    Raises:
        UsageError: it is no such network, or an option is needed.
    """
    layout = layout_of(tensors)
    embedding, channels = sizes(tensors, "time_embed.0.weight", 2)
    in_channels = sizes(tensors, "input_blocks.0.0.weight", 4)[1]
    halved = sizes(tensors, "out.2.weight", 4)[0] == 2 * in_channels
    shifting = sizes(tensors, "middle_block.0.emb_layers.1.weight", 2)[0] == 2 * layout.widths[-1]
    classes = sizes(tensors, "label_emb.weight", 2)[0] if "label_emb.weight" in tensors else 0
    if options.resolution is None:
        raise UsageError(
            "the file does not say how large its pictures are; give --resolution N, e.g. 64"
        )
    if options.heads is None and options.head_channels is None:
        raise UsageError(
            "the file does not say how many attention heads its network has; give --head-channels "
            "N (its flag --num_head_channels; 64 in the published networks) or --heads N (its flag "
            "--num_heads)"
        )
    if any(width % channels for width in layout.widths) or embedding % channels:
        raise UsageError(
            f"the widths {layout.widths} and {embedding} of the file's network are no multiples "
            f"of its {channels} channels"
        )
    targets: dict[str, Target] = {}
    for name in tensors:
        module, _, last = name.rpartition(".")
        if module in layout.modules:
            targets[name] = Target(
                f"{layout.modules[module]}.{last}", _change(name, tensors, options)
            )
    for last in ("weight", "bias") if halved else ():
        targets[f"out.2.{last}"] = Target(f"last.{last}", lambda t: t[:in_channels].clone())
    resolution = options.resolution
    spec = {
        "kind": "adm",
        "shape": [in_channels, resolution, resolution],
        "channels": channels,
        "multipliers": [width // channels for width in layout.widths],
        "blocks": layout.blocks,
        "attention": [resolution >> n for n, attends in enumerate(layout.attention) if attends],
        "dropout": 0.0,
        "classes": classes,
        "scale_shift": shifting,
        "embedding_multiplier": embedding // channels,
        "groups": GROUPS,
        "convolutions": layout.convolutions,
        **({"heads": options.heads} if options.heads else {"head_channels": options.head_channels}),
    }
    if "time_embed_s.0.weight" in tensors:
        spec |= {"two_time": True, "end": "separate"}
    return Description(spec, targets, {}, (VARIANCE,) if halved else ())


def _count(tensors: Mapping[str, Lazy], group: str) -> int:
    numbers = {int(m[1]) for n in tensors if (m := re.match(rf"{group}\.(\d{{1,4}})\.", n))}
    if numbers != {*range(len(numbers))}:
        raise UsageError(f"the file's {group} are not numbered one after the other")
    return len(numbers)


def _residual(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{name}": f"{ours}.{own}" for name, own in RESIDUAL.items()}


def _block(theirs: str, ours: str) -> dict[str, str]:
    attention = {f"{theirs}.1.{name}": f"{ours}.{own}" for name, own in ATTENTION.items()}
    return _residual(f"{theirs}.0", ours) | attention


def _change(
    name: str, tensors: Mapping[str, Lazy], options: ImportOptions
) -> Callable[[Tensor], Tensor] | None:
    if name.endswith(".proj_out.weight"):
        return lambda weight: weight.reshape(*weight.shape[:2], 1, 1)
    if ".qkv." not in name:
        return None
    weight = tensors.get(f"{name.rpartition('.')[0]}.weight")
    # Flat convolutions are those of guided-diffusion, whose rows are ordered by head first.
    flat = weight is not None and len(weight.shape) == 3
    return lambda rows: by_head(rows, options, flat and not options.new_attention_order)


def by_head(rows: Tensor, options: ImportOptions, heads_first: bool) -> Tensor:
    """Rows of a map to queries, keys and values in the library's order: head, channel, q-k-v.

    Args:
        rows: weight or bias, 3 C rows.
        options: heads.
        heads_first: their order is head, q-k-v, channel, and not q-k-v, head, channel.
    """
    channels = rows.shape[0] // 3
    heads = options.heads or channels // (options.head_channels or channels)
    if not heads or channels % heads:
        raise UsageError(
            f"{channels} channels do not split into the heads that --heads or --head-channels say"
        )
    split = (heads, 3, -1) if heads_first else (3, heads, -1)
    order = (0, 2, 1) if heads_first else (1, 2, 0)
    moved = rows.reshape(*split, *rows.shape[1:])
    moved = moved.permute(*order, *range(3, moved.ndim)).reshape(rows.shape)
    return moved.reshape(rows.shape[0], -1, 1, 1) if rows.ndim > 1 else moved.contiguous()
