"""Inception-v3 of 2015-12-05 as torch-fidelity ports it: the features of FID.

Heusel et al. 2017 (arXiv:1706.08500). The network resizes to 299 itself, bilinearly and without
antialiasing as TensorFlow 1 did, which is what EDM's and OpenAI's evaluations measure.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.errors import UsageError, in_words
from fewstep.metrics.pretrained import pixels, read_tensors

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
LAYER = "2048"


class Inception(nn.Module):
    """Features ``(b, 2048)`` of images ``(b, 1 or 3, h, w)`` in [-1, 1], by way of 8-bit pixels.

    Args:
        file: torch-fidelity's weights, from the release v0.2.0 of its repository.

    Raises:
        UsageError: the package is missing, or the file is not given or does not fit.
    """

    def __init__(self, file: Path | None) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports]
                FeatureExtractorInceptionV3,
            )
        except ImportError as error:
            raise UsageError(
                "features inception need the extra: pip install 'fewstep[fid]'"
            ) from error
        if file is None:
            raise UsageError(
                f"features inception need their weights: download {WEIGHTS} from the releases of "
                "github.com/toshas/torch-fidelity and give inception:FILE"
            )
        # The package unpickles whatever a file holds, so it is handed the tensors alone.
        tensors = read_tensors(file)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / WEIGHTS
            torch.save(tensors, copy)
            try:
                self.network: nn.Module = FeatureExtractorInceptionV3(
                    "inception", [LAYER], feature_extractor_weights_path=str(copy)
                )
            except RuntimeError as error:
                raise UsageError(
                    f"{file} holds another network's weights: {in_words(error)}"
                ) from error
        self.eval().requires_grad_(False)

    def forward(self, x: Float[Tensor, " b c h w"]) -> Float[Tensor, " b 2048"]:
        """The last pooled layer."""
        network: Any = self.network
        return network(pixels(x).to(torch.uint8))[0]
