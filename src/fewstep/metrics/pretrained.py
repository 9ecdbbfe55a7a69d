"""What networks that judge images share: 8-bit pixels, resizing, and weights from a user's file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fewstep.core import UsageError
from fewstep.errors import in_words
from fewstep.weights import assign_weights

COUNTER = "num_batches_tracked"
"""What batch normalisation counts in training; old files lack it."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def pixels(x: Float[Tensor, " b c h w"]) -> Float[Tensor, " b 3 h w"]:
    """Images in [-1, 1] as whole numbers from 0 to 255, grey ones in three equal channels.

    Rounded to the nearest as EDM's generator writes them (127.5 x + 128, cut off), so that a sample
    is judged as the picture it becomes and 8-bit data comes back exactly.

    Raises:
        UsageError: not images of 1 or 3 channels.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise UsageError(
            f"got {tuple(x.shape)}; these features take images (b, 1 or 3, h, w) in [-1, 1]"
        )
    return (x.float() * 127.5 + 128).clamp(0, 255).floor().expand(-1, 3, -1, -1)


def resized(x: Float[Tensor, " b c h w"], side: int) -> Float[Tensor, " b c side side"]:
    """Bicubic with antialiasing, not clamped."""
    return interpolate(x, (side, side), mode="bicubic", antialias=True)


def imagenet_normalised(x: Float[Tensor, " b 3 h w"]) -> Float[Tensor, " b 3 h w"]:
    """Pixels from 0 to 255, less ImageNet's mean and over its standard deviation."""
    mean, std = (x.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (x / 255 - mean) / std


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file by name; nothing else in it is read or run.

    A torch file may hold them under ``state_dict``, and with names that begin with ``module.``.

    Raises:
        UsageError: the file is not there or is neither.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        tensors = torch.load(file, map_location="cpu", weights_only=True)
        tensors = tensors.get("state_dict", tensors)
        if not all(isinstance(v, Tensor) for v in tensors.values()):
            raise UsageError("it holds other things than tensors")
    except Exception as error:  # damaged files raise all kinds
        raise UsageError(
            f"{file}: cannot be read as weights ({in_words(error)}); give a safetensors file or a "
            "torch file of tensors by name"
        ) from error
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def loaded(module: nn.Module, file: Path) -> None:
    """Put a file's weights into ``module``, strictly, and freeze it.

    Raises:
        UsageError: as ``read_tensors``, or the file holds another network's weights.
    """
    own = {k: v for k, v in module.state_dict().items() if k.endswith(COUNTER)}
    assign_weights(module, {**own, **read_tensors(file)}, file)
    module.eval().requires_grad_(False)


def digest(module: nn.Module) -> str:
    """sha256 of all weights by name, whatever file they came from."""
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if not name.endswith(COUNTER):
            total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            data = value.detach().cpu().contiguous().reshape(-1)
            total.update(data.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
