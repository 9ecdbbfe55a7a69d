"""Blocks of ADM: residual blocks that also resample, plain resampling, and the label's table.

Shape suffixes as in ``blocks``.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core import normal
from fewstep.models.nets.blocks import attention, group_norm, modulated, resize_box, zero

HEAD = 64
"""Channels of one attention head."""


class ADMBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice, conditioned at the second norm; then attention.

    A fresh block is the identity, or a bare resampling and 1x1 convolution where it changes shape.

    Args:
        c_in, c_out: channels.
        embedding: width E of the embedding.
        resample: 0.5, 1 or 2, applied before the first convolution and on the skip.
        attend: whether the block has attention.
        scale_shift: whether the embedding scales and shifts the result of the second norm; else it
            is added to the input of that norm.
        dropout: the probability of dropout.
        double_norm: whether scale and shift are normalised, see
            :func:`~fewstep.models.nets.blocks.modulated`.
        heads: the number of attention heads; 0 for heads of 64 channels.
        groups: of every group normalisation; 0 for at most 32 of at least 4 channels.
        eps: what every group normalisation adds to the variance.
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
        heads: int = 0,
        groups: int = 0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.resample, self.scale_shift, self.double_norm = resample, scale_shift, double_norm
        self.heads = (heads or c_out // HEAD) if attend else 0
        self.norm0 = group_norm(c_in, eps, groups)
        self.conv0 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.affine = nn.Linear(embedding, 2 * c_out if scale_shift else c_out)
        self.norm1 = group_norm(c_out, eps, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        if attend:
            self.norm2 = group_norm(c_out, eps, groups)
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


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2 in place of a block that halves the resolution.

    Args:
        channels: of input and output.
        asymmetric: whether zeros are added at the right and the lower border only, as in DDPM.
    """

    resample = 0.5

    def __init__(self, channels: int, asymmetric: bool = False) -> None:
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x_BCHW: Tensor, embedding_BE: Tensor) -> Tensor:
        """``(b, channels, h / 2, w / 2)``; the embedding is not read."""
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)) if self.asymmetric else x_BCHW)


class Upsample(nn.Module):
    """Repetition and a 3x3 convolution in place of a block that doubles the resolution."""

    resample = 2

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor, embedding_BE: Tensor) -> Tensor:
        """``(b, channels, 2 h, 2 w)``; the embedding is not read."""
        return self.conv(resize_box(x_BCHW, 2))


class LabelTable(nn.Module):
    """A row of unit normals for each label; label k is null, all zeros, and not stored."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(classes, channels))

    def forward(self, label_B: Tensor) -> Tensor:
        """``(b, channels)``."""
        return F.embedding(label_B, F.pad(self.weight, (0, 0, 0, 1)))
