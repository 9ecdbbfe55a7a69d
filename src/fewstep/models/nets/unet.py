"""The layout that U-Nets share: which block stands on which resolution, and what skips to where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fewstep.core import UsageError

MakeBlock = Callable[[int, int, float, bool], nn.Module]
"""A block from c_in, c_out, resample (0.5, 1 or 2) and whether it attends.

It has an attribute ``resample`` and maps (x, embedding) to x.
"""


class Layout(NamedTuple):
    """The blocks of a U-Net in the order in which they run."""

    encoder: nn.ModuleList
    middle: nn.ModuleList
    decoder: nn.ModuleList


def layout(
    block: MakeBlock,
    first: int,
    widths: Sequence[int],
    blocks: int,
    attend: Sequence[bool],
    *,
    decoder_attends_throughout: bool,
    middle_attends: bool = True,
) -> Layout:
    """Resolutions from fine to coarse and back, with a block that resamples between any two.

    Args:
        block: makes one block.
        first: channels that the encoder is given.
        widths: channels of each resolution, from fine to coarse.
        blocks: of each resolution in the encoder; the decoder has one more.
        attend: whether a resolution's blocks attend, as many as ``widths``.
        decoder_attends_throughout: the decoder attends in each of these blocks (ADM), or in the
            last of a resolution only (DDPM++, NCSN++).
        middle_attends: whether the first of the two blocks in the middle attends.
    """
    now, skips = first, [first]
    encoder, decoder = nn.ModuleList(), nn.ModuleList()
    for level, width in enumerate(widths):
        if level:
            encoder.append(block(now, now, 0.5, False))
            skips.append(now)
        for _ in range(blocks):
            encoder.append(block(now, width, 1, attend[level]))
            now = width
            skips.append(now)
    middle = nn.ModuleList([block(now, now, 1, middle_attends), block(now, now, 1, False)])
    for level in reversed(range(len(widths))):
        if level < len(widths) - 1:
            decoder.append(block(now, now, 2, False))
        for i in range(blocks + 1):
            attends = attend[level] and (decoder_attends_throughout or i == blocks)
            decoder.append(block(now + skips.pop(), widths[level], 1, attends))
            now = widths[level]
    return Layout(encoder, middle, decoder)


def encode(encoder: nn.ModuleList, h: Tensor, embedding: Tensor) -> list[Tensor]:
    """``h`` and what each block makes of it."""
    skips = [h]
    for block in encoder:
        skips.append(block(skips[-1], embedding))
    return skips


def decode(
    middle: nn.ModuleList, decoder: nn.ModuleList, skips: list[Tensor], embedding: Tensor
) -> Tensor:
    """The way back up from the last of ``skips``, which are used up."""
    h = skips[-1]
    for block in middle:
        h = block(h, embedding)
    for block in decoder:
        # Only the blocks that double the resolution take no skip.
        h = block(h if block.resample == 2 else torch.cat([h, skips.pop()], dim=1), embedding)
    return h


def check_unet(
    name: str,
    shape: tuple[int, ...],
    channels: int,
    multipliers: tuple[int, ...],
    patch: int = 1,
) -> None:
    """Refuse events and widths that cannot be built.

    Raises:
        UsageError: not ``(c, h, w)``, or h or w cannot be halved often enough; channels odd, or
            multipliers below 1 or missing.
    """
    unit = max(1, patch) * 2 ** (len(multipliers) - 1)
    if len(shape) != 3 or patch < 1 or any(n % unit for n in shape[1:]):
        raise UsageError(
            f"{name}: {len(multipliers)} resolutions of patches of {patch} need an event "
            f"(c, h, w) whose h and w are divisible by {unit}, got {tuple(shape)}; take another "
            "resolution, or fewer multipliers"
        )
    if channels % 2 or not multipliers or min(multipliers) < 1:
        raise UsageError(
            f"{name}: expected an even number of channels and positive multipliers, got "
            f"{channels} and {tuple(multipliers)}"
        )
