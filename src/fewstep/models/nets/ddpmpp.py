"""DDPM++ (Song et al. 2021) as EDM trains it: the U-Net of its CIFAR-10 "vp" models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core import Cond, UsageError
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
from fewstep.models.nets.conditions import Conditions
from fewstep.models.nets.unet import check_unet, decode, encode, layout


class DDPMpp(AbstractNetwork):
    """Residual blocks on every resolution, additive time embedding, skips scaled by sqrt(1/2).

    EDM's CIFAR-10 network is ``DDPMpp((3, 32, 32), channels=128, multipliers=(2, 2, 2), blocks=4,
    attention=(16,), dropout=0.13, augment=9)``.

    Args:
        shape: ``(c, h, w)``; h and w divisible by ``patch``, and then by 2 for every multiplier
            after the first.
        channels: the width that the multipliers multiply.
        multipliers: one for each resolution, from fine to coarse.
        blocks: the number of residual blocks of each resolution in the encoder; the decoder has
            one more.
        attention: the heights, in patches, at which blocks attend (in the decoder only the last
            block of a resolution does).
        dropout: the probability of dropout.
        classes: the number of labels, 0 for none; the label ``classes`` is null.
        patch: the side of the squares of pixels that are read as channels; 1 for pixels as they
            are.
        augment: how many numbers say how a sample was augmented, ``cond["augment"]``
            ``(b, augment)``; 0 for none. Zeros say that it was not, and so does leaving them out.
        two_time: whether the network also reads the second time, which at first adds nothing.
        guidance: whether the network also reads a guidance scale, ``cond["guidance"]``, which at
            first adds nothing.
        double_norm: whether blocks read the embedding as sCM's do (Lu & Song 2025), see
            :func:`~fewstep.models.nets.blocks.modulated`.
        vectors: the names of vector conditions, and how many numbers each has per sample;
            ``cond[name]`` is float ``(b, ...)``.
        sequences: the names of sequences of tokens, and the greatest length and the width of each;
            ``cond[name]`` is float ``(b, length, width)``, and ``cond[f"{name}_mask"]`` is bool
            ``(b, length)``, True where a token is real, all False for none. The mean of the real
            tokens enters the time embedding.
        images: the names of images that the network reads beside ``x``, and how many channels each
            has; ``cond[name]`` is float ``(b, c, *space)`` of the size of ``x``, zeros for none.
        texts: the names of texts whose tokens a small transformer in the network embeds, and the
            vocabulary and the greatest length of each; ``cond[name]`` is int64 ``(b, tokens)``
            and ``cond[f"{name}_mask"]`` bool as for sequences. Their mean enters the time
            embedding.
        end: how a second time enters: ``added`` to the first; ``separate``, by an embedding of its
            own that blocks read beside the first's, as in CTM; or
            ``joined`` to the first's sinusoid, as in FastGen.
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
        vectors: Mapping[str, int] | None = None,
        sequences: Mapping[str, tuple[int, int]] | None = None,
        images: Mapping[str, int] | None = None,
        texts: Mapping[str, tuple[int, int]] | None = None,
        end: Literal["added", "separate", "joined"] = "added",
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
        self.options |= {} if end == "added" else {"end": end}
        if end != "added" and (not two_time or guidance):
            raise UsageError(f"DDPMpp: end={end!r} needs two_time=True and guidance=False")
        read = 2 * channels if end == "joined" else channels
        self.conditions = Conditions("DDPMpp", read, vectors, sequences, images, texts)
        self.options |= self.conditions.options
        self.cond_keys = condition_keys(classes, guidance) + self.conditions.keys
        self.two_time, self.end = two_time, end
        self.optional_keys = ("augment",) if augment else ()
        width = 4 * channels
        added, separate = two_time and end == "added", end == "separate"

        self.map_noise = PositionalEmbedding(channels, endpoint=True, sin_first=True)
        self.map_end = zero(nn.Linear(channels, channels, bias=False)) if added else None
        self.map_guidance = GuidanceEmbedding(channels, channels) if guidance else None
        self.map_label = LabelEmbedding(classes, read) if classes else None
        self.map_augment = xavier(nn.Linear(augment, read, bias=False)) if augment else None
        self.map_layer0 = xavier(nn.Linear(read, width))
        self.map_layer1 = xavier(nn.Linear(width, width))
        self.end_layer0 = xavier(nn.Linear(channels, width)) if separate else None
        self.end_layer1 = xavier(nn.Linear(width, width)) if separate else None

        def block(c_in: int, c_out: int, resample: float, attend: bool) -> ResidualBlock:
            return ResidualBlock(
                c_in,
                c_out,
                2 * width if separate else width,
                resample=resample,
                heads=int(attend),
                dropout=dropout,
                double_norm=double_norm,
            )

        height, patch_channels = shape[1] // patch, shape[0] * patch**2
        self.patch = patch
        seen = patch_channels + self.conditions.channels * patch**2
        self.first = xavier(nn.Conv2d(seen, channels, 3, padding=1))
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
        embedding = self._embedded(c_noise, s_noise, cond)
        h = self.first(F.pixel_unshuffle(self.conditions.add_images(x, cond), self.patch))
        skips = encode(self.encoder, h, embedding)
        h = decode(self.middle, self.decoder, skips, embedding)
        return F.pixel_shuffle(self.last(F.silu(self.last_norm(h))), self.patch)

    def _embedded(self, c_noise: Tensor, s_noise: Tensor | None, cond: Cond | None) -> Tensor:
        embedding = self.map_noise(c_noise)
        end = self.map_noise(c_noise if s_noise is None else s_noise) if self.two_time else None
        if end is not None and self.map_end is not None:
            embedding = embedding + self.map_end(end)
        if end is not None and self.end == "joined":
            embedding = torch.cat([embedding, end], dim=1)
        if self.map_guidance is not None:
            embedding = embedding + self.map_guidance(guidance_of(cond, c_noise))
        embedding = self._conditioned(embedding, cond)
        embedding = F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))
        if end is None or self.end_layer0 is None or self.end_layer1 is None:
            return embedding
        end = self.end_layer1(F.silu(self.end_layer0(self._conditioned(end, cond))))
        return torch.cat([embedding, F.silu(end)], dim=1)

    def _conditioned(self, embedding: Tensor, cond: Cond | None) -> Tensor:
        if self.map_label is not None:
            embedding = embedding + self.map_label(label_of(cond))
        if self.map_augment is not None:
            given = augment_of(cond, self.map_augment.weight.shape[1], embedding)
            embedding = embedding + self.map_augment(given)
        embedding = self.conditions.add_vectors(embedding, cond)
        return self.conditions.add_pooled(embedding, cond)
