r"""The residual U-Net on sequences of diffusion policies (Chi et al. 2023).

Shape suffixes: B batch, C channels, L length, E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core import Cond, UsageError
from fewstep.models.nets.blocks import (
    AbstractNetwork,
    PositionalEmbedding,
    condition_keys,
    embedding_of,
    label_of,
    zero,
)
from fewstep.models.nets.conditions import Conditions, mask_of

GROUPS = 8
"""Each group normalisation has so many groups, where no other number is asked for."""


def masked_norm(norm: nn.GroupNorm, x_BCL: Tensor, mask_B1L: Tensor) -> Tensor:
    """The answer of ``norm`` with the mean and the variance of the real positions alone."""
    wide = torch.promote_types(x_BCL.dtype, torch.float32)
    x_BGCL = x_BCL.to(wide).unflatten(1, (norm.num_groups, -1))
    real_B11L = mask_B1L[:, None].to(wide)
    count_B111 = (x_BGCL.shape[2] * real_B11L.sum(3, keepdim=True)).clamp(min=1)
    mean_BG11 = (x_BGCL * real_B11L).sum((2, 3), keepdim=True) / count_B111
    centred_BGCL = (x_BGCL - mean_BG11) * real_B11L
    variance_BG11 = centred_BGCL.square().sum((2, 3), keepdim=True) / count_B111
    unit_BCL = (centred_BGCL * (variance_BG11 + norm.eps).rsqrt()).flatten(1, 2)
    return (unit_BCL * norm.weight[:, None] + norm.bias[:, None]).to(x_BCL.dtype)


class ConvBlock(nn.Module):
    """Convolution, group normalisation, Mish."""

    def __init__(self, c_in: int, c_out: int, kernel: int, groups: int = GROUPS) -> None:
        super().__init__()
        self.conv = nn.Conv1d(c_in, c_out, kernel, padding=kernel // 2)
        self.norm = nn.GroupNorm(groups, c_out)

    def forward(self, x_BCL: Tensor, mask_B1L: Tensor | None = None) -> Tensor:
        """``(b, c_out, length)``; with a mask, real positions read nothing but real ones."""
        if mask_B1L is None:
            return F.mish(self.norm(self.conv(x_BCL)))
        return F.mish(masked_norm(self.norm, self.conv(x_BCL * mask_B1L), mask_B1L))


class FiLMBlock(nn.Module):
    """Two :class:`ConvBlock`, scaled and shifted by the embedding in between, and a skip.

    The scale is the embedding's whole answer, not 1 plus it, as in the authors' code.

    Args:
        c_in, c_out: numbers of channels.
        embedding: the width E of the embedding.
        kernel: the length of the convolutions, which is odd.
        groups: of each normalisation.
    """

    def __init__(
        self, c_in: int, c_out: int, embedding: int, kernel: int, groups: int = GROUPS
    ) -> None:
        super().__init__()
        self.before = ConvBlock(c_in, c_out, kernel, groups)
        self.modulate = nn.Linear(embedding, 2 * c_out)
        self.after = ConvBlock(c_out, c_out, kernel, groups)
        self.skip = nn.Conv1d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(
        self, x_BCL: Tensor, embedding_BE: Tensor, mask_B1L: Tensor | None = None
    ) -> Tensor:
        """``(b, c_out, length)``; with a mask, zeros where it is 0."""
        scale_BC, shift_BC = self.modulate(F.mish(embedding_BE)).chunk(2, dim=1)
        h_BCL = self.before(x_BCL, mask_B1L) * scale_BC[:, :, None] + shift_BC[:, :, None]
        h_BCL = self.after(h_BCL, mask_B1L) + self.skip(x_BCL)
        return h_BCL if mask_B1L is None else h_BCL * mask_B1L


class Pair(nn.Module):
    """The two blocks of a resolution."""

    def __init__(self, c_in: int, c_out: int, embedding: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.first = FiLMBlock(c_in, c_out, embedding, kernel, groups)
        self.second = FiLMBlock(c_out, c_out, embedding, kernel, groups)

    def forward(
        self, x_BCL: Tensor, embedding_BE: Tensor, mask_B1L: Tensor | None = None
    ) -> Tensor:
        """``(b, c_out, length)``; with a mask, zeros where it is 0."""
        h_BCL = self.first(x_BCL, embedding_BE, mask_B1L)
        return self.second(h_BCL, embedding_BE, mask_B1L)


class TimeMLP(nn.Module):
    """A sinusoid and two layers."""

    def __init__(self, embedding: int) -> None:
        super().__init__()
        self.sinusoid = PositionalEmbedding(embedding, endpoint=True, sin_first=True)
        self.first = nn.Linear(embedding, 4 * embedding)
        self.last = nn.Linear(4 * embedding, embedding)

    def forward(self, t_B: Tensor) -> Tensor:
        """``(b, embedding)``."""
        return self.last(F.mish(self.first(self.sinusoid(t_B))))


class UNet1d(AbstractNetwork):
    """The network on samples ``(c, length)``: an action chunk is ``(action_dim, horizon)``.

    The published one for Push-T is ``UNet1d((2, 16), observation=10)``, whose last convolution
    starts as torch's do; here it starts at 0, so that a fresh network answers 0.

    Where positions are padded, by the caller (``masked``) or in here (a free length), they are
    zeros to every convolution, no part of a mean or variance, and 0 in the answer. Therefore a
    sample's answer is the same however much it is padded.

    Args:
        shape: ``(c, length)``; the length divisible by 2 for every width after the first. A length
            of None means that samples may have any length, which can change from call to call.
        widths: the numbers of channels of the resolutions, from fine to coarse, multiples of 8.
        embedding: the width of the time embedding, which is even.
        kernel: the length of the convolutions, which is odd.
        classes: the number of labels, 0 for none; the label ``classes`` is null.
        observation: how many numbers per sample the condition ``observation`` has, which is
            ``(b, ...)``; 0 for none.
        two_time: whether the network also reads the second time, which at first adds nothing.
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
        masked: whether the data is ragged: ``cond["mask"]`` is ``(b, 1, length)``, 1 where a sample
            is real and 0 where it is padded.
        joined: give the blocks the vectors beside the time embedding, as diffusion policies do, and
            not added to it; and the second time beside the first, by the same layers, as
            Consistency Policy does.
        groups: of each normalisation but the last block's, which has 8.
    """

    units: ClassVar[tuple[type[nn.Module], ...]] = (FiLMBlock,)

    def __init__(
        self,
        shape: tuple[int | None, ...],
        widths: tuple[int, ...] = (256, 512, 1024),
        embedding: int = 256,
        kernel: int = 5,
        classes: int = 0,
        observation: int = 0,
        two_time: bool = False,
        vectors: Mapping[str, int] | None = None,
        sequences: Mapping[str, tuple[int, int]] | None = None,
        images: Mapping[str, int] | None = None,
        texts: Mapping[str, tuple[int, int]] | None = None,
        masked: bool = False,
        joined: bool = False,
        groups: int = GROUPS,
    ) -> None:
        super().__init__()
        self.options = {
            "shape": list(shape),
            "widths": list(widths),
            "embedding": embedding,
            "kernel": kernel,
            "classes": classes,
            "observation": observation,
            "two_time": two_time,
        }
        self.options |= {"joined": True} if joined else {}
        self.options |= {"groups": groups} if groups != GROUPS else {}
        if not widths or groups < 1 or any(w < 1 or w % groups for w in widths):
            raise UsageError(f"UNet1d: widths must be multiples of {groups}, got {tuple(widths)}")
        if widths[0] % GROUPS:
            raise UsageError(f"UNet1d: the first width must be a multiple of {GROUPS}")
        named = {*(vectors or ()), *(sequences or ()), *(images or ()), *(texts or ())}
        if observation and "observation" in named:
            raise UsageError(
                "UNet1d: the condition observation is declared twice, by its own option and by "
                "name; take one of them"
            )
        if kernel < 1 or kernel % 2 == 0 or embedding < 4 or embedding % 2 or observation < 0:
            raise UsageError(
                f"UNet1d: expected an odd kernel, an even embedding of at least 4 and no negative "
                f"observation, got {kernel}, {embedding} and {observation}"
            )
        unit = 2 ** (len(widths) - 1)
        channels, length = shape if len(shape) == 2 else (None, 0)
        if channels is None or (length is not None and (length < 1 or length % unit)):
            raise UsageError(
                f"UNet1d: {len(widths)} resolutions need samples (c, length) whose length is "
                f"divisible by {unit}, got {tuple(shape)}; pad the sequence, or give the length "
                "None, with which samples may have any length"
            )
        declared = (vectors, sequences, images, texts)
        self.conditions = Conditions("UNet1d", embedding, *declared, plain=joined)
        self.joined = joined
        self.options |= {**self.conditions.options, **({"masked": True} if masked else {})}
        self.cond_keys = (
            *condition_keys(classes),
            *("observation",) * bool(observation),
            *self.conditions.keys,
            *("mask",) * masked,
        )
        self.two_time, self.observation, self.masked = two_time, observation, masked
        self.unit = unit if length is None else 1

        self.time = TimeMLP(embedding)
        if two_time and not joined:
            self.end = TimeMLP(embedding)
            zero(self.end.last)
        beside = embedding * two_time + sum((vectors or {}).values()) if joined else 0
        self.label = embedding_of(classes + 1, embedding) if classes else None

        def pair(c_in: int, c_out: int) -> Pair:
            return Pair(c_in, c_out, embedding + observation + beside, kernel, groups)

        finer = widths[:-1]
        read = channels + self.conditions.channels
        self.encoder = nn.ModuleList(pair(*ends) for ends in pairwise((read, *widths)))
        self.down = nn.ModuleList(nn.Conv1d(w, w, 3, stride=2, padding=1) for w in finer)
        self.middle = pair(widths[-1], widths[-1])
        self.decoder = nn.ModuleList(
            pair(2 * coarse, fine) for coarse, fine in pairwise(reversed(widths))
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose1d(w, w, 4, stride=2, padding=1) for w in reversed(finer)
        )
        self.last_block = ConvBlock(widths[0], widths[0], kernel)
        self.last = zero(nn.Conv1d(widths[0], channels, 1))

    def grown_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a network of one time as weights of this one, which reads two.

        Where the second time stands beside the first, its columns are 0, so that it adds nothing.
        """
        new = {name: value.shape for name, value in self.state_dict().items()}
        wider = {
            name
            for name, value in state.items()
            if name.endswith(".modulate.weight") and value.shape != new[name]
        }
        width = self.options["embedding"]

        def widened(value: Tensor) -> Tensor:
            first, rest = value[:, :width], value[:, width:]
            return torch.cat([first, torch.zeros_like(first), rest], dim=1)

        return {name: widened(v) if name in wider else v for name, v in state.items()}

    def forward(
        self, x: Tensor, c_noise: Tensor, s_noise: Tensor | None = None, cond: Cond | None = None
    ) -> Tensor:
        """F, shaped as ``x``."""
        embedding_BE = self._embedded(c_noise, s_noise, cond)
        length = x.shape[2]
        x, masks = self._masked(self.conditions.add_images(x, cond), cond)
        h_BCL, skips = self.encoder[0](x, embedding_BE, masks[0]), []
        for down, pair, mask in zip(self.down, self.encoder[1:], masks[1:], strict=True):
            h_BCL = pair(down(h_BCL), embedding_BE, mask)
            skips.append(h_BCL)
        h_BCL = self.middle(h_BCL, embedding_BE, masks[-1])
        # Skips leave after their resolution's blocks; the finest's is not used, as by the authors.
        coarse = reversed(masks[1:])
        for pair, up, mask in zip(self.decoder, self.up, coarse, strict=True):
            h_BCL = up(pair(torch.cat([h_BCL, skips.pop()], dim=1), embedding_BE, mask))
        out = self.last(self.last_block(h_BCL, masks[0]))
        return out if masks[0] is None else (out * masks[0])[:, :, :length]

    def _masked(self, x: Tensor, cond: Cond | None) -> tuple[Tensor, list[Tensor | None]]:
        """The padded input, zero where it is not real, and the masks of all resolutions."""
        short = -x.shape[2] % self.unit
        if not (self.masked or short):
            return x, [None] * len(self.encoder)
        real = mask_of(cond, x) if self.masked else torch.ones_like(x[:, :1], dtype=torch.bool)
        x = F.pad(x.masked_fill(~real, 0.0), (0, short))
        mask = F.pad(real.to(x.dtype), (0, short))
        masks: list[Tensor | None] = [mask]
        for _ in self.down:
            # A coarse position is real if one of the two that it stands for is.
            mask = mask.unflatten(2, (-1, 2)).amax(3)
            masks.append(mask)
        return x, masks

    def _embedded(self, c_noise: Tensor, s_noise: Tensor | None, cond: Cond | None) -> Tensor:
        embedding_BE = self.time(c_noise)
        last = c_noise if s_noise is None else s_noise
        if self.two_time and not self.joined:
            embedding_BE = embedding_BE + self.end(last)
        if self.label is not None:
            embedding_BE = embedding_BE + self.label(label_of(cond))
        if not self.joined:
            embedding_BE = self.conditions.add_vectors(embedding_BE, cond)
        embedding_BE = self.conditions.add_pooled(embedding_BE, cond)
        if self.joined:
            ends = [self.time(last)] * self.two_time
            vectors = self.conditions.plain_vectors(embedding_BE, cond)
            embedding_BE = torch.cat([embedding_BE, *ends, *vectors], dim=1)
        if not self.observation:
            return embedding_BE
        seen = None if cond is None else cond.get("observation")
        if seen is None or seen[0].numel() != self.observation:
            given = "none" if seen is None else f"shape {tuple(seen.shape)}"
            raise UsageError(
                f"this network needs cond={{'observation': tensor (b, ...)}} of {self.observation} "
                f"numbers a sample, got {given}"
            )
        return torch.cat([embedding_BE, seen.flatten(1).to(embedding_BE.dtype)], dim=1)
