r"""The residual U-Net on sequences of diffusion policies (Chi et al. 2023).

Shape suffixes: B batch, C channels, L length, E embedding.
"""

from __future__ import annotations

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
    label_of,
    zero,
)

GROUPS = 8
"""Of every group normalisation."""


class ConvBlock(nn.Module):
    """Convolution, group normalisation, Mish."""

    def __init__(self, c_in: int, c_out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(c_in, c_out, kernel, padding=kernel // 2)
        self.norm = nn.GroupNorm(GROUPS, c_out)

    def forward(self, x_BCL: Tensor) -> Tensor:
        """``(b, c_out, length)``."""
        return F.mish(self.norm(self.conv(x_BCL)))


class FiLMBlock(nn.Module):
    """Two :class:`ConvBlock`, scaled and shifted by the embedding in between, and a skip.

    The scale is the embedding's whole answer, not 1 plus it, as in the authors' code.

    Args:
        c_in, c_out: channels.
        embedding: width E.
        kernel: odd length of the convolutions.
    """

    def __init__(self, c_in: int, c_out: int, embedding: int, kernel: int) -> None:
        super().__init__()
        self.before = ConvBlock(c_in, c_out, kernel)
        self.modulate = nn.Linear(embedding, 2 * c_out)
        self.after = ConvBlock(c_out, c_out, kernel)
        self.skip = nn.Conv1d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x_BCL: Tensor, embedding_BE: Tensor) -> Tensor:
        """``(b, c_out, length)``."""
        scale_BC, shift_BC = self.modulate(F.mish(embedding_BE)).chunk(2, dim=1)
        h_BCL = self.before(x_BCL) * scale_BC[:, :, None] + shift_BC[:, :, None]
        return self.after(h_BCL) + self.skip(x_BCL)


class Pair(nn.Module):
    """The two blocks of a resolution."""

    def __init__(self, c_in: int, c_out: int, embedding: int, kernel: int) -> None:
        super().__init__()
        self.first = FiLMBlock(c_in, c_out, embedding, kernel)
        self.second = FiLMBlock(c_out, c_out, embedding, kernel)

    def forward(self, x_BCL: Tensor, embedding_BE: Tensor) -> Tensor:
        """``(b, c_out, length)``."""
        return self.second(self.first(x_BCL, embedding_BE), embedding_BE)


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
    """The network on events ``(c, length)``: an action chunk is ``(action_dim, horizon)``.

    The published one for Push-T is ``UNet1d((2, 16), observation=10)``, whose last convolution
    starts as torch's do; here it starts at 0, so that a fresh network answers 0.

    Args:
        shape: ``(c, length)``; the length divisible by 2 for every width after the first.
        widths: channels of the resolutions, from fine to coarse, multiples of 8.
        embedding: width of the time embedding, even.
        kernel: odd length of the convolutions.
        classes: number of labels; 0 for none. Label ``classes`` is null.
        observation: numbers a sample in the condition ``observation``, ``(b, ...)``; 0 for none.
        two_time: read the second time too; at first it adds nothing.
    """

    units: ClassVar[tuple[type[nn.Module], ...]] = (FiLMBlock,)

    def __init__(
        self,
        shape: tuple[int, ...],
        widths: tuple[int, ...] = (256, 512, 1024),
        embedding: int = 256,
        kernel: int = 5,
        classes: int = 0,
        observation: int = 0,
        two_time: bool = False,
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
        if not widths or any(w < 1 or w % GROUPS for w in widths):
            raise UsageError(f"UNet1d: widths must be multiples of {GROUPS}, got {tuple(widths)}")
        if kernel < 1 or kernel % 2 == 0 or embedding < 4 or embedding % 2 or observation < 0:
            raise UsageError(
                f"UNet1d: expected an odd kernel, an even embedding of at least 4 and no negative "
                f"observation, got {kernel}, {embedding} and {observation}"
            )
        unit = 2 ** (len(widths) - 1)
        if len(shape) != 2 or shape[1] < 1 or shape[1] % unit:
            raise UsageError(
                f"UNet1d: {len(widths)} resolutions need an event (c, length) whose length is "
                f"divisible by {unit}, got {tuple(shape)}; pad the sequence"
            )
        self.cond_keys = condition_keys(classes) + (("observation",) if observation else ())
        self.two_time, self.observation = two_time, observation

        self.time = TimeMLP(embedding)
        if two_time:
            self.end = TimeMLP(embedding)
            zero(self.end.last)
        self.label = nn.Embedding(classes + 1, embedding) if classes else None

        def pair(c_in: int, c_out: int) -> Pair:
            return Pair(c_in, c_out, embedding + observation, kernel)

        finer = widths[:-1]
        self.encoder = nn.ModuleList(pair(*ends) for ends in pairwise((shape[0], *widths)))
        self.down = nn.ModuleList(nn.Conv1d(w, w, 3, stride=2, padding=1) for w in finer)
        self.middle = pair(widths[-1], widths[-1])
        self.decoder = nn.ModuleList(
            pair(2 * coarse, fine) for coarse, fine in pairwise(reversed(widths))
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose1d(w, w, 4, stride=2, padding=1) for w in reversed(finer)
        )
        self.last_block = ConvBlock(widths[0], widths[0], kernel)
        self.last = zero(nn.Conv1d(widths[0], shape[0], 1))

    def forward(
        self, x: Tensor, c_noise: Tensor, s_noise: Tensor | None = None, cond: Cond | None = None
    ) -> Tensor:
        """F, shaped as ``x``."""
        embedding_BE = self._embedded(c_noise, s_noise, cond)
        h_BCL, skips = self.encoder[0](x, embedding_BE), []
        for down, pair in zip(self.down, self.encoder[1:], strict=True):
            h_BCL = pair(down(h_BCL), embedding_BE)
            skips.append(h_BCL)
        h_BCL = self.middle(h_BCL, embedding_BE)
        # Skips leave after their resolution's blocks; the finest's is not used, as by the authors.
        for pair, up in zip(self.decoder, self.up, strict=True):
            h_BCL = up(pair(torch.cat([h_BCL, skips.pop()], dim=1), embedding_BE))
        return self.last(self.last_block(h_BCL))

    def _embedded(self, c_noise: Tensor, s_noise: Tensor | None, cond: Cond | None) -> Tensor:
        embedding_BE = self.time(c_noise)
        if self.two_time:
            embedding_BE = embedding_BE + self.end(c_noise if s_noise is None else s_noise)
        if self.label is not None:
            embedding_BE = embedding_BE + self.label(label_of(cond))
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
