"""ResNet-20 and -56 for CIFAR-10, He et al. 2015 (arXiv:1512.03385), section 4.2, shortcuts A.

A judge at home on CIFAR-10: trained on its labels, so its 64 features see what tells those classes
apart. It must be no part of any loss.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from fewstep.core import UsageError
from fewstep.metrics.pretrained import imagenet_normalised, loaded, pixels

DATA = "FEWSTEP_DATA"
"""Environment variable: a folder in whose ``cifar10_resnets`` the weights are looked for."""


class _Block(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.stride = out // channels
        self.conv1 = nn.Conv2d(channels, out, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, x: Float[Tensor, " b c h w"]) -> Float[Tensor, " b o i j"]:
        h = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        # Option A: every other pixel, and zeros for the channels that are new, half on each side.
        more = (h.shape[1] - x.shape[1]) // 2
        return (h + pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, more, more))).relu()


class CifarResNet(nn.Module):
    """Features ``(b, 64)``, not negative, of images ``(b, 3, 32, 32)`` in [-1, 1].

    Args:
        depth: 20, 32, 44, 56 or any other 6 n + 2 of the paper.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Float[Tensor, " b c 32 32"]) -> Float[Tensor, " b 64"]:
        """Means over the last stage's pixels.

        Raises:
            UsageError: images of another size.
        """
        if x.shape[2:] != (32, 32):
            raise UsageError(f"got {tuple(x.shape)}; CIFAR-10 networks take images (b, 3, 32, 32)")
        h = self.bn1(self.conv1(imagenet_normalised(pixels(x)))).relu()
        return self.layer3(self.layer2(self.layer1(h))).mean((2, 3))

    def logits(self, x: Float[Tensor, " b c 32 32"]) -> Float[Tensor, " b 10"]:
        """Unnormalised log-probabilities of CIFAR-10's classes; same input as ``forward``."""
        return self.linear(self(x))


def cifar_resnet(depth: int, file: Path | None = None) -> CifarResNet:
    """A trained network, frozen.

    Args:
        depth: 20 or 56.
        file: weights by the names of this module, safetensors or torch; by default
            ``resnet{depth}-*.th`` in ``$FEWSTEP_DATA/cifar10_resnets``.

    Raises:
        UsageError: no file is there, or it holds another network's weights.
    """
    if file is None:
        folder = Path(os.environ.get(DATA, "")) / "cifar10_resnets"
        files = sorted(folder.glob(f"resnet{depth}-*.th")) if DATA in os.environ else []
        if not files:
            raise UsageError(
                f"no weights of resnet{depth}: give a file, resnet{depth}:FILE, or a folder with "
                f"cifar10_resnets/resnet{depth}-*.th in {DATA}"
            )
        file = files[0]
    with torch.device("cpu"):
        network = CifarResNet(depth)
    loaded(network, file)
    return network


def _stage(channels: int, out: int, blocks: int) -> nn.Sequential:
    first = _Block(channels, out)
    return nn.Sequential(first, *(_Block(out, out) for _ in range(blocks - 1)))
