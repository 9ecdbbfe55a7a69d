r"""Transformers on patches: DiT with adaLN-Zero (Peebles & Xie 2023) and SiT (Ma et al. 2024).

Both are one network. DiT's time is the index of its 1000 steps, for which its preconditioning takes
``time_scale=1000``; SiT's is t itself, which in published weights runs from noise to data. Shape
suffixes: B batch, C channels, H, W space, L tokens, N heads, D a head's channels, E width.
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
    embedding_of,
    guidance_of,
    label_of,
    redraw,
    xavier,
    zero,
)
from fewstep.models.nets.conditions import Conditions

SIZES: dict[str, dict[str, Any]] = {
    "s": {"depth": 12, "width": 384, "heads": 6},
    "b": {"depth": 12, "width": 768, "heads": 12},
    "l": {"depth": 24, "width": 1024, "heads": 16},
    "xl": {"depth": 28, "width": 1152, "heads": 16},
}
"""The options of the published sizes, each of which was trained on patches of 2, 4 and 8."""


def position_embedding(rows: int, columns: int, channels: int) -> Tensor:
    """The sines and cosines of each token's column, then row: ``(rows * columns, channels)``."""
    whole = torch.empty(rows * columns, channels)
    if whole.is_meta:  # see fewstep.core.normal
        return whole
    quarter = channels // 4
    frequencies = 1e4 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)

    def embedded(n: int) -> Tensor:
        angle = torch.arange(n, dtype=torch.float64).outer(frequencies)
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    column = embedded(columns).repeat(rows, 1)
    row = embedded(rows).repeat_interleave(columns, dim=0)
    return torch.cat([column, row], dim=1).float()


