"""DINOv2, Oquab et al. 2023 (arXiv:2304.07193), as Stein et al. 2023 and EDM2 measure FD-DINOv2.

EDM2 (Karras et al. 2024, arXiv:2312.02696): ViT-L/14, images resized to 224 bicubically with
antialiasing, ImageNet's mean and standard deviation, the class token after the last norm.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from fewstep.errors import UsageError, in_words
from fewstep.metrics.pretrained import imagenet_normalised, pixels, resized

SIDE = 224
MODEL = "facebook/dinov2-large"


class DinoV2(nn.Module):
    """Features ``(b, width)`` of images ``(b, 1 or 3, h, w)`` in [-1, 1]; 1024 of the large model.

    Args:
        network: a ``Dinov2Model`` of transformers.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def forward(self, x: Float[Tensor, " b c h w"]) -> Float[Tensor, " b d"]:
        """The class token."""
        network: Any = self.network
        tokens = network(pixel_values=imagenet_normalised(resized(pixels(x), SIDE)))
        return tokens.last_hidden_state[:, 0]


def dinov2(source: str | None = None) -> DinoV2:
    """The network of a local folder or of a name on the Hub, from safetensors only.

    Args:
        source: by default EDM2's, ``facebook/dinov2-large``; fetched if it is not on disk yet.

    Raises:
        UsageError: the extra is not installed, or no whole DINOv2 is there.
    """
    try:
        from transformers import Dinov2Model  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError("features dinov2 need the extra: pip install 'fewstep[dino]'") from error
    name = source or MODEL
    expected = "give dinov2:FOLDER with the config.json and model.safetensors of a Dinov2Model"
    try:
        loaded: Any = Dinov2Model.from_pretrained(
            name, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"no DINOv2 at {name} ({in_words(error)}); {expected}") from error
    network, report = loaded
    # The package draws what a file lacks at random.
    if report["missing_keys"]:
        raise UsageError(f"{name} lacks {sorted(report['missing_keys'])}; {expected}")
    return DinoV2(network)
