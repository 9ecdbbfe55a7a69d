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
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core import Cond, UsageError
from fewstep.models.nets.adm_blocks import ADMBlock, Downsample, LabelTable, Upsample
from fewstep.models.nets.blocks import (
    AbstractNetwork,
    GuidanceEmbedding,
    PositionalEmbedding,
    condition_keys,
    group_norm,
    guidance_of,
    label_of,
    zero,
)
from fewstep.models.nets.conditions import Conditions
from fewstep.models.nets.unet import check_unet, decode, encode, layout


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
        head_channels: the channels of an attention head.
        heads: the number of heads of every attention, whatever its width; 0 for heads of
            ``head_channels``.
        middle_attention: whether the middle attends, as in all published networks.
        embedding_multiplier: the width of the embedding in units of ``channels``.
        groups: the groups of every group normalisation: OpenAI's have 32; 0 for at most 32 of at
            least 4 channels, as EDM's have.
        eps: what every group normalisation adds to the variance.
        convolutions: whether bare convolutions resample, not residual blocks, as in DDPM.
        asymmetric: whether those add zeros at the right and the lower border only.
        sin_first: whether sines of time come before cosines, as in DDPM.
        endpoint: whether the frequencies of time end on 1/10000, as in DDPM.
        end: how a second time enters: ``added`` to the first, or ``separate``, by an embedding of
            its own that blocks read beside the first's, as in CTM.
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
        head_channels: int = 64,
        heads: int = 0,
        middle_attention: bool = True,
        embedding_multiplier: int = 4,
        groups: int = 0,
        eps: float = 1e-5,
        convolutions: bool = False,
        asymmetric: bool = False,
        sin_first: bool = False,
        endpoint: bool = False,
        end: Literal["added", "separate"] = "added",
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
        # Options of imported networks are recorded where they differ from the usual.
        unusual = {
            "head_channels": (head_channels, 64),
            "heads": (heads, 0),
            "middle_attention": (middle_attention, True),
            "embedding_multiplier": (embedding_multiplier, 4),
            "groups": (groups, 0),
            "eps": (eps, 1e-5),
            "convolutions": (convolutions, False),
            "asymmetric": (asymmetric, False),
            "sin_first": (sin_first, False),
            "endpoint": (endpoint, False),
            "end": (end, "added"),
        }
        self.options |= {name: own for name, (own, usual) in unusual.items() if own != usual}
        if min(head_channels, embedding_multiplier) < 1 or min(heads, groups) < 0 or eps <= 0:
            raise UsageError(
                "ADM: expected positive head_channels, embedding_multiplier and eps, and no "
                f"negative heads and groups, got {head_channels}, {embedding_multiplier}, {eps}, "
                f"{heads} and {groups}"
            )
        separate = end == "separate"
        if separate and not two_time:
            raise UsageError("ADM: end='separate' needs two_time=True")
        if double_norm and not scale_shift:
            raise UsageError("ADM: double_norm normalises scale and shift; keep scale_shift=True")
        check_unet("ADM", shape, channels, multipliers)
        widths = [m * channels for m in multipliers]
        attend = [shape[1] >> level in attention for level in range(len(widths))]
        attending = [w for w, yes in zip(widths, attend, strict=True) if yes]
        attending += widths[-1:] if middle_attention else []
        if any(w % (heads or head_channels) for w in attending):
            part = f"{heads}, the heads" if heads else f"{head_channels}, the channels of a head"
            raise UsageError(
                f"ADM: attention takes widths divisible by {part}; got "
                f"{attending} where it attends (channels={channels}, multipliers={multipliers})"
            )
        embedding = embedding_multiplier * channels
        self.conditions = Conditions("ADM", embedding, vectors)
        self.options |= self.conditions.options
        self.cond_keys = condition_keys(classes, guidance) + self.conditions.keys
        self.two_time = two_time

        self.map_noise = PositionalEmbedding(channels, endpoint=endpoint, sin_first=sin_first)
        self.map_end = (
            zero(nn.Linear(channels, channels, bias=False)) if two_time and not separate else None
        )
        self.map_guidance = GuidanceEmbedding(channels, channels) if guidance else None
        self.map_layer0 = nn.Linear(channels, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)
        self.end_layer0 = nn.Linear(channels, embedding) if separate else None
        self.end_layer1 = nn.Linear(embedding, embedding) if separate else None
        self.map_label = LabelTable(classes, embedding) if classes else None

        def block(c_in: int, c_out: int, resample: float, attend: bool) -> nn.Module:
            if convolutions and resample == 0.5:
                return Downsample(c_in, asymmetric)
            if convolutions and resample == 2:
                return Upsample(c_in)
            return ADMBlock(
                c_in,
                c_out,
                2 * embedding if separate else embedding,
                resample=resample,
                attend=attend,
                scale_shift=scale_shift,
                dropout=dropout,
                double_norm=double_norm,
                heads=heads or c_out // head_channels,
                groups=groups,
                eps=eps,
            )

        self.first = nn.Conv2d(shape[0], widths[0], 3, padding=1)
        self.encoder, self.middle, self.decoder = layout(
            block,
            widths[0],
            widths,
            blocks,
            attend,
            decoder_attends_throughout=True,
            middle_attends=middle_attention,
        )
        self.last_norm = group_norm(widths[0], eps, groups)
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
        if self.end_layer0 is not None and self.end_layer1 is not None:
            end = self.map_noise(c_noise if s_noise is None else s_noise)
            end = self.end_layer1(F.silu(self.end_layer0(end)))
            embedding = torch.cat([embedding, end], dim=1)
        embedding = F.silu(embedding)

        skips = encode(self.encoder, self.first(x), embedding)
        h = decode(self.middle, self.decoder, skips, embedding)
        return self.last(F.silu(self.last_norm(h)))
