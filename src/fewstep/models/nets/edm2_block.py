"""The residual block of EDM2, and the shares of its sums.

Shape suffixes as in :mod:`fewstep.models.nets.blocks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core import UsageError
from fewstep.models.nets.blocks import resize_box
from fewstep.models.nets.magnitude import MPConv, mp_silu, mp_sum, normalise

HEAD = 64
"""Channels of an attention head."""


@dataclass(frozen=True)
class Balance:
    """How the branches of a network are weighted; the published networks have these shares.

    Args:
        residual: the share of the branch in every residual sum.
        attention: the share of attention in its sum.
        concat: the share of the skip where the decoder joins it.
        label: the share of the label in the embedding.
        limit: activations are clipped to it.
    """

    residual: float = 0.3
    attention: float = 0.3
    concat: float = 0.5
    label: float = 0.5
    limit: float = 256.0


class EDM2Block(nn.Module):
    """A residual block, modulated by the embedding; then attention.

    Encoder blocks normalise each pixel and project before the branch leaves, decoder blocks project
    where it returns.

    Args:
        c_in, c_out: channels.
        embedding: width E of the embedding.
        encoder: which of both.
        resample: 0.5, 1 or 2, before everything else.
        attend: whether attention follows.
        dropout: probability.
        head_channels: channels of an attention head; a narrower block has one head.
        balance: of its sums.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        embedding: int,
        *,
        encoder: bool,
        resample: float = 1,
        attend: bool = False,
        dropout: float = 0.0,
        head_channels: int = HEAD,
        balance: Balance | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.resample, self.attend = encoder, resample, attend
        self.balance = balance or Balance()
        self.heads = max(1, c_out // head_channels)
        if attend and c_out % self.heads:
            raise UsageError(f"EDM2: {c_out} channels do not split into {self.heads} heads")
        self.skip = MPConv(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.conv0 = MPConv(c_out if encoder else c_in, c_out, 3)
        self.modulate = MPConv(embedding, c_out)
        self.gain = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout(dropout)
        self.conv1 = MPConv(c_out, c_out, 3)
        if attend:
            self.qkv = MPConv(c_out, 3 * c_out, 1)
            self.proj = MPConv(c_out, c_out, 1)

    def forward(self, x_BCHW: Tensor, embedding_BE: Tensor) -> Tensor:
        """``(b, c_out, h, w)`` at the resampled size."""
        x_BCHW = resize_box(x_BCHW, self.resample)
        if self.encoder:
            x_BCHW = normalise(self.skip(x_BCHW), 1)
        h_BCHW = self.conv0(mp_silu(x_BCHW))
        scale_BC = 1 + self.modulate(embedding_BE, self.gain)
        h_BCHW = mp_silu(h_BCHW * scale_BC[:, :, None, None])
        h_BCHW = self.conv1(self.dropout(h_BCHW))
        x_BCHW = mp_sum(
            x_BCHW if self.encoder else self.skip(x_BCHW), h_BCHW, self.balance.residual
        )
        if self.attend:
            x_BCHW = mp_sum(x_BCHW, self._attended(x_BCHW), self.balance.attention)
        return x_BCHW.clamp(-self.balance.limit, self.balance.limit)

    def _attended(self, x_BCHW: Tensor) -> Tensor:
        # The 3C rows of qkv are ordered by head, then channel, then q, k, v.
        qkv_BNDXL = self.qkv(x_BCHW).reshape(
            x_BCHW.shape[0], self.heads, -1, 3, x_BCHW.shape[2] * x_BCHW.shape[3]
        )
        # contiguous: the fused kernels refuse a strided last axis, and leave it to the slow one.
        q_BNLD, k_BNLD, v_BNLD = normalise(qkv_BNDXL, 2).permute(3, 0, 1, 4, 2).contiguous()
        a_BNLD = F.scaled_dot_product_attention(q_BNLD, k_BNLD, v_BNLD)
        return self.proj(a_BNLD.transpose(2, 3).contiguous().reshape(x_BCHW.shape))


def balance_of(given: Mapping[str, float]) -> Balance:
    """The usual shares but for those that are given."""
    unknown = [name for name in given if name not in asdict(Balance())]
    balance = Balance() if unknown else Balance(**given)
    shares = (balance.residual, balance.attention, balance.concat, balance.label)
    if unknown or balance.limit <= 0 or not all(0 < share < 1 for share in shares):
        raise UsageError(
            f"EDM2: balance takes shares between 0 and 1 of {[*asdict(Balance())]} (limit is any "
            f"positive number), got {dict(given)}"
        )
    return balance
