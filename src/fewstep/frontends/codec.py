"""Codecs: an autoencoder between images and the latents that a network learns, with its scaling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fewstep.contract import DataSpec
from fewstep.errors import UsageError

SIGMA = 0.5
"""Standard deviation of each channel of normalised latents, as EDM2 has it (Karras et al. 2024)."""

PIXELS = 2**20
"""Pixels that are decoded at a time."""


class Autoencoder(Protocol):
    """What a codec is made of; an ``nn.Module``.

    Attributes:
        options: its arguments as JSON values.
        image_channels: of images.
        channels: of latents.
        factor: how many times smaller latents are along each side.
    """

    options: dict[str, Any]
    image_channels: int
    channels: int
    factor: int

    def encode(self, x: Tensor) -> Tensor:
        """Latents ``(b, channels, h / factor, w / factor)`` of images in [-1, 1]."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents, about in [-1, 1]."""
        ...


class Codec(nn.Module):
    """An autoencoder whose latents are shifted and scaled: z = (raw - shift) * scale.

    Args:
        net: the autoencoder; it is frozen.
        shift: one number, or one for each channel of the latents.
        scale: likewise; Stable Diffusion's is 0.18215.

    Raises:
        UsageError: the numbers do not fit, or are not finite.
    """

    def __init__(
        self,
        net: nn.Module,
        shift: float | Sequence[float] = 0.0,
        scale: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__()
        self.net: Any = net.eval().requires_grad_(False)
        for name, given in (("shift", shift), ("scale", scale)):
            value = torch.as_tensor(given, dtype=torch.float32).flatten()
            if len(value) not in {1, self.channels} or not bool(value.isfinite().all()):
                raise UsageError(
                    f"the {name} of a codec is one finite number, or one for each of its "
                    f"{self.channels} channels, got {given}"
                )
            place = next(net.parameters()).device
            self.register_buffer(name, value.expand(self.channels).clone().to(place))
        if bool((self.get_buffer("scale") == 0).any()):
            raise UsageError("the scale of a codec must not be 0")

    @property
    def channels(self) -> int:
        """Channels of latents."""
        return self.net.channels

    @property
    def factor(self) -> int:
        """How many times smaller latents are along each side."""
        return self.net.factor

    @property
    def scaling(self) -> dict[str, list[float]]:
        """Shift and scale of each channel."""
        return {name: self.get_buffer(name).tolist() for name in ("shift", "scale")}

    def shape_of(self, shape: Sequence[int | None]) -> tuple[int, ...]:
        """The shape of the latents of images of a shape ``(c, h, w)``.

        Raises:
            UsageError: these are no images that the codec can read.
        """
        net = self.net
        sizes = [size for size in shape if size is not None]
        if (
            len(sizes) != 3
            or sizes[0] != net.image_channels
            or any(n % net.factor for n in sizes[1:])
        ):
            raise UsageError(
                f"this codec reads images of {net.image_channels} channel(s) whose height and "
                f"width are multiples of {net.factor}, got samples of shape {tuple(shape)}"
            )
        return (net.channels, sizes[1] // net.factor, sizes[2] // net.factor)

    def decoded_shape(self, shape: Sequence[int | None]) -> tuple[int, ...]:
        """The shape of the images of latents of a shape ``(c, h, w)``."""
        sides = [n * self.factor for n in shape[1:] if n is not None]
        return (self.net.image_channels, *sides)

    def decoded_spec(self, spec: DataSpec) -> DataSpec:
        """The specification of the images of such latents."""
        return DataSpec(
            shape=self.decoded_shape(spec.shape), range=(-1.0, 1.0), conditions=spec.conditions
        )

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Latents ``(b, c, h, w)`` float32 of images ``(b, c, h, w)`` in [-1, 1]."""
        self.shape_of(x.shape[1:])
        # Images that were stored with channels last would leave the latents so, too.
        raw = self.net.encode(x.to(self._like()).contiguous()).float().contiguous()
        return (raw - self._each("shift")) * self._each("scale")

    @torch.no_grad()
    def decode(self, z: Tensor, batch: int | None = None) -> Tensor:
        """Images ``(b, c, h, w)`` float32 in [-1, 1] of latents.

        Args:
            z: latents ``(b, c, h, w)``.
            batch: how many are decoded at a time; by default as many as have a million pixels.
        """
        whole = z.shape[2] * z.shape[3] * self.factor**2
        batch = max(1, PIXELS // whole) if batch is None else batch
        raw = z.float() / self._each("scale") + self._each("shift")
        parts = raw.to(self._like()).split(batch)
        return torch.cat([self.net.decode(part).float().clamp(-1, 1) for part in parts])

    def _each(self, name: str) -> Tensor:
        return self.get_buffer(name)[None, :, None, None]

    def _like(self) -> Tensor:
        return next(self.net.parameters())


def normalised(net: nn.Module, images: Iterable[Tensor]) -> Codec:
    """The codec of an autoencoder that gives each channel of its latents mean 0, deviation 0.5.

    Args:
        net: an :class:`Autoencoder`.
        images: batches ``(b, c, h, w)`` in [-1, 1], on which that holds.

    Raises:
        UsageError: a channel of the latents has the same value everywhere.
    """
    plain = Codec(net)
    z = torch.cat([plain.encode(x).cpu() for x in images]).double()
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    if not bool((std > 1e-6).all()):
        raise UsageError("a channel of the latents has the same value everywhere")
    return Codec(net, mean.tolist(), (SIGMA / std).tolist())
