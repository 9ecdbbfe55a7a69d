"""Blocks that several network families share: embeddings of time and label, residual blocks.

Shape suffixes: B batch, C channels, H, W space, L = H W, N heads, D a head's channels, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core import Cond, UsageError, normal
from fewstep.models.nets.magnitude import MPConv, normalise

Layer = TypeVar("Layer", nn.Linear, nn.Conv1d, nn.Conv2d)


class AbstractNetwork(nn.Module):
    """What every network of the library has; ``options`` are the arguments that build it again."""

    options: dict[str, Any]
    cond_keys: tuple[str, ...]
    two_time: bool
    last: nn.Linear | nn.Conv1d | nn.Conv2d | MPConv

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last layer, at which adaptive loss weights measure gradients."""
        return self.last.weight


class FourierEmbedding(nn.Module):
    """cos and sin of random frequencies, which are data and travel with the weights.

    Args:
        channels: output width, even.
        scale: standard deviation of the frequencies.
        sin_first: sin before cos (EDM's NCSN++), or cos before sin.
    """

    def __init__(self, channels: int, scale: float, sin_first: bool = False) -> None:
        super().__init__()
        self.sin_first = sin_first
        self.register_buffer("frequencies", normal(channels // 2, scale=scale))

    def forward(self, t_B: Tensor) -> Tensor:
        """``(b, channels)``."""
        angle = t_B.outer(2 * math.pi * self.get_buffer("frequencies").to(t_B.dtype))
        parts = (angle.sin(), angle.cos()) if self.sin_first else (angle.cos(), angle.sin())
        return torch.cat(parts, dim=1)


class PositionalEmbedding(nn.Module):
    """cos and sin of a geometric ladder of frequencies, from 1 down to 1/10000.

    Args:
        channels: output width, even.
        endpoint: the ladder ends on 1/10000 (EDM's DDPM++), or one rung short of it (OpenAI's).
        sin_first: sin before cos (EDM's DDPM++), or cos before sin (OpenAI's).
        amplitude: of the waves; sqrt(2) gives them unit variance.
    """

    def __init__(
        self,
        channels: int,
        endpoint: bool = False,
        sin_first: bool = False,
        amplitude: float = 1.0,
    ) -> None:
        super().__init__()
        self.channels, self.endpoint, self.sin_first = channels, endpoint, sin_first
        self.amplitude = amplitude

    def forward(self, t_B: Tensor) -> Tensor:
        """``(b, channels)``."""
        half = self.channels // 2
        ladder = torch.arange(half, dtype=torch.float32, device=t_B.device)
        frequencies = (1e-4) ** (ladder / (half - self.endpoint))
        angle = t_B.outer(frequencies.to(t_B.dtype))
        parts = (angle.sin(), angle.cos()) if self.sin_first else (angle.cos(), angle.sin())
        return self.amplitude * torch.cat(parts, dim=1)


class LabelEmbedding(nn.Module):
    """A linear map of sqrt(k) times the one-hot label, as in EDM; label k is null, all zeros."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.classes = classes
        self.linear = xavier(nn.Linear(classes, channels))

    def forward(self, label_B: Tensor) -> Tensor:
        """``(b, channels)``."""
        one_hot = F.one_hot(label_B, self.classes + 1)[:, :-1].to(self.linear.weight.dtype)
        return self.linear(one_hot * math.sqrt(self.classes))


class GuidanceEmbedding(nn.Module):
    """A linear map of a ladder of the guidance scale's cosines and sines, zero at first.

    Args:
        features: width of the ladder, even.
        channels: output width.
    """

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        self.ladder = PositionalEmbedding(features)
        self.linear = zero(nn.Linear(features, channels, bias=False))

    def forward(self, guidance_B: Tensor) -> Tensor:
        """``(b, channels)``."""
        return self.linear(self.ladder(guidance_B))


def latent_guidance_embedding(guidance_B: Tensor, channels: int) -> Tensor:
    """Sines, then cosines, of 1000 (g - 1), as networks of latent consistency models read it.

    A network of yours that has diffusers' ``time_cond_proj_dim`` takes it for ``timestep_cond``;
    the library's own networks have :class:`GuidanceEmbedding`.

    Args:
        guidance_B: scales g ``(b,)``, where 1 is no guidance. LCM's own w is g - 1.
        channels: output width, at least 4; 256 for Stable Diffusion. An odd one ends with a 0.

    Returns:
        ``(b, channels)``. The frequencies go from 1 down to 1/10000, both ends included.
    """
    ladder = PositionalEmbedding(channels, endpoint=True, sin_first=True)
    return F.pad(ladder(1000 * (guidance_B - 1)), (0, channels % 2))


def condition_keys(classes: int, guidance: bool = False) -> tuple[str, ...]:
    """The conditions of a network with that many classes that reads a guidance scale or not."""
    return ("label",) * bool(classes) + ("guidance",) * guidance


def label_of(cond: Cond | None) -> Tensor:
    """The label of a class-conditional network's conditions."""
    if cond is None or "label" not in cond:
        raise UsageError("a class-conditional network needs cond={'label': int64 tensor (b,)}")
    return cond["label"]


def guidance_of(cond: Cond | None, like: Tensor) -> Tensor:
    """The guidance scale among a network's conditions, in the precision of ``like``."""
    if cond is None or "guidance" not in cond:
        raise UsageError(
            "this network reads a guidance scale: it needs cond={'guidance': float tensor (b,)}"
        )
    return cond["guidance"].to(like.dtype)


def augment_of(cond: Cond | None, width: int, like: Tensor) -> Tensor:
    """The augmentation labels ``(b, width)`` among the conditions; zeros if there are none.

    Zeros change no answer, but the weights that read them get a gradient: processes that train
    together wait for one of every weight.
    """
    if cond is None or "augment" not in cond:
        return like.new_zeros(like.shape[0], width)
    return cond["augment"].to(like.dtype)


def zero(layer: Layer) -> Layer:
    """Zero weight and bias: a layer that answers nothing at first."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def embedding_of(count: int, width: int) -> nn.Embedding:
    """A row of standard normal numbers for each class; see :func:`fewstep.core.normal`."""
    return nn.Embedding.from_pretrained(normal(count, width), freeze=False)


def redraw(weight: Tensor, std: float) -> None:
    """Normal numbers in the place of a weight's first ones; see :func:`fewstep.core.normal`."""
    if not weight.is_meta:
        nn.init.normal_(weight, std=std)


def xavier(layer: nn.Linear | nn.Conv2d, gain: float = 1.0) -> nn.Linear | nn.Conv2d:
    """Xavier-uniform weight times ``gain`` and a zero bias: EDM's default start."""
    nn.init.xavier_uniform_(layer.weight)
    with torch.no_grad():
        layer.weight.mul_(gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def group_norm(channels: int, eps: float = 1e-6, groups: int = 0) -> nn.GroupNorm:
    """At most 32 groups of at least 4 channels, or that many ``groups``."""
    if groups and channels % groups:
        raise UsageError(
            f"group normalisation cannot split {channels} channels into {groups} groups; take "
            f"multiples of {groups} channels"
        )
    groups = groups or max(1, min(32, channels // 4))
    if channels % groups:
        raise UsageError(
            f"group normalisation cannot split {channels} channels into {groups} groups; take a "
            "multiple of 4, or of 32 from 128 on"
        )
    return nn.GroupNorm(groups, channels, eps=eps)


def modulated(h_BCHW: Tensor, affine_BE: Tensor, double_norm: bool) -> Tensor:
    """``h`` times 1 + scale, plus shift; with ``double_norm`` both over their root mean square."""
    scale_BC11, shift_BC11 = affine_BE[:, :, None, None].chunk(2, dim=1)
    scale_BC11 = 1 + scale_BC11
    if double_norm:
        scale_BC11, shift_BC11 = normalise(scale_BC11, 1), normalise(shift_BC11, 1)
    return torch.addcmul(shift_BC11, h_BCHW, scale_BC11)


Resize = Callable[[Tensor, float], Tensor]
"""Resampling of ``(b, c, h, w)`` by a factor of 0.5, 1 (nothing happens) or 2."""


def resize_box(x_BCHW: Tensor, factor: float) -> Tensor:
    """Halve by 2x2 means or double by repetition: the [1, 1] filter."""
    if factor == 0.5:
        return F.avg_pool2d(x_BCHW, 2)
    if factor == 2:
        return x_BCHW.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return x_BCHW


def resize_fir(x_BCHW: Tensor, factor: float) -> Tensor:
    """Halve or double with the [1, 3, 3, 1] filter along both axes; zeros beyond the border."""
    c = x_BCHW.shape[1]
    if factor == 0.5:
        return F.conv2d(x_BCHW, fir_kernel(x_BCHW), stride=2, padding=1, groups=c)
    if factor == 2:
        kernel = 4 * fir_kernel(x_BCHW)
        return F.conv_transpose2d(x_BCHW, kernel, stride=2, padding=1, groups=c)
    return x_BCHW


def fir_kernel(x_BCHW: Tensor) -> Tensor:
    """[1, 3, 3, 1] by [1, 3, 3, 1] with sum 1, once for each channel: ``(c, 1, 4, 4)``."""
    taps = torch.tensor([0.125, 0.375, 0.375, 0.125], dtype=x_BCHW.dtype, device=x_BCHW.device)
    return taps.outer(taps).expand(x_BCHW.shape[1], 1, 4, 4)


def attention(qkv_BCHW: Tensor, heads: int) -> Tensor:
    """``(b, c, h, w)`` from queries, keys and values ``(b, 3 c, h, w)``.

    The 3 c rows are ordered by head, then channel, then q, k, v, as in EDM.
    """
    b, _, height, width = qkv_BCHW.shape
    qkv_BNDXL = qkv_BCHW.reshape(b, heads, -1, 3, height * width)
    # contiguous: the fused kernels refuse a strided last axis, and leave it to the slow one.
    q_BNLD, k_BNLD, v_BNLD = qkv_BNDXL.permute(3, 0, 1, 4, 2).contiguous()
    a_BNLD = F.scaled_dot_product_attention(q_BNLD, k_BNLD, v_BNLD)
    # contiguous: forward-mode derivatives of the next norm need it.
    return a_BNLD.transpose(2, 3).contiguous().reshape(b, -1, height, width)


class ResidualBlock(nn.Module):
    """The block of DDPM++ and NCSN++, every residual sum of which is scaled by sqrt(1/2).

    GroupNorm, SiLU, convolution, twice, with the embedding added in between; then attention.

    Args:
        c_in, c_out: channels.
        embedding: width E of the embedding.
        resample: 0.5, 1 or 2, applied before the first convolution and on the skip.
        resize: what resamples.
        heads: attention heads; 0 for none.
        dropout: probability.
        double_norm: scale and shift, see :func:`modulated`, instead of adding the embedding.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        embedding: int,
        *,
        resample: float = 1,
        resize: Resize = resize_box,
        heads: int = 0,
        dropout: float = 0.0,
        double_norm: bool = False,
    ) -> None:
        super().__init__()
        self.resample, self.resize, self.heads = resample, resize, heads
        self.double_norm = double_norm
        self.norm0 = group_norm(c_in)
        self.conv0 = xavier(nn.Conv2d(c_in, c_out, 3, padding=1))
        self.affine = xavier(nn.Linear(embedding, 2 * c_out if double_norm else c_out))
        self.norm1 = group_norm(c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = xavier(nn.Conv2d(c_out, c_out, 3, padding=1), gain=1e-5)
        # A skip that resamples keeps its 1x1 convolution even where the widths agree, as in EDM.
        project = c_in != c_out or resample != 1
        self.skip = xavier(nn.Conv2d(c_in, c_out, 1)) if project else nn.Identity()
        if heads:
            self.norm2 = group_norm(c_out)
            self.qkv = xavier(nn.Conv2d(c_out, 3 * c_out, 1), gain=math.sqrt(0.2))
            self.proj = xavier(nn.Conv2d(c_out, c_out, 1), gain=1e-5)

    def forward(self, x_BCHW: Tensor, embedding_BE: Tensor) -> Tensor:
        """``(b, c_out, h, w)`` at the resampled size."""
        h_BCHW = self.conv0(self.resize(F.silu(self.norm0(x_BCHW)), self.resample))
        affine_BE = self.affine(embedding_BE)
        if self.double_norm:
            h_BCHW = modulated(self.norm1(h_BCHW), affine_BE, True)
        else:
            h_BCHW = self.norm1(h_BCHW + affine_BE[:, :, None, None])
        h_BCHW = self.conv1(self.dropout(F.silu(h_BCHW)))
        x_BCHW = (h_BCHW + self.skip(self.resize(x_BCHW, self.resample))) * math.sqrt(0.5)
        if self.heads:
            a_BCHW = attention(self.qkv(self.norm2(x_BCHW)), self.heads)
            x_BCHW = (self.proj(a_BCHW) + x_BCHW) * math.sqrt(0.5)
        return x_BCHW
