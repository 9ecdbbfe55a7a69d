"""TAESD: a distilled autoencoder of few parameters (github madebyollin/taesd).

The architecture of the weights that its author publishes: eight times smaller in each direction,
64 channels inside, latents of 4 (SD, SDXL), 16 (SD3, Flux) or 32 (Flux 2) channels. Images are in
[0, 1] there and in [-1, 1] here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.errors import UsageError

WIDTH = 64
"""Channels of all hidden layers."""

STAGES = 3
"""Halvings of the resolution."""


def _conv(c_in: int, c_out: int, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1, **more)


class _Clamp(nn.Module):
    """Latents are squeezed smoothly into [-3, 3]."""

    def forward(self, z: Tensor) -> Tensor:
        return 3 * torch.tanh(z / 3)


class _Block(nn.Module):
    """A residual block of three convolutions.

    Args:
        normalised: with a normalised bottleneck before it, as the middle blocks of the networks
            for Flux 2 have.
    """

    def __init__(self, normalised: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *(_conv(WIDTH, WIDTH), nn.ReLU()),
            *(_conv(WIDTH, WIDTH), nn.ReLU()),
            _conv(WIDTH, WIDTH),
        )
        wide = 4 * WIDTH
        self.pool = (
            nn.Sequential(
                nn.Conv2d(WIDTH, wide, 1, bias=False),
                nn.GroupNorm(4, wide),
                nn.ReLU(),
                nn.Conv2d(wide, WIDTH, 1, bias=False),
            )
            if normalised
            else None
        )

    def forward(self, h: Tensor) -> Tensor:
        if self.pool is not None:
            h = h + self.pool(h)
        return F.relu(self.conv(h) + h)


class TAESD(nn.Module):
    """The autoencoder.

    Args:
        channels: of latents.
        normalised: whether the blocks at the lowest resolution are normalised.
    """

    image_channels = 3
    factor = 2**STAGES

    def __init__(self, channels: int = 4, normalised: bool = False) -> None:
        super().__init__()
        if channels < 1:
            raise UsageError(f"an autoencoder needs 1 channel or more of latents, got {channels}")
        self.channels = channels
        self.options = {"channels": channels, "normalised": normalised}
        down: list[nn.Module] = [_conv(3, WIDTH), _Block()]
        for stage in range(STAGES):
            middle = normalised and stage == STAGES - 1
            down += [_conv(WIDTH, WIDTH, stride=2, bias=False), *(_Block(middle) for _ in "123")]
        self.encoder = nn.Sequential(*down, _conv(WIDTH, channels))
        up: list[nn.Module] = [_Clamp(), _conv(channels, WIDTH), nn.ReLU()]
        for stage in range(STAGES):
            up += [*(_Block(normalised and stage == 0) for _ in "123")]
            up += [nn.Upsample(scale_factor=2), _conv(WIDTH, WIDTH, bias=False)]
        self.decoder = nn.Sequential(*up, _Block(), _conv(WIDTH, 3))

    def encode(self, x: Tensor) -> Tensor:
        """Latents ``(b, channels, h / 8, w / 8)`` of images ``(b, 3, h, w)`` in [-1, 1]."""
        return self.encoder((x + 1) / 2)

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents, about in [-1, 1]."""
        return 2 * self.decoder(z) - 1


def read_taesd(encoder: dict[str, Tensor], decoder: dict[str, Tensor], source: str) -> TAESD:
    """The autoencoder with the weights of the two published files.

    Args:
        encoder: the state of the one whose name ends in ``encoder``.
        decoder: of the other.
        source: named in messages.

    Raises:
        UsageError: the tensors are not those of a TAESD.
    """
    last = next((v for k, v in reversed(encoder.items()) if k.endswith(".weight")), None)
    if last is None or last.ndim != 4:
        raise UsageError(f"{source} holds no TAESD encoder")
    normalised = any(".pool." in name for name in encoder)
    net = TAESD(len(last), normalised)
    for part, state in ((net.encoder, encoder), (net.decoder, decoder)):
        wanted = part.state_dict()
        wrong = sorted(
            {*wanted} ^ {*state}
            | {k for k in wanted if k in state and wanted[k].shape != state[k].shape}
        )
        if wrong:
            raise UsageError(
                f"{source} holds no TAESD of {len(last)} channels: {', '.join(wrong[:5])} "
                "are missing, unknown or of another shape"
            )
        part.load_state_dict({k: v.float() for k, v in state.items()})
    return net
