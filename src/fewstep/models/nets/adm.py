"""ADM (Dhariwal & Nichol 2021) as EDM and OpenAI's consistency models build it.

Both repositories have the same architecture. They differ in names; in the order of the rows of the
map to queries, keys and values (head, channel, q-k-v in EDM, as here; q-k-v, head, channel in
OpenAI's); in the label's table (OpenAI's, as here, is the transpose of EDM's weight); and in the
time that they feed, which is the preconditioning's ``time_scale``. OpenAI's normalises 32 groups
always, EDM and this file fewer on less than 128 channels, which no published network has.

Shape suffixes as in ``blocks``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core import Cond, UsageError
from fewstep.models.nets.blocks import (
    AbstractNetwork,
    GuidanceEmbedding,
    PositionalEmbedding,
    attention,
    condition_keys,
    group_norm,
    guidance_of,
    label_of,
    modulated,
    resize_box,
    zero,
)
from fewstep.models.nets.conditions import Conditions
from fewstep.models.nets.unet import check_unet, decode, encode, layout

HEAD = 64
"""Channels of one attention head."""


class ADMBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice, conditioned at the second norm; then attention.

    A fresh block is the identity, or a bare resampling and 1x1 convolution where it changes shape.

    Args:
        c_in, c_out: channels.
        embedding: width E of the embedding.
        resample: 0.5, 1 or 2, applied before the first convolution and on the skip.
        attend: whether the block has attention, whose heads have 64 channels.
        scale_shift: whether the embedding scales and shifts the result of the second norm; else it
            is added to the input of that norm.
        dropout: the probability of dropout.
        double_norm: whether scale and shift are normalised, see
            :func:`~fewstep.models.nets.blocks.modulated`.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        embedding: int,
        *,
        resample: float,
        attend: bool,
        scale_shift: bool,
        dropout: float,
        double_norm: bool = False,
    ) -> None:
        super().__init__()
        self.resample, self.scale_shift, self.double_norm = resample, scale_shift, double_norm
        self.heads = c_out // HEAD if attend else 0
        self.norm0 = group_norm(c_in, eps=1e-5)
        self.conv0 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.affine = nn.Linear(embedding, 2 * c_out if scale_shift else c_out)
        self.norm1 = group_norm(c_out, eps=1e-5)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        if attend:
            self.norm2 = group_norm(c_out, eps=1e-5)
            self.qkv = nn.Conv2d(c_out, 3 * c_out, 1)
            self.proj = zero(nn.Conv2d(c_out, c_out, 1))

    def forward(self, x_BCHW: Tensor, embedding_BE: Tensor) -> Tensor:
        """``(b, c_out, h, w)`` at the resampled size."""
        h_BCHW = self.conv0(resize_box(F.silu(self.norm0(x_BCHW)), self.resample))
        affine_BE = self.affine(embedding_BE)
        if self.scale_shift:
            h_BCHW = modulated(self.norm1(h_BCHW), affine_BE, self.double_norm)
        else:
            h_BCHW = self.norm1(h_BCHW + affine_BE[:, :, None, None])
        h_BCHW = self.conv1(self.dropout(F.silu(h_BCHW)))
        x_BCHW = self.skip(resize_box(x_BCHW, self.resample)) + h_BCHW
        if self.heads:
            x_BCHW = x_BCHW + self.proj(attention(self.qkv(self.norm2(x_BCHW)), self.heads))
        return x_BCHW


class ADM(AbstractNetwork):
    """Residual blocks that also resample, heads of 64 channels, no scaling of skips.

    The ImageNet-64 network of EDM and of consistency models is ``ADM((3, 64, 64), classes=1000)``.
    OpenAI's LSUN-256 network is ``ADM((3, 256, 256), channels=256, multipliers=(1, 1, 2, 2, 4, 4),
    blocks=2, scale_shift=False)``.

    Weights start as torch's do (uniform within 1/sqrt(fan-in)), the last convolution of every
    residual branch and of the network at zero.

    Args:
        shape: ``(c, h, w)``; h and w divisible by 2 for every multiplier after the first.
        channels: the width that the multipliers multiply; the widths of resolutions that attend,
            as the coarsest always does, are divisible by 64.
        multipliers: one for each resolution, from fine to coarse.
        blocks: the number of residual blocks of each resolution in the encoder; the decoder has
            one more.
        attention: the heights at which blocks attend, in encoder and decoder.
        dropout: the probability of dropout.
        classes: the number of labels, 0 for none; the label ``classes`` is null, which EDM writes
            as zeros in place of one-hot and OpenAI does not have.
        scale_shift: how blocks read the embedding; see :class:`ADMBlock`.
        two_time: whether the network also reads the second time, which at first adds nothing.
        guidance: whether the network also reads a guidance scale, ``cond["guidance"]``, which at
            first adds nothing.
        double_norm: whether blocks normalise scale and shift, as sCM's do (Lu & Song 2025).
        vectors: the names of vector conditions, and how many numbers each has per sample;
            ``cond[name]`` is float ``(b, ...)``.
    """

    units = (ADMBlock,)

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int = 192,
        multipliers: tuple[int, ...] = (1, 2, 3, 4),
        blocks: int = 3,
        attention: tuple[int, ...] = (32, 16, 8),
        dropout: float = 0.1,
        classes: int = 0,
        scale_shift: bool = True,
        two_time: bool = False,
        guidance: bool = False,
        double_norm: bool = False,
        vectors: Mapping[str, int] | None = None,
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
            "scale_shift": scale_shift,
            "two_time": two_time,
            "guidance": guidance,
            "double_norm": double_norm,
        }
        if double_norm and not scale_shift:
            raise UsageError("ADM: double_norm normalises scale and shift; keep scale_shift=True")
        check_unet("ADM", shape, channels, multipliers)
        widths = [m * channels for m in multipliers]
        attend = [shape[1] >> level in attention for level in range(len(widths))]
        attending = [w for w, yes in zip(widths, attend, strict=True) if yes] + widths[-1:]
        if any(w % HEAD for w in attending):
            raise UsageError(
                f"ADM: attention takes widths divisible by {HEAD}, the channels of a head; got "
                f"{attending} where it attends (channels={channels}, multipliers={multipliers})"
            )
        embedding = 4 * channels
        self.conditions = Conditions("ADM", embedding, vectors)
        self.options |= self.conditions.options
        self.cond_keys = condition_keys(classes, guidance) + self.conditions.keys
        self.two_time = two_time

        self.map_noise = PositionalEmbedding(channels)
        self.map_end = zero(nn.Linear(channels, channels, bias=False)) if two_time else None
        self.map_guidance = GuidanceEmbedding(channels, channels) if guidance else None
        self.map_layer0 = nn.Linear(channels, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)
        self.map_label = LabelTable(classes, embedding) if classes else None

        def block(c_in: int, c_out: int, resample: float, attend: bool) -> ADMBlock:
            return ADMBlock(
                c_in,
                c_out,
                embedding,
                resample=resample,
                attend=attend,
                scale_shift=scale_shift,
                dropout=dropout,
                double_norm=double_norm,
            )

        self.first = nn.Conv2d(shape[0], widths[0], 3, padding=1)
        self.encoder, self.middle, self.decoder = layout(
            block, widths[0], widths, blocks, attend, decoder_attends_throughout=True
        )
        self.last_norm = group_norm(widths[0], eps=1e-5)
        self.last = zero(nn.Conv2d(widths[0], shape[0], 3, padding=1))

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
        embedding = self.map_layer1(F.silu(self.map_layer0(embedding)))
        if self.map_label is not None:
            embedding = embedding + self.map_label(label_of(cond))
        embedding = self.conditions.add_vectors(embedding, cond)
        embedding = F.silu(embedding)

        skips = encode(self.encoder, self.first(x), embedding)
        h = decode(self.middle, self.decoder, skips, embedding)
        return self.last(F.silu(self.last_norm(h)))


class LabelTable(nn.Module):
    """A row of unit normals for each label; label k is null, all zeros, and not stored."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, channels))

    def forward(self, label_B: Tensor) -> Tensor:
        """``(b, channels)``."""
        return F.embedding(label_B, F.pad(self.weight, (0, 0, 0, 1)))
