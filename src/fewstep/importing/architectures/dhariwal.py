"""EDM's ``DhariwalUNet``, which is ADM under other names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fewstep.errors import UsageError
from fewstep.importing.architectures.heads import heads_option
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

AUGMENT = "it tells the network how a sample was augmented, and is zero when a model generates"


def dhariwal(
    tensors: Mapping[str, Lazy], parts: Mapping[str, Part], prefix: str = "", channels_in: int = 3
) -> Description:
    """The network of the library that computes what a ``DhariwalUNet`` computes.

    Args:
        tensors: of the network, by their names without the prefix.
        parts: its modules by name.
        prefix: of the tensors' names in the file.
        channels_in: channels of a picture; further channels of the output are a variance, which is
            left out.

    Raises:
        UsageError: it is no such network, or a variant that the library does not have.
    """
    shape = unet_shape(tensors)
    noise, embedding = embedding_widths(tensors)
    check_blocks(parts, skip_scale=1.0, adaptive=True, eps=1e-5)
    check_filters(tensors, (1, 1))
    modules = {
        "map_layer0": "map_layer0",
        "map_layer1": "map_layer1",
        "out_norm": "last_norm",
        "out_conv": "last",
        **module_names(shape),
    }
    targets, unused = targets_of(tensors, modules, prefix)
    notes: list[str] = []
    classes = 0
    if "map_label.weight" in tensors:
        classes = sizes(tensors, "map_label.weight", 2)[1]
        targets[f"{prefix}map_label.weight"] = Target("map_label.weight", _transposed)
    if "map_augment.weight" in tensors:
        unused[f"{prefix}map_augment.weight"] = AUGMENT
    if sizes(tensors, "out_conv.weight", 4)[0] == 2 * channels_in:
        for name in ("out_conv.weight", "out_conv.bias"):
            targets[prefix + name] = Target(f"last.{name[9:]}", lambda t: t[:channels_in].clone())
        notes.append("the second half of the network's output, a learned variance, is left out")
    if noise % 2 or embedding % noise:
        raise UsageError(
            f"the file's network embeds time in {noise} and {embedding} channels; the "
            "second must be a multiple of the first"
        )
    spec = {
        "kind": "adm",
        "shape": [channels_in, shape.resolution, shape.resolution],
        "channels": noise,
        "multipliers": shape.multipliers(noise),
        "blocks": shape.blocks,
        "attention": shape.attending,
        "dropout": dropout_of(parts),
        "classes": classes,
        "embedding_multiplier": embedding // noise,
        "middle_attention": shape.middle_attention,
        **heads_option(parts),
    }
    return Description(spec, targets, unused, tuple(notes))


def _transposed(weight: Tensor) -> Tensor:
    return weight.T.contiguous()
