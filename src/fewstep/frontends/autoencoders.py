"""Autoencoders of diffusers as codecs: ``AutoencoderKL`` and ``AutoencoderTiny``.

Both read and write images in [-1, 1] (the tiny one maps to [0, 1] inside), and latents are the mean
of the posterior. A codec's scaling is the pipelines': (latents - shift_factor) * scaling_factor,
or by ``latents_mean`` and ``latents_std`` where a configuration has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewstep.errors import UsageError
from fewstep.frontends.codec import Codec
from fewstep.frontends.stock import built, filled, plain, read_config, tensors_of

CLASSES = ("AutoencoderKL", "AutoencoderTiny")
STEM = "diffusion_pytorch_model"
OLDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names that attention had before diffusers 0.13, as the file of Stable Diffusion 1.5 has them."""
UNUSED = ("block_out_channels", "force_upcast")
"""What the configuration of an AutoencoderTiny repeats of its other arguments."""


class DiffusersAutoencoder(nn.Module):
    """An autoencoder of diffusers.

    Args:
        architecture: the name of its class, one of ``CLASSES``.
        config: its arguments, as its ``config.json`` has them.

    Raises:
        UsageError: the class is another, diffusers is not installed, or cannot build it.
    """

    def __init__(self, architecture: str, config: Mapping[str, Any]) -> None:
        super().__init__()
        unused = UNUSED if architecture == "AutoencoderTiny" else ()
        arguments = plain(config, unused)
        self.net: Any = built(architecture, CLASSES, arguments)
        self.options: dict[str, Any] = {"architecture": architecture, "config": arguments}
        own = self.net.config
        self.image_channels, self.channels = own.in_channels, own.latent_channels
        if own.out_channels != own.in_channels:
            raise UsageError(
                f"an autoencoder must return the channels that it reads, got {own.out_channels} "
                f"for {own.in_channels}"
            )
        self._tiny = architecture == "AutoencoderTiny"
        widths = own.encoder_block_out_channels if self._tiny else own.block_out_channels
        self.factor = 2 ** (len(widths) - 1)
        if self._tiny:
            up = own.upsampling_scaling_factor ** (len(own.decoder_block_out_channels) - 1)
            if up != self.factor:
                raise UsageError(
                    f"the autoencoder shrinks {self.factor} times and grows {up} times"
                )

    def encode(self, x: Tensor) -> Tensor:
        """The mean of the latents ``(b, channels, h / factor, w / factor)``."""
        answer = self.net.encode(x)
        return answer.latents if self._tiny else answer.latent_dist.mode()

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents, about in [-1, 1]."""
        return self.net.decode(z).sample


def from_diffusers(folder: str | Path) -> Codec:
    """The codec of a folder that diffusers wrote.

    Args:
        folder: with ``config.json`` and the weights of an autoencoder.

    Raises:
        UsageError: it holds another network, or not exactly the weights of this one.
    """
    path = Path(folder)
    config = read_config(path)
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in CLASSES:
        raise UsageError(
            f"{path / 'config.json'} describes a {name!r:.100}; a codec is made of "
            f"{' or '.join(CLASSES)}"
        )
    net = DiffusersAutoencoder(name, config)
    state = {f"net.{_today(key)}": value for key, value in tensors_of(path, STEM).items()}
    filled(net, state, path)
    return Codec(net, *_scaling(config, net.net.config))


def _today(name: str) -> str:
    parts = name.split(".")
    if "attentions" in parts and parts[-2] in OLDER:
        parts[-2] = OLDER[parts[-2]]
    return ".".join(parts)


def _scaling(config: Mapping[str, Any], own: Any) -> tuple[Any, Any]:
    """Shift and scale; the defaults are those of the class."""
    scale, mean, std = own.scaling_factor, config.get("latents_mean"), config.get("latents_std")
    if (mean is None) != (std is None):
        raise UsageError("an autoencoder's latents_mean and latents_std belong together")
    try:
        if mean is not None and std is not None:
            return [float(m) for m in mean], [float(scale) / float(s) for s in std]
        return float(own.shift_factor or 0.0), float(scale)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UsageError(f"an autoencoder's scaling cannot be read: {error}") from error
