r"""EDM2's magnitude-preserving U-Net, configuration G (Karras et al. 2024).

Every layer keeps unit variance: weights live on spheres, sums and concatenations are rescaled,
and nothing has a bias or a learned normalisation. Shape suffixes as in
:mod:`fewstep.models.nets.blocks`.

Training must keep the weights on their spheres by ``normalise_weights()``, once an update. The
official code does so in every forward that trains; here no forward changes a parameter, so that
derivatives, targets and accumulated batches see one network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core import Cond, UsageError
from fewstep.models.nets.blocks import (
    AbstractNetwork,
    PositionalEmbedding,
    condition_keys,
    guidance_of,
    label_of,
)
from fewstep.models.nets.edm2_block import HEAD, EDM2Block, balance_of
from fewstep.models.nets.magnitude import MPConv, MPFourier, mp_cat, mp_silu, mp_sum

SIZES: dict[str, dict[str, Any]] = {
    "xxs": {"channels": 64, "dropout": 0.0},
    "xs": {"channels": 128, "dropout": 0.0},
    "s": {"channels": 192, "dropout": 0.0},
    "m": {"channels": 256, "dropout": 0.1},
    "l": {"channels": 320, "dropout": 0.1},
    "xl": {"channels": 384, "dropout": 0.1},
    "xxl": {"channels": 448, "dropout": 0.1},
}
"""Options of the published ImageNet-512 networks (64 x 64 latents); ``dropout`` is training's."""


