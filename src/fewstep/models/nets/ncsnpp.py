"""NCSN++ (Song et al. 2021) as EDM trains it: the U-Net of its CIFAR-10 "ve" models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core import Cond
from fewstep.models.nets.blocks import (
    AbstractNetwork,
    FourierEmbedding,
    LabelEmbedding,
    ResidualBlock,
    augment_of,
    condition_keys,
    fir_kernel,
    group_norm,
    label_of,
    resize_fir,
    xavier,
    zero,
)
from fewstep.models.nets.conditions import Conditions
from fewstep.models.nets.unet import check_unet, decode, layout


class PyramidStep(nn.Module):
    """A 3x3 convolution, then half the resolution with the [1, 3, 3, 1] filter.

    As in EDM the image is extended by zeros once, before the convolution, not before the filter.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = xavier(nn.Conv2d(c_in, c_out, 3, padding=2))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``(b, c_out, h / 2, w / 2)``."""
        h_BCHW = self.conv(x_BCHW)
        return F.conv2d(h_BCHW, fir_kernel(h_BCHW), stride=2, groups=h_BCHW.shape[1])


class NCSNpp(AbstractNetwork):
    """DDPM++ with random Fourier features of time, a smoother filter and an input pyramid.

    After each halving the encoder averages its state with a convolution of the state after the
    previous halving (of the image, at the first), and hands that sum to the decoder.

    EDM's CIFAR-10 network is ``NCSNpp((3, 32, 32), dropout=0.13, augment=9)``.

    Args:
        shape: ``(c, h, w)``; h and w divisible by 2 for every multiplier after the first.
        channels: the width that the multipliers multiply.
        multipliers: one for each resolution, from fine to coarse.
        blocks: the number of residual blocks of each resolution in the encoder; the decoder has
            one more.
        attention: the heights at which blocks attend (in the decoder only the last block of a
            resolution does).
        dropout: the probability of dropout.
        classes: the number of labels, 0 for none; the label ``classes`` is null.
        augment: how many numbers say how a sample was augmented, ``cond["augment"]``
            ``(b, augment)``; 0 for none. Zeros say that it was not, and so does leaving them out.
        two_time: whether the network also reads the second time, which at first adds nothing.
        vectors: the names of vector conditions, and how many numbers each has per sample;
            ``cond[name]`` is float ``(b, ...)``.
    """

    units = (ResidualBlock,)

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int = 128,
        multipliers: tuple[int, ...] = (2, 2, 2),
        blocks: int = 4,
        attention: tuple[int, ...] = (16,),
        dropout: float = 0.1,
        classes: int = 0,
        augment: int = 0,
        two_time: bool = False,
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
            "augment": augment,
            "two_time": two_time,
        }
        check_unet("NCSNpp", shape, channels, multipliers)
        noise, width = 2 * channels, 4 * channels
        self.conditions = Conditions("NCSNpp", noise, vectors)
        self.options |= self.conditions.options
        self.cond_keys = condition_keys(classes) + self.conditions.keys
        self.two_time, self.optional_keys = two_time, ("augment",) if augment else ()

        self.map_noise = FourierEmbedding(noise, scale=16, sin_first=True)
        self.map_end = zero(nn.Linear(noise, noise, bias=False)) if two_time else None
        self.map_label = LabelEmbedding(classes, noise) if classes else None
        self.map_augment = xavier(nn.Linear(augment, noise, bias=False)) if augment else None
        self.map_layer0 = xavier(nn.Linear(noise, width))
        self.map_layer1 = xavier(nn.Linear(width, width))

        def block(c_in: int, c_out: int, resample: float, attend: bool) -> ResidualBlock:
            return ResidualBlock(
                c_in,
                c_out,
                width,
                resample=resample,
                resize=resize_fir,
                heads=int(attend),
                dropout=dropout,
            )

        widths = [m * channels for m in multipliers]
        self.first = xavier(nn.Conv2d(shape[0], channels, 3, padding=1))
        self.encoder, self.middle, self.decoder = layout(
            block,
            channels,
            widths,
            blocks,
            [shape[1] >> level in attention for level in range(len(widths))],
            decoder_attends_throughout=False,
        )
        # A halving block keeps the width that it is given.
        self.pyramid = nn.ModuleList(
            PyramidStep(c_in, c_out) for c_in, c_out in pairwise([shape[0], *widths[:-1]])
        )
        self.last_norm = group_norm(widths[0])
        self.last = xavier(nn.Conv2d(widths[0], shape[0], 3, padding=1), gain=1e-5)

    def forward(
        self, x: Tensor, c_noise: Tensor, s_noise: Tensor | None = None, cond: Cond | None = None
    ) -> Tensor:
        """F, shaped as ``x``."""
        embedding = self.map_noise(c_noise)
        if self.map_end is not None:
            end = self.map_noise(c_noise if s_noise is None else s_noise)
            embedding = embedding + self.map_end(end)
        if self.map_label is not None:
            embedding = embedding + self.map_label(label_of(cond))
        if self.map_augment is not None:
            given = augment_of(cond, self.map_augment.weight.shape[1], embedding)
            embedding = embedding + self.map_augment(given)
        embedding = self.conditions.add_vectors(embedding, cond)
        embedding = F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))

        h = decode(self.middle, self.decoder, self._encode(x, embedding), embedding)
        return self.last(F.silu(self.last_norm(h)))

    def _encode(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        skips, pyramid, steps = [self.first(x)], x, iter(self.pyramid)
        for block in self.encoder:
            h = block(skips[-1], embedding)
            if block.resample == 0.5:
                h = pyramid = (h + next(steps)(pyramid)) * math.sqrt(0.5)
            skips.append(h)
        return skips
