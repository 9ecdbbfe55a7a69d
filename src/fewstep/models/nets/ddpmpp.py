"""DDPM++ (Song et al. 2021) as EDM trains it: the U-Net of its CIFAR-10 "vp" models."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core import Cond
from fewstep.models.nets.blocks import (
    AbstractNetwork,
    GuidanceEmbedding,
    LabelEmbedding,
    PositionalEmbedding,
    ResidualBlock,
    augment_of,
    condition_keys,
    group_norm,
    guidance_of,
    label_of,
    xavier,
    zero,
)
from fewstep.models.nets.unet import check_unet, decode, encode, layout


class DDPMpp(AbstractNetwork):
    """Residual blocks on every resolution, additive time embedding, skips scaled by sqrt(1/2).

    EDM's CIFAR-10 network is ``DDPMpp((3, 32, 32), channels=128, multipliers=(2, 2, 2), blocks=4,
    attention=(16,), dropout=0.13, augment=9)``.

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
        augment: numbers that tell how a sample was augmented, ``cond["augment"]`` ``(b, augment)``;
            0 for none. Zeros say that it was not, and so does leaving them out.
        two_time: read the second time too; at first it adds nothing.
        guidance: read a guidance scale, ``cond["guidance"]``, too; at first it adds nothing.
        double_norm: blocks read the embedding as sCM's do (Lu & Song 2025), see
            :func:`~fewstep.models.nets.blocks.modulated`.
    """

    units = (ResidualBlock,)

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
        augment: int = 0,
        two_time: bool = False,
        guidance: bool = False,
        double_norm: bool = False,
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
            "augment": augment,
            "two_time": two_time,
            "guidance": guidance,
            "double_norm": double_norm,
        }
        check_unet("DDPMpp", shape, channels, multipliers, patch)
        self.cond_keys, self.two_time = condition_keys(classes, guidance), two_time
        self.optional_keys = ("augment",) if augment else ()
        width = 4 * channels

        self.map_noise = PositionalEmbedding(channels, endpoint=True, sin_first=True)
        self.map_end = zero(nn.Linear(channels, channels, bias=False)) if two_time else None
        self.map_guidance = GuidanceEmbedding(channels, channels) if guidance else None
        self.map_label = LabelEmbedding(classes, channels) if classes else None
        self.map_augment = xavier(nn.Linear(augment, channels, bias=False)) if augment else None
        self.map_layer0 = xavier(nn.Linear(channels, width))
        self.map_layer1 = xavier(nn.Linear(width, width))

        def block(c_in: int, c_out: int, resample: float, attend: bool) -> ResidualBlock:
            return ResidualBlock(
                c_in,
                c_out,
                width,
                resample=resample,
                heads=int(attend),
                dropout=dropout,
                double_norm=double_norm,
            )

        height, patch_channels = shape[1] // patch, shape[0] * patch**2
        self.patch = patch
        self.first = xavier(nn.Conv2d(patch_channels, channels, 3, padding=1))
        self.encoder, self.middle, self.decoder = layout(
            block,
            channels,
            [m * channels for m in multipliers],
            blocks,
            [height >> level in attention for level in range(len(multipliers))],
            decoder_attends_throughout=False,
        )
        now = multipliers[0] * channels
        self.last_norm = group_norm(now)
        self.last = xavier(nn.Conv2d(now, patch_channels, 3, padding=1), gain=1e-5)

    def forward(
        self, x: Tensor, c_noise: Tensor, s_noise: Tensor | None = None, cond: Cond | None = None
    ) -> Tensor:
        """F, shaped as ``x``."""
        embedding = self.map_noise(c_noise)
        if self.map_end is not None:
            end = self.map_noise(c_noise if s_noise is None else s_noise)
            embedding = embedding + self.map_end(end)
        if self.map_guidance is not None:
            embedding = embedding + self.map_guidance(guidance_of(cond, c_noise))
        if self.map_label is not None:
            embedding = embedding + self.map_label(label_of(cond))
        if self.map_augment is not None:
            given = augment_of(cond, self.map_augment.weight.shape[1], embedding)
            embedding = embedding + self.map_augment(given)
        embedding = F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))

        skips = encode(self.encoder, self.first(F.pixel_unshuffle(x, self.patch)), embedding)
        h = decode(self.middle, self.decoder, skips, embedding)
        return F.pixel_shuffle(self.last(F.silu(self.last_norm(h))), self.patch)