class EDM2(AbstractNetwork):
    """The network; its preconditioning is ``EDM(sigma_data=0.5)``.

    The published sizes are ``EDM2((4, 64, 64), classes=1000, **SIZES["xs"])`` and so on. The answer
    of a fresh network is 0. See the module's text for ``normalise_weights``.

    Args:
        shape: ``(c, h, w)``; h and w divisible by 2 for every multiplier after the first.
        channels: width that the multipliers multiply.
        multipliers: one a resolution, from fine to coarse.
        blocks: blocks of each resolution in the encoder; the decoder has one more.
        attention: heights at which blocks attend.
        dropout: probability.
        classes: number of labels; 0 for none. Label ``classes`` is null.
        two_time: read the second time too; at first it adds nothing.
        guidance: read a guidance scale, ``cond["guidance"]``, too; at first it adds nothing.
        positional: time enters by a ladder of frequencies from 1 down, instead of by random ones:
            sCM's choice (Lu & Song 2025), since derivatives in time grow with the frequencies.
        head_channels: channels of an attention head.
        middle_attention: whether the middle attends, as in all published networks.
        noise_multiplier: width of the embedding of time in units of ``channels``; 0 for the width
            of the finest resolution, as in all published networks.
        embedding_multiplier: width of the whole embedding, likewise; 0 for the largest width.
        balance: the shares that differ from the published networks', by the names of
            ``Balance`` of ``edm2_block``.
    """

    units: ClassVar[tuple[type[nn.Module], ...]] = (EDM2Block,)

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 3, 4),
        blocks: int = 3,
        attention: tuple[int, ...] = (16, 8),
        dropout: float = 0.0,
        classes: int = 0,
        two_time: bool = False,
        guidance: bool = False,
        positional: bool = False,
        head_channels: int = HEAD,
        middle_attention: bool = True,
        noise_multiplier: int = 0,
        embedding_multiplier: int = 0,
        balance: Mapping[str, float] | None = None,
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
            "two_time": two_time,
            "guidance": guidance,
            "positional": positional,
        }
        # Options of imported networks are recorded where they differ from the usual.
        unusual = {
            "head_channels": (head_channels, HEAD),
            "middle_attention": (middle_attention, True),
            "noise_multiplier": (noise_multiplier, 0),
            "embedding_multiplier": (embedding_multiplier, 0),
            "balance": (dict(balance or {}), {}),
        }
        self.options |= {name: own for name, (own, usual) in unusual.items() if own != usual}
        if head_channels < 1 or noise_multiplier < 0 or embedding_multiplier < 0:
            raise UsageError(
                "EDM2: expected positive head_channels and no negative multipliers, got "
                f"{head_channels}, {noise_multiplier} and {embedding_multiplier}"
            )
        self.balance = balance_of(balance or {})
        if channels < 1 or blocks < 0 or not multipliers or min(multipliers) < 1:
            raise UsageError(
                f"EDM2: expected positive channels and multipliers and no negative number of "
                f"blocks, got {channels}, {tuple(multipliers)} and {blocks}"
            )
        unit = 2 ** (len(multipliers) - 1)
        if len(shape) != 3 or any(n < 1 or n % unit for n in shape[1:]):
            raise UsageError(
                f"EDM2: {len(multipliers)} resolutions need an event (c, h, w) whose h and w are "
                f"divisible by {unit}, got {tuple(shape)}"
            )
        noise = channels * (noise_multiplier or multipliers[0])
        if (guidance or positional) and noise % 2:
            raise UsageError(
                f"EDM2: a ladder of cosines and sines fills an even number of channels, got {noise}"
            )
        self.cond_keys = condition_keys(classes, guidance)
        self.two_time, self.classes = two_time, classes
        widths = [channels * m for m in multipliers]
        width = channels * embedding_multiplier or max(widths)

        ladder = PositionalEmbedding(noise, amplitude=math.sqrt(2))
        self.fourier = ladder if positional else MPFourier(noise)
        self.time = MPConv(noise, width)
        self.label = MPConv(classes, width) if classes else None
        if two_time:
            self.end = MPConv(noise, width)
            self.end_gain = nn.Parameter(torch.zeros(1))
        self.ladder = ladder if guidance else None
        if guidance:
            self.guidance = MPConv(noise, width)
            self.guidance_gain = nn.Parameter(torch.zeros(1))

        def block(c_in: int, c_out: int, encoder: bool, **own: Any) -> EDM2Block:
            shared = {"dropout": dropout, "head_channels": head_channels, "balance": self.balance}
            return EDM2Block(c_in, c_out, width, encoder=encoder, **shared, **own)

        self.first = MPConv(shape[0] + 1, widths[0], 3)
        now, skips = widths[0], [widths[0]]
        self.encoder = nn.ModuleList()
        for level, c_out in enumerate(widths):
            if level:
                self.encoder.append(block(now, now, True, resample=0.5))
                skips.append(now)
            for _ in range(blocks):
                attend = shape[1] >> level in attention
                self.encoder.append(block(now, c_out, True, attend=attend))
                now = c_out
                skips.append(now)

        self.middle = nn.ModuleList(
            [block(now, now, False, attend=middle_attention), block(now, now, False)]
        )
        self.decoder = nn.ModuleList()
        for level, c_out in reversed([*enumerate(widths)]):
            if level < len(widths) - 1:
                self.decoder.append(block(now, now, False, resample=2))
            for _ in range(blocks + 1):
                attend = shape[1] >> level in attention
                self.decoder.append(block(now + skips.pop(), c_out, False, attend=attend))
                now = c_out
        self.last = MPConv(now, shape[0], 3)
        self.last_gain = nn.Parameter(torch.zeros(1))

    def forward(
        self, x: Tensor, c_noise: Tensor, s_noise: Tensor | None = None, cond: Cond | None = None
    ) -> Tensor:
        """F, shaped as ``x``."""
        embedding = self._embedded(c_noise, s_noise, cond)
        # A channel of ones, since nothing has a bias.
        h = self.first(torch.cat([x, torch.ones_like(x[:, :1])], dim=1))
        skips = [h]
        for block in self.encoder:
            h = block(h, embedding)
            skips.append(h)
        for block in self.middle:
            h = block(h, embedding)
        for block in self.decoder:
            # Only the blocks that double the resolution take no skip.
            h = block(h if block.resample == 2 else self._joined(h, skips.pop()), embedding)
        return self.last(h, self.last_gain)

    def _joined(self, h: Tensor, skip: Tensor) -> Tensor:
        return mp_cat(h, skip, self.balance.concat)

    def _embedded(self, c_noise: Tensor, s_noise: Tensor | None, cond: Cond | None) -> Tensor:
        embedding_BE = self.time(self.fourier(c_noise))
        # Sums of unit variance whatever the learned shares of the second time and the guidance.
        variance = torch.ones_like(self.last_gain)
        if self.two_time:
            end_BE = self.fourier(c_noise if s_noise is None else s_noise)
            embedding_BE = embedding_BE + self.end(end_BE, self.end_gain)
            variance = variance + self.end_gain**2
        if self.ladder is not None:
            guidance_BE = self.ladder(guidance_of(cond, c_noise))
            embedding_BE = embedding_BE + self.guidance(guidance_BE, self.guidance_gain)
            variance = variance + self.guidance_gain**2
        embedding_BE = embedding_BE / variance.sqrt().to(embedding_BE.dtype)
        if self.label is not None:
            one_hot = F.one_hot(label_of(cond), self.classes + 1)[:, :-1].to(embedding_BE.dtype)
            label_BE = self.label(one_hot * math.sqrt(self.classes))
            embedding_BE = mp_sum(embedding_BE, label_BE, self.balance.label)
        return mp_silu(embedding_BE)

    def normalise_weights(self) -> None:
        """Put all weights back on their spheres, in place: to be called after every update.

        Official training does it at the start of every forward instead. Updates and answers are the
        same; an average taken after the update sees weights on their spheres, there slightly off.
        Frozen weights stay what they are.
        """
        for module in self.modules():
            if isinstance(module, MPConv) and module.weight.requires_grad:
                module.normalise_weights()


class Uncertainty(nn.Module):
    """u(sigma), the logarithm of the loss to be expected at a noise level, learned beside it.

    Used in training only (eq. 21). Its argument is ln(sigma) / 4.
    """

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        self.fourier = MPFourier(channels)
        self.last = MPConv(channels, 1)

    def forward(self, c_noise: Tensor) -> Tensor:
        """``(b,)``."""
        return self.last(self.fourier(c_noise)).flatten()

    def normalise_weights(self) -> None:
        """As the network's."""
        self.last.normalise_weights()