class TimeMLP(nn.Module):
    """A sinusoid of 256 channels and two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sinusoid = PositionalEmbedding(256)
        self.first, self.last = nn.Linear(256, width), nn.Linear(width, width)
        for layer in (self.first, self.last):
            redraw(layer.weight, 0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, t_B: Tensor) -> Tensor:
        """``(b, width)``."""
        return self.last(F.silu(self.first(self.sinusoid(t_B))))


def modulated(x_BLE: Tensor, shift_BE: Tensor, scale_BE: Tensor) -> Tensor:
    """``x`` normalised without parameters, then scaled and shifted."""
    x_BLE = F.layer_norm(x_BLE, x_BLE.shape[-1:], eps=1e-6)
    return x_BLE * (1 + scale_BE[:, None]) + shift_BE[:, None]


class CrossAttention(nn.Module):
    """Attention of the tokens of a sample to the tokens of its conditions; zero at first.

    Args:
        width: channels of a token.
        heads: the number of heads of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.keys = (
            xavier(nn.Linear(width, width)),
            xavier(nn.Linear(width, 2 * width)),
        )
        self.proj = zero(nn.Linear(width, width))

    def forward(self, x_BLE: Tensor, tokens_BSE: Tensor, mask_BS: Tensor) -> Tensor:
        """``(b, tokens, width)``; every row of the mask has a True."""
        query_BLE = self.query(F.layer_norm(x_BLE, x_BLE.shape[-1:], eps=1e-6))
        q_BNLD = query_BLE.unflatten(2, (self.heads, -1)).transpose(1, 2)
        k_BNSD, v_BNSD = (
            self.keys(tokens_BSE).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        a_BNLD = F.scaled_dot_product_attention(
            q_BNLD, k_BNSD, v_BNSD, attn_mask=mask_BS[:, None, None]
        )
        return self.proj(a_BNLD.transpose(1, 2).flatten(2))


class DiTBlock(nn.Module):
    """Attention, then an MLP, both of which the embedding shifts, scales and gates.

    A fresh block is the identity.

    Args:
        width: channels of a token.
        heads: the number of heads of each attention.
        cross: whether the block also attends to the tokens of conditions, between the two, as
            PixArt's does (Chen et al. 2024).
    """

    def __init__(self, width: int, heads: int, cross: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.modulate = zero(nn.Linear(width, 6 * width))
        self.qkv, self.proj = xavier(nn.Linear(width, 3 * width)), xavier(nn.Linear(width, width))
        self.up, self.down = (
            xavier(nn.Linear(width, 4 * width)),
            xavier(nn.Linear(4 * width, width)),
        )
        self.cross = CrossAttention(width, heads) if cross else None

    def forward(self, x_BLE: Tensor, embedding_BE: Tensor, *tokens: Tensor) -> Tensor:
        """``(b, tokens, width)``; ``tokens`` are those of the conditions and their mask."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulate(
            F.silu(embedding_BE)
        ).chunk(6, dim=1)
        x_BLE = x_BLE + gate[:, None] * self._attended(modulated(x_BLE, shift, scale))
        if self.cross is not None:
            x_BLE = x_BLE + self.cross(x_BLE, *tokens)
        h_BLE = F.gelu(self.up(modulated(x_BLE, shift_mlp, scale_mlp)), approximate="tanh")
        return x_BLE + gate_mlp[:, None] * self.down(h_BLE)

    def _attended(self, x_BLE: Tensor) -> Tensor:
        # The 3E rows of qkv are ordered by q, k, v, then head, then channel.
        qkv_BLXND = self.qkv(x_BLE).unflatten(2, (3, self.heads, -1))
        q_BNLD, k_BNLD, v_BNLD = qkv_BLXND.permute(2, 0, 3, 1, 4)
        a_BNLD = F.scaled_dot_product_attention(q_BNLD, k_BNLD, v_BNLD)
        return self.proj(a_BNLD.transpose(1, 2).flatten(2))


class DiT(AbstractNetwork):
    """The network: ``DiT((4, 32, 32), patch=2, classes=1000, **SIZES["xl"])`` is DiT-XL/2.

    It predicts the sample and nothing more: published networks have a second half of the output,
    a variance, which DiT learns and SiT leaves unused.

    Args:
        shape: ``(c, h, w)``; h and w divisible by ``patch``.
        patch: the side of the squares that are tokens.
        depth: the number of blocks.
        width: the number of channels of a token, a multiple of 4 and of ``heads``.
        heads: the number of heads of each attention.
        classes: the number of labels, 0 for none; the label ``classes`` is null, and has a row of
            its own.
        two_time: whether the network also reads the second time, which at first adds nothing.
        guidance: whether the network also reads a guidance scale, ``cond["guidance"]``, which at
            first adds nothing.
        vectors: the names of vector conditions, and how many numbers each has per sample;
            ``cond[name]`` is float ``(b, ...)``.
        sequences: the names of sequences of tokens, and the greatest length and the width of each;
            ``cond[name]`` is float ``(b, length, width)``, and ``cond[f"{name}_mask"]`` is bool
            ``(b, length)``, True where a token is real, all False for none. Every block attends to
            the real tokens.
        images: the names of images that the network reads beside ``x``, and how many channels each
            has; ``cond[name]`` is float ``(b, c, *space)`` of the size of ``x``, zeros for none.
        texts: the names of texts whose tokens a small transformer in the network embeds, and the
            vocabulary and the greatest length of each; ``cond[name]`` is int64 ``(b, tokens)``
            and ``cond[f"{name}_mask"]`` bool as for sequences. Every block attends to them.
    """

    units: ClassVar[tuple[type[nn.Module], ...]] = (DiTBlock,)

    def __init__(
        self,
        shape: tuple[int, ...],
        patch: int = 2,
        depth: int = 12,
        width: int = 384,
        heads: int = 6,
        classes: int = 0,
        two_time: bool = False,
        guidance: bool = False,
        vectors: Mapping[str, int] | None = None,
        sequences: Mapping[str, tuple[int, int]] | None = None,
        images: Mapping[str, int] | None = None,
        texts: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        super().__init__()
        self.options = {
            "shape": list(shape),
            "patch": patch,
            "depth": depth,
            "width": width,
            "heads": heads,
            "classes": classes,
            "two_time": two_time,
            "guidance": guidance,
        }
        if len(shape) != 3 or patch < 1 or any(n < 1 or n % patch for n in shape[1:]):
            raise UsageError(
                f"DiT: patches of {patch} need an event (c, h, w) whose h and w are divisible by "
                f"that, got {tuple(shape)}"
            )
        if heads < 1 or width < 1 or width % math.lcm(4, heads):
            raise UsageError(
                f"DiT: the width must be a multiple of 4 and of the {heads} heads, got {width}"
            )
        self.conditions = Conditions("DiT", width, vectors, sequences, images, texts)
        self.options |= self.conditions.options
        self.cond_keys = condition_keys(classes, guidance) + self.conditions.keys
        self.two_time, self.patch = two_time, patch
        rows, columns = (n // patch for n in shape[1:])
        self.grid = (rows, columns)

        self.time = TimeMLP(width)
        if two_time:
            self.end = TimeMLP(width)
            zero(self.end.last)
        self.guidance = TimeMLP(width) if guidance else None
        if self.guidance is not None:
            zero(self.guidance.last)
        self.label = embedding_of(classes + 1, width) if classes else None
        if self.label is not None:
            redraw(self.label.weight, 0.02)
        # A convolution of stride ``patch``, as a linear map of what it sees.
        channels = shape[0] + self.conditions.channels
        self.first = xavier(nn.Linear(channels * patch**2, width))
        self.register_buffer("position", position_embedding(rows, columns, width))
        cross = bool(sequences or texts)
        self.blocks = nn.ModuleList(DiTBlock(width, heads, cross) for _ in range(depth))
        self.modulate = zero(nn.Linear(width, 2 * width))
        self.last = zero(nn.Linear(width, shape[0] * patch**2))

    def forward(
        self, x: Tensor, c_noise: Tensor, s_noise: Tensor | None = None, cond: Cond | None = None
    ) -> Tensor:
        """F, shaped as ``x``."""
        embedding_BE = self.time(c_noise)
        if self.two_time:
            embedding_BE = embedding_BE + self.end(c_noise if s_noise is None else s_noise)
        if self.guidance is not None:
            embedding_BE = embedding_BE + self.guidance(guidance_of(cond, c_noise))
        if self.label is not None:
            embedding_BE = embedding_BE + self.label(label_of(cond))
        embedding_BE = self.conditions.add_vectors(embedding_BE, cond)
        tokens = self.conditions.tokens(embedding_BE, cond)
        x = self.conditions.add_images(x, cond)
        h_BLE = self.first(F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2))
        h_BLE = h_BLE + self.get_buffer("position").to(h_BLE.dtype)
        for block in self.blocks:
            h_BLE = block(h_BLE, embedding_BE, *tokens)
        shift_BE, scale_BE = self.modulate(F.silu(embedding_BE)).chunk(2, dim=1)
        out_BLC = self.last(modulated(h_BLE, shift_BE, scale_BE))
        # A token's outputs are ordered by row, then column, then channel of its patch.
        p = self.patch
        out = out_BLC.unflatten(2, (p * p, -1)).transpose(2, 3).flatten(2).transpose(1, 2)
        return F.pixel_shuffle(out.unflatten(2, self.grid), p)
