"""A small convolutional autoencoder of our own, for data that no published one fits.

``train`` fits it by the absolute error of pixels and of their differences, with a weak pull of the
latents to a standard normal distribution (a variational autoencoder, Kingma & Welling 2014).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.errors import UsageError

MOST = 16
"""Stages, and blocks in each: 16 halvings make one pixel of 65,536."""


class _Residual(nn.Module):
    """Two convolutions, of which the second adds nothing at first.

    Normalising layers would hide how bright an image is.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, width, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(F.silu(self.first(F.silu(x))))


class VAE(nn.Module):
    """The autoencoder.

    Args:
        image_channels: 1 or 3.
        channels: of latents.
        width: channels of the first stage; each later one has twice as many, at most 4 times.
        stages: halvings of the resolution.
        blocks: residual blocks in each stage.
    """

    def __init__(
        self,
        image_channels: int = 3,
        channels: int = 4,
        width: int = 32,
        stages: int = 2,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        if min(image_channels, channels, width, stages, blocks) < 1:
            raise UsageError(
                f"an autoencoder needs positive sizes, got width {width}, {channels} channels, "
                f"{stages} stage(s), {blocks} block(s)"
            )
        if stages > MOST or blocks > MOST:
            raise UsageError(
                f"an autoencoder has at most {MOST} stages and {MOST} blocks in each, got {stages} "
                f"and {blocks}"
            )
        self.image_channels, self.channels, self.factor = image_channels, channels, 2**stages
        self.options = {
            "image_channels": image_channels,
            "channels": channels,
            "width": width,
            "stages": stages,
            "blocks": blocks,
        }
        widths = [width * min(2**i, 4) for i in range(stages + 1)]
        down: list[nn.Module] = [nn.Conv2d(image_channels, width, 3, padding=1)]
        for here, below in pairwise(widths):
            down += [*(_Residual(here) for _ in range(blocks))]
            down += [nn.Conv2d(here, below, 3, stride=2, padding=1)]
        down += [_Residual(widths[-1]), nn.SiLU()]
        self.encoder = nn.Sequential(*down, nn.Conv2d(widths[-1], 2 * channels, 3, padding=1))
        up: list[nn.Module] = [nn.Conv2d(channels, widths[-1], 3, padding=1), _Residual(widths[-1])]
        for below, here in zip(widths[:0:-1], widths[-2::-1], strict=True):
            up += [nn.Upsample(scale_factor=2), nn.Conv2d(below, here, 3, padding=1)]
            up += [*(_Residual(here) for _ in range(blocks))]
        up += [nn.SiLU(), nn.Conv2d(width, image_channels, 3, padding=1)]
        self.decoder = nn.Sequential(*up)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the latents of images, each of their shape."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 10)

    def encode(self, x: Tensor) -> Tensor:
        """The latents' mean ``(b, channels, h / f, w / f)``, f = 2 ** stages."""
        return self.moments(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents."""
        return self.decoder(z)

    def loss(self, x: Tensor, noise: Tensor, kl: float) -> Tensor:
        """The mean absolute error of pixels and of their differences, plus the weighted KL term.

        Args:
            x: images ``(b, c, h, w)`` in [-1, 1].
            noise: standard normal, of the latents' shape.
            kl: weight of the divergence, in nats per latent value.
        """
        mean, log_variance = self.moments(x)
        y = self.decode(mean + noise * (log_variance / 2).exp())
        error = (y - x).abs().mean()
        for dim in (2, 3):
            error = error + (y - x).diff(dim=dim).abs().mean()
        return error + kl * 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()


def train_vae(
    batch: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float = 1e-3,
    kl: float = 1e-3,
    seed: int = 0,
    **sizes: int,
) -> VAE:
    """A VAE that is fitted to images.

    Args:
        batch: function of the step, which returns images ``(b, c, h, w)`` in [-1, 1].
        steps: of Adam, whose rate falls linearly to 0.
        lr: its first rate.
        kl: see :meth:`VAE.loss`.
        seed: weights and noise are functions of it.
        sizes: options of :class:`VAE`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = VAE(**sizes)
        optimizer = torch.optim.Adam(net.parameters(), lr)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - step / steps)
            x = batch(step)
            side = [n // net.factor for n in x.shape[2:]]
            noise = torch.randn(len(x), net.channels, *side)
            optimizer.zero_grad()
            net.loss(x, noise, kl).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
    return net.eval()
