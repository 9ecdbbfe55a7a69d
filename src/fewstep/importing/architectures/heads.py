"""How many attention heads the blocks of a network have, as one rule."""

from __future__ import annotations

from collections.abc import Mapping

from fewstep.errors import UsageError
from fewstep.importing.parts import Part


def heads_option(parts: Mapping[str, Part]) -> dict[str, int]:
    """The option of a network by which all of these blocks have their heads.

    Raises:
        UsageError: the blocks follow no common rule.
    """
    pairs = []
    for name, part in parts.items():
        heads = part.attributes.get("num_heads")
        weights = [
            c.tensors["weight"]
            for n, c in part.children.items()
            if "qkv" in n and "weight" in c.tensors
        ]
        if weights:
            channels = weights[0].shape[0] // 3 if weights[0].shape else 0
            if type(heads) is not int or heads < 1 or not channels or channels % heads:
                raise UsageError(f"{name} in the file has {channels} channels in {heads!r} heads")
            pairs.append((channels, heads))
    if not pairs:
        return {}
    sizes = {channels // heads for channels, heads in pairs}
    if len(sizes) == 1:
        return {"head_channels": sizes.pop()}
    if len({heads for _, heads in pairs}) == 1:
        return {"heads": pairs[0][1]}
    raise UsageError(
        f"the attention blocks of the file have (channels, heads) {sorted({*pairs})}, for which "
        "the library's network has no option"
    )
