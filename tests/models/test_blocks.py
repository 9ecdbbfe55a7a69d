"""Blocks of U-Nets against plain statements of what EDM and OpenAI publish; resampling."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.core import UsageError
from fewstep.models.nets.adm_blocks import ADMBlock
from fewstep.models.nets.blocks import ResidualBlock, attention, resize_box, resize_fir
from fewstep.models.nets.ncsnpp import PyramidStep
from oracles import D, normal
from small_nets import NETWORKS, shaken

FACTORS = [0.5, 1, 2]


# Plain statements.


def norm(x: Tensor, layer: nn.GroupNorm, eps: float) -> Tensor:
    """Groups of at least 4 channels, at most 32 of them."""
    b, c, h, w = x.shape
    grouped = x.reshape(b, min(32, c // 4), -1)
    mean = grouped.mean(2, keepdim=True)
    var = ((grouped - mean) ** 2).mean(2, keepdim=True)
    normed = ((grouped - mean) / (var + eps).sqrt()).reshape(b, c, h, w)
    return normed * layer.weight.reshape(c, 1, 1) + layer.bias.reshape(c, 1, 1)


def conv(x: Tensor, layer: nn.Conv2d | nn.Identity) -> Tensor:
    if isinstance(layer, nn.Identity):
        return x
    return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)


def filtered(x: Tensor, factor: float, taps: list[float]) -> Tensor:
    """Along both axes: each new pixel from the taps centred on it, zeros outside.

    Doubling spreads each pixel over the taps, so that it gathers from every second one.
    """
    if factor == 1:
        return x
    for axis in (2, 3):
        n, pad = x.shape[axis], (len(taps) - 1) // 2
        rows = []
        for j in range(int(n * factor)):
            row = torch.zeros_like(x.select(axis, 0))
            for k, tap in enumerate(taps):
                i = 2 * j + k - pad if factor == 0.5 else (j + pad - k) / 2
                if i == int(i) and 0 <= i < n:
                    row = row + max(factor, 1) * tap * x.select(axis, int(i))
            rows.append(row)
        x = torch.stack(rows, axis)
    return x


def attended(x: Tensor, qkv: Tensor, heads: int) -> Tensor:
    """Softmax attention, one head and sample at a time; rows: head, channel, q-k-v."""
    b, c, h, w = x.shape
    d = c // heads
    out = torch.zeros(b, c, h * w, dtype=x.dtype)
    for sample in range(b):
        rows = qkv[sample].reshape(3 * c, h * w)
        for head in range(heads):
            mine = rows[3 * d * head : 3 * d * (head + 1)]
            q, k, v = mine[0::3], mine[1::3], mine[2::3]
            weight = torch.softmax(q.T @ k / math.sqrt(d), dim=1)
            out[sample, d * head : d * (head + 1)] = v @ weight.T
    return out.reshape(x.shape)


def song_block(block: ResidualBlock, x: Tensor, embedding: Tensor, taps, heads: int) -> Tensor:
    h = filtered(F.silu(norm(x, block.norm0, 1e-6)), block.resample, taps)
    h = conv(h, block.conv0)
    h = h + (embedding @ block.affine.weight.T + block.affine.bias).reshape(*h.shape[:2], 1, 1)
    h = conv(F.silu(norm(h, block.norm1, 1e-6)), block.conv1)
    x = (h + conv(filtered(x, block.resample, taps), block.skip)) / math.sqrt(2)
    if heads:
        a = attended(x, conv(norm(x, block.norm2, 1e-6), block.qkv), heads)
        x = (x + conv(a, block.proj)) / math.sqrt(2)
    return x


def adm_block(block: ADMBlock, x: Tensor, embedding: Tensor, heads: int, shifts: bool) -> Tensor:
    h = filtered(F.silu(norm(x, block.norm0, 1e-5)), block.resample, [0.5, 0.5])
    h = conv(h, block.conv0)
    affine = embedding @ block.affine.weight.T + block.affine.bias
    affine = affine.reshape(len(x), -1, 1, 1)
    if shifts:
        c = h.shape[1]
        h = norm(h, block.norm1, 1e-5) * (1 + affine[:, :c]) + affine[:, c:]
    else:
        h = norm(h + affine, block.norm1, 1e-5)
    x = conv(filtered(x, block.resample, [0.5, 0.5]), block.skip) + conv(F.silu(h), block.conv1)
    if heads:
        x = x + conv(attended(x, conv(norm(x, block.norm2, 1e-5), block.qkv), heads), block.proj)
    return x


# Blocks.


@pytest.mark.parametrize("resample", FACTORS)
@pytest.mark.parametrize(
    ("resize", "taps"), [(resize_box, [1 / 2] * 2), (resize_fir, [1 / 8, 3 / 8, 3 / 8, 1 / 8])]
)
@pytest.mark.parametrize(("c_out", "heads"), [(8, 1), (12, 0), (16, 2)])
def test_the_block_of_song_s_networks(resample, resize, taps, c_out, heads):
    block = ResidualBlock(8, c_out, 5, resample=resample, resize=resize, heads=heads)
    shaken(block.double())
    x, embedding = normal(2, 8, 4, 6), normal(2, 5, seed=1)
    torch.testing.assert_close(
        block(x, embedding), song_block(block, x, embedding, taps, heads), rtol=1e-9, atol=1e-9
    )
    # EDM keeps the 1x1 convolution wherever it resamples.
    assert isinstance(block.skip, nn.Conv2d) == (c_out != 8 or resample != 1)


@pytest.mark.parametrize("resample", FACTORS)
@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize(("c_out", "heads"), [(64, 1), (32, 0), (128, 2)])
def test_the_block_of_adm(resample, scale_shift, c_out, heads):
    block = ADMBlock(
        64,
        c_out,
        5,
        resample=resample,
        attend=heads > 0,
        scale_shift=scale_shift,
        dropout=0.0,
    )
    assert block.heads == heads
    shaken(block.double())
    x, embedding = normal(2, 64, 2, 4), normal(2, 5, seed=1)
    wanted = adm_block(block, x, embedding, heads, scale_shift)
    torch.testing.assert_close(block(x, embedding), wanted, rtol=1e-9, atol=1e-9)
    assert isinstance(block.skip, nn.Conv2d) == (c_out != 64)


def test_attention_reads_rows_by_head_then_channel_then_query_key_value():
    qkv = normal(2, 24, 3, 2)
    torch.testing.assert_close(attention(qkv, 2), attended(torch.zeros(2, 8, 3, 2), qkv, 2).to(D))
    assert not torch.allclose(attention(qkv, 2), attention(qkv, 4))


def test_attention_may_run_on_a_fused_kernel():
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # no other: a layout it refuses is an error
        attention(torch.randn(2, 24, 3, 2), 2)


def test_dropout_stands_before_the_last_convolution():
    torch.manual_seed(0)
    x, embedding = normal(2, 64, 4, 4).float(), normal(2, 5).float()
    options = {"resample": 1, "attend": False, "scale_shift": True}
    for block in (
        ADMBlock(64, 64, 5, dropout=0.9999, **options),
        ResidualBlock(64, 64, 5, dropout=0.9999),
    ):
        shaken(block)
        skip = x if isinstance(block, ADMBlock) else x / math.sqrt(2)
        scale = 1 if isinstance(block, ADMBlock) else 1 / math.sqrt(2)
        bias = block.conv1.bias.reshape(-1, 1, 1) * scale
        # Nearly all is dropped, and what is left is a constant per channel beside the skip.
        left = (block(x, embedding) - skip - bias).abs()
        assert (left < 1e-5).float().mean() > 0.8


# Resampling.


@pytest.mark.parametrize("resize", [resize_box, resize_fir])
def test_constants_stay_constant_away_from_the_border(resize):
    x = torch.full((2, 3, 8, 6), 0.7, dtype=D)
    for factor, edge in ((0.5, 1), (2, 1)):
        y = resize(x, factor)
        assert y.shape == (2, 3, 8 * factor, 6 * factor)
        inside = y[:, :, edge:-edge, edge:-edge]
        torch.testing.assert_close(inside, torch.full_like(inside, 0.7), rtol=1e-12, atol=0)
    assert resize(x, 1) is x


@pytest.mark.parametrize(
    ("resize", "doubled", "halved"), [(resize_box, 1, 1), (resize_fir, 0.75, 0.875)]
)
def test_only_the_wide_filter_sees_the_zeros_beyond_the_border(resize, doubled, halved):
    y = resize(torch.ones(1, 1, 4, 4, dtype=D), 2)
    assert y[0, 0, 0].tolist() == pytest.approx([doubled**2, *[doubled] * 6, doubled**2])
    y = resize(torch.ones(1, 1, 8, 8, dtype=D), 0.5)
    assert y[0, 0, 0].tolist() == pytest.approx([halved**2, halved, halved, halved**2])


def test_halving_after_doubling():
    x = normal(2, 3, 6, 8)
    assert resize_box(resize_box(x, 2), 0.5).equal(x)
    # The wide filter's round trip is [1, 6, 1] / 8 along each axis: 2 (1, 3, 3, 1) * (1, 3, 3, 1)
    # / 64 at every second lag is (6, 20, 6) / 32.
    taps = torch.tensor([6.0, 20.0, 6.0], dtype=D) / 32
    kernel = taps.outer(taps).expand(3, 1, 3, 3)
    wanted = F.conv2d(x, kernel, padding=1, groups=3)[:, :, 1:-1, 1:-1]
    found = resize_fir(resize_fir(x, 2), 0.5)[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_doubling_is_the_adjoint_of_halving():
    x, y = normal(2, 3, 8, 8), normal(2, 3, 4, 4, seed=1)
    for resize in (resize_box, resize_fir):
        torch.testing.assert_close((resize(x, 0.5) * y).sum(), (x * resize(y, 2)).sum() / 4)


def test_a_step_of_the_pyramid_filters_the_convolution_of_the_widened_image():
    step = shaken(PyramidStep(3, 5).double())
    x = normal(2, 3, 6, 8)
    wide = F.conv2d(F.pad(x, (2, 2, 2, 2)), step.conv.weight)
    # The filter's first window starts on the first pixel of the widened image.
    taps = torch.tensor([1, 3, 3, 1], dtype=D) / 8
    wanted = torch.stack(
        [
            (wide[:, :, i : i + 4, j : j + 4] * taps.outer(taps)).sum((2, 3))
            for i in (0, 2, 4)
            for j in (0, 2, 4, 6)
        ],
        dim=2,
    )
    wanted = wanted.reshape(2, 5, 3, 4) + step.conv.bias.reshape(-1, 1, 1)
    torch.testing.assert_close(step(x), wanted, rtol=1e-12, atol=1e-12)


# sCM's options.


@pytest.mark.parametrize("kind", ["song", "adm"])
def test_double_norm_keeps_the_size_of_scale_and_shift(kind):
    build = ResidualBlock if kind == "song" else ADMBlock
    own = {} if kind == "song" else {"attend": False, "scale_shift": True, "dropout": 0.0}
    block = shaken(build(64, 64, 5, resample=1, double_norm=True, **own).double())
    x, embedding = normal(2, 64, 4, 6), normal(2, 5, seed=1)
    eps = 1e-6 if kind == "song" else 1e-5
    seen: list[Tensor] = []
    block.conv1.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    block(x, embedding)
    block(x, 30 * embedding)
    for found, size in zip(seen, (1, 30), strict=True):
        affine = size * embedding @ block.affine.weight.T + block.affine.bias
        scale, shift = 1 + affine[:, :64], affine[:, 64:]
        scale, shift = (
            v / (1e-4 + v.square().mean(1, keepdim=True).sqrt()) for v in (scale, shift)
        )
        h = norm(conv(F.silu(norm(x, block.norm0, eps)), block.conv0), block.norm1, eps)
        wanted = F.silu(h * scale[:, :, None, None] + shift[:, :, None, None])
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_double_norm_needs_scale_and_shift():
    with pytest.raises(UsageError, match="scale_shift=True"):
        NETWORKS["adm"](double_norm=True, scale_shift=False)
