"""DDPM++ (Song et al. 2021) as EDM trains it: the U-Net of its CIFAR-10 "vp" models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core import Cond, UsageError
from fewstep.models.nets.blocks import (
    LabelEmbedding,
    PositionalEmbedding,
    ResidualBlock,
    group_norm,
    label_keys,
    label_of,
    xavier,
)


class DDPMpp(nn.Module):
    """Residual blocks on every resolution, additive time embedding, skips scaled by sqrt(1/2).

    EDM's CIFAR-10 network is ``DDPMpp((3, 32, 32), channels=128, multipliers=(2, 2, 2), blocks=4,
    attention=(16,), dropout=0.13)``.

    Args:
        shape: ``(c, h, w)``; h and w divisible by ``patch``, and then by 2 for every multiplier
            after the first.
        channels: width that the multipliers multiply.
        multipliers: one a resolution, from fine to coarse.
        blocks: residual blocks of each resolution in the encoder; the decoder has one more.
        attention: heights, in patches, at which blocks attend (in the decoder the last one only).
        dropout: probability.
        classes: number of labels; 0 for none. Label ``classes`` is null.
        patch: side of the squares of pixels that are read as channels; 1 for pixels as they are.
    """

    two_time = False

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int = 128,
        multipliers: tuple[int, ...] = (2, 2, 2),
        blocks: int = 4,
        attention: tuple[int, ...] = (16,),
        dropout: float = 0.1,
        classes: int = 0,
        patch: int = 1,
    ) -> None:
        super().__init__()
        self.options = {
            "shape": list(shape),
            "channels": channels,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "attention": list(attention),
            "dropout": dropout,
            "classes": classes,
            "patch": patch,
        }
        unit = max(1, patch) * 2 ** (len(multipliers) - 1)
        if len(shape) != 3 or patch < 1 or any(n % unit for n in shape[1:]):
            raise UsageError(
                f"DDPMpp: {len(multipliers)} resolutions of patches of {patch} need an event "
                f"(c, h, w) whose h and w are divisible by {unit}, got {tuple(shape)}"
            )
        if channels % 2 or not multipliers or min(multipliers) < 1:
            raise UsageError(
                f"DDPMpp: expected an even number of channels and positive multipliers, got "
                f"{channels} and {tuple(multipliers)}"
            )
        self.cond_keys = label_keys(classes)
        width = 4 * channels

        self.map_noise = PositionalEmbedding(channels, endpoint=True, sin_first=True)
        self.map_label = LabelEmbedding(classes, channels) if classes else None
        self.map_layer0 = xavier(nn.Linear(channels, width))
        self.map_layer1 = xavier(nn.Linear(width, width))

        def block(
            c_in: int, c_out: int, resample: float = 1, attend: bool = False
        ) -> ResidualBlock:
            return ResidualBlock(
                c_in, c_out, width, resample=resample, heads=int(attend), dropout=dropout
            )

        height, patch_channels = shape[1] // patch, shape[0] * patch**2
        self.patch = patch
        self.first = xavier(nn.Conv2d(patch_channels, channels, 3, padding=1))
        now, skips = channels, [channels]
        self.encoder = nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            if level:
                self.encoder.append(block(now, now, resample=0.5))
                skips.append(now)
            for _ in range(blocks):
                attend = height >> level in attention
                self.encoder.append(block(now, multiplier * channels, attend=attend))
                now = multiplier * channels
                skips.append(now)

        self.middle = nn.ModuleList([block(now, now, attend=True), block(now, now)])
        self.decoder = nn.ModuleList()
        for level in reversed(range(len(multipliers))):
            if level < len(multipliers) - 1:
                self.decoder.append(block(now, now, resample=2))
            for i in range(blocks + 1):
                attend = i == blocks and height >> level in attention
                c_out = multipliers[level] * channels
                self.decoder.append(block(now + skips.pop(), c_out, attend=attend))
                now = c_out
        self.last_norm = group_norm(now)
        self.last = xavier(nn.Conv2d(now, patch_channels, 3, padding=1), gain=1e-5)

    def forward(
        self, x: Tensor, c_noise: Tensor, s_noise: Tensor | None = None, cond: Cond | None = None
    ) -> Tensor:
        """F, shaped as ``x``."""
        embedding = self.map_noise(c_noise)
        if self.map_label is not None:
            embedding = embedding + self.map_label(label_of(cond))
        embedding = F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))

        h = self.first(F.pixel_unshuffle(x, self.patch))
        skips = [h]
        for block in self.encoder:
            h = block(h, embedding)
            skips.append(h)
        for block in self.middle:
            h = block(h, embedding)
        for block in self.decoder:
            # Only the blocks that double the resolution take no skip.
            h = block(h if block.resample == 2 else torch.cat([h, skips.pop()], dim=1), embedding)
        return F.pixel_shuffle(self.last(F.silu(self.last_norm(h))), self.patch)
