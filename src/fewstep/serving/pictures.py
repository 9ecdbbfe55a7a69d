"""From base64 to pixels and from samples to PNG files that say what made them."""

from __future__ import annotations

import base64
import binascii
import io
import json
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from fewstep.data.decoding import BadFile, flat, naming, opened, square, upright
from fewstep.evaluation.pictures import cloud, lines
from fewstep.image_grid import grid, pixels
from fewstep.version import __version__

KEY = "fewstep"
"""The text of a PNG that says, as JSON, what made it."""


def uploaded(text: str, where: str, most: int) -> Image.Image:
    """A picture that came as base64; its header is read, not yet its pixels.

    Args:
        text: base64 of a file; a ``data:`` address may stand before it.
        where: what messages call it.
        most: thousands of pixels.

    Raises:
        BadFile: it is no picture, or has more pixels.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadFile(where, "is no base64; send the bytes of a PNG or JPEG file in it") from None
    image = opened(content, where)
    if image.width * image.height > 1000 * most:
        size = f"{image.width} x {image.height}"
        raise BadFile(where, f"is {size} pixels; at most {1000 * most:,} are accepted")
    return image


def fitted(image: Image.Image, where: str, shape: tuple[int, ...]) -> Tensor:
    """float32 ``shape`` in [-1, 1] of an upload's central square.

    Raises:
        BadFile: it cannot be decoded, or the shape is no square of pixels.
    """
    channels, height, width = shape
    if channels not in (1, 3) or height != width:
        raise BadFile(where, f"cannot be made to fit the shape {shape}")
    return _values(square(image, where, channels, height))


def tensor(image: Image.Image, where: str, channels: int) -> Tensor:
    """float32 ``(1, channels, height, width)`` in [-1, 1] of a whole upload.

    Raises:
        BadFile: it cannot be decoded.
    """
    with naming(where):
        plain = flat(upright(image, where), channels)
        values = np.asarray(plain).reshape(plain.height, plain.width, channels)
    return _values(values.transpose(2, 0, 1))[None]


def _values(content: np.ndarray) -> Tensor:
    return torch.from_numpy(content.copy()).float() / 127.5 - 1


def images(x: Tensor) -> list[Image.Image]:
    """A picture of each sample, or of all points at once; none of samples without a picture.

    Args:
        x: ``(n, *shape)``; images keep their own pixels.
    """
    if x.ndim == 4 and x.shape[1] in (1, 3):
        whole = pixels(x).transpose(0, 2, 3, 1)
        return [Image.fromarray(one[..., 0] if x.shape[1] == 1 else one) for one in whole]
    if x.ndim == 3:
        return [lines(one[None], 1) for one in x]
    if x.ndim == 2 and x.shape[1] in (1, 2):
        return [cloud(x)]
    return []


def together(x: Tensor) -> list[Image.Image]:
    """One picture of all samples, or none."""
    if x.ndim == 4 and x.shape[1] in (1, 3):
        return images(x) if len(x) == 1 else [grid(x)]
    return [lines(x)] if x.ndim == 3 else images(x)


def png(image: Image.Image, made: dict[str, Any]) -> bytes:
    """A PNG file that says what made it."""
    info = PngInfo()
    info.add_text("Software", f"fewstep {__version__}")
    info.add_itxt(KEY, json.dumps(made))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def text_of(content: bytes) -> str:
    """Base64."""
    return base64.b64encode(content).decode("ascii")
