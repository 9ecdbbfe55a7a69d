"""Features by name, for the command line: what a distance is called and what it was taken in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core import UsageError
from fewstep.errors import nearest
from fewstep.metrics.cifar_resnet import cifar_resnet
from fewstep.metrics.dinov2 import dinov2
from fewstep.metrics.effnet import EffNetLite0
from fewstep.metrics.features import Features, digits_features, flatten
from fewstep.metrics.inception import Inception
from fewstep.metrics.pretrained import digest, loaded

BATCH, ON_CPU = 64, 4
"""Images at a time. On a CPU, networks of 224 pixels take three times as long with 64 as with 4."""


@dataclass(frozen=True, eq=False)
class NamedFeatures:
    """A feature callable that says what it is.

    Args:
        name: a key of ``FEATURES``.
        distance: what the Frechet distance in it is called.
        network: the callable itself.
        resize: how images reach the network's own size.
        expensive: whether statistics of data are worth keeping on disk.
        weights: sha256 of the network's weights, empty where it has none.
    """

    name: str
    distance: str
    network: Features
    resize: str = "none"
    expensive: bool = True
    weights: str = field(init=False)

    def __post_init__(self) -> None:
        known = digest(self.network) if isinstance(self.network, nn.Module) else ""
        object.__setattr__(self, "weights", known)

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, " n *event"]) -> Float[Tensor, " n d"]:
        """Features on the device of ``x``, computed where the network is, some at a time."""
        device = x.device
        if isinstance(self.network, nn.Module):
            device = next(self.network.parameters()).device
        parts = x.split(ON_CPU if device.type == "cpu" else BATCH)
        return torch.cat([self.network(part.to(device)) for part in parts]).to(x.device)


def _digits(file: str | None) -> NamedFeatures:
    network = digits_features()
    if file is not None:
        loaded(network, Path(file))
    return NamedFeatures("digits", "FD-digits", network, expensive=False)


def _pixels(file: str | None) -> NamedFeatures:
    if file is not None:
        raise UsageError(f"features pixels have no weights, got {file}; give pixels alone")
    return NamedFeatures("pixels", "FD-pixels", flatten, expensive=False)


def _path(file: str | None) -> Path | None:
    return None if file is None else Path(file)


_BICUBIC = "8-bit, bicubic 224, antialiased"

FEATURES: dict[str, Callable[[str | None], NamedFeatures]] = {
    "digits": _digits,
    "pixels": _pixels,
    "effnet-lite0": lambda file: NamedFeatures(
        "effnet-lite0", "FD-EffNetLite0", EffNetLite0(_path(file)), _BICUBIC
    ),
    "resnet20": lambda file: NamedFeatures(
        "resnet20", "FD-ResNet20", cifar_resnet(20, _path(file)), "8-bit"
    ),
    "resnet56": lambda file: NamedFeatures(
        "resnet56", "FD-ResNet56", cifar_resnet(56, _path(file)), "8-bit"
    ),
    "inception": lambda file: NamedFeatures(
        "inception", "FID", Inception(_path(file)), "8-bit, bilinear 299 as TensorFlow 1"
    ),
    "dinov2": lambda source: NamedFeatures("dinov2", "FD-DINOv2", dinov2(source), _BICUBIC),
}
"""By name: from a file of weights (for dinov2 a folder or Hub name), or None for the usual ones."""


def named_features(choice: str, device: torch.device | str = "cpu") -> NamedFeatures:
    """The features of NAME or NAME:FILE, on a device.

    Raises:
        UsageError: no such name, an extra is missing, or the file does not fit.
    """
    name, colon, file = choice.partition(":")
    if name not in FEATURES:
        raise UsageError(f"no features {name!r}; {nearest(name, FEATURES)}")
    if colon and not file:
        raise UsageError(f"got {choice!r}; expected NAME or NAME:FILE")
    features = FEATURES[name](file or None)
    if isinstance(features.network, nn.Module):
        features.network.to(device)
    return features
