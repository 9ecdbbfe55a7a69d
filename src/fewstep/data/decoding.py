"""From the bytes of one image file to a square of pixels; damaged and oversized ones are named."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Literal, get_args

import numpy as np
from PIL import Image

from fewstep.core import UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_PIXELS = 64 * 10**6
MAX_BYTES = 256 * 2**20
_quiet = threading.Lock()

Crop = Literal["center", "adm", "none"]
"""How an image becomes square.

``center`` cuts out the central square, then resizes it. ``adm`` resizes so that the shorter side
fits, then cuts out the centre, as ImageNet is prepared for ADM (Dhariwal and Nichol 2021) and
EDM. ``none`` cuts nothing: an image must be square.
"""


class BadFile(UsageError):
    """One file cannot be used; others may.

    Args:
        where: its name and what it lies in.
        reason: continues the sentence that ``where`` begins; holds no path.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where, self.reason = where, reason

    def __str__(self) -> str:
        return f"{self.where} {self.reason}"


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Turn whatever goes wrong with one file into a ``BadFile`` that names it."""
    try:
        yield
    except UsageError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(where) from error
    except Image.UnidentifiedImageError as error:
        raise BadFile(where, f"is broken or none of {', '.join(FORMATS)}") from error
    except MemoryError as error:
        raise BadFile(where, "needs more memory than there is; remove it") from error
    except Exception as error:  # decoders and archives raise all kinds on damaged data
        told = (error.strerror if isinstance(error, OSError) else None) or str(error)
        told = told or type(error).__name__
        raise BadFile(where, f"cannot be read ({told[:200]}); repair or remove it") from error


def check_size(size: int, where: str) -> None:
    """Refuse to read more than ``MAX_BYTES`` for one image.

    Raises:
        BadFile: it has more.
    """
    if size > MAX_BYTES:
        raise BadFile(where, f"has {size} bytes; at most {MAX_BYTES} are read")


def opened(content: bytes, where: str) -> Image.Image:
    """An image with its header read and its size checked, not yet decoded.

    Raises:
        BadFile: it is none of ``FORMATS``, or has more than ``MAX_PIXELS``.
    """
    with naming(where):
        # Pillow warns of odd EXIF data in good files. The filters of warnings belong to the
        # process, hence the lock; it is held for headers only.
        with _quiet, warnings.catch_warnings(action="ignore"):
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise _too_large(where)
    return image


def square(
    image: Image.Image, where: str, channels: int, resolution: int, crop: Crop = "center"
) -> np.ndarray:
    """An image as uint8 ``(channels, resolution, resolution)``.

    Transparency is dropped; 16 bits become 8.

    Raises:
        BadFile: it cannot be decoded, or is not square and ``crop`` is ``none``.
    """
    if crop == "none" and image.width != image.height:
        size = f"{image.width} x {image.height}"
        raise BadFile(where, f"is {size} pixels, not square; choose another crop or remove it")
    with naming(where):
        if crop == "adm":
            fitted = _shrunk_then_cut(_eight_bits(image, channels), resolution)
        else:
            # JPEG decodes to a fraction of its size much faster; twice the target leaves the last
            # halving to the better filter below. Other formats ignore it.
            image.draft(None, (2 * resolution, 2 * resolution))
            side = min(image.size)
            fitted = _resized(_eight_bits(_centre(image, side), channels), resolution)
        pixels = np.asarray(fitted).reshape(resolution, resolution, channels)
        return pixels.transpose(2, 0, 1)


def is_image(name: str) -> bool:
    """Whether a POSIX path is taken for an image: by its suffix, and not hidden."""
    # Archives made on a Mac hold, beside each picture, a "._name.png" that is none.
    hidden = any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
    return not hidden and name.lower().endswith(SUFFIXES)


def is_grey(mode: str) -> bool:
    """Whether one of Pillow's modes has no colour."""
    return mode in {"1", "L", "LA", "I"} or mode.startswith("I;16")


def check_arguments(resolution: int, channels: int | None, crop: str = "center") -> None:
    """Refuse arguments that no image could meet.

    Raises:
        UsageError: one of them is out of its range.
    """
    if resolution < 1:
        raise UsageError(f"got resolution={resolution}; expected at least 1 pixel")
    if resolution**2 > MAX_PIXELS:
        raise UsageError(f"got resolution={resolution}; expected at most {MAX_PIXELS} pixels")
    if channels not in {None, 1, 3}:
        raise UsageError(f"got channels={channels}; expected 1 (grey) or 3 (colour)")
    if crop not in get_args(Crop):
        raise UsageError(f"got crop={crop!r}; expected one of {', '.join(get_args(Crop))}")


def _too_large(where: str) -> BadFile:
    return BadFile(
        where, f"has more than {MAX_PIXELS // 10**6} megapixels; make it smaller or remove it"
    )


def _centre(image: Image.Image, side: int) -> Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _eight_bits(image: Image.Image, channels: int) -> Image.Image:
    image.info.pop("transparency", None)  # with it, conversions recolour or warn
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16 bits at 255 instead of scaling them.
        deep = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray((deep >> 8).astype(np.uint8))
    return image.convert("L" if channels == 1 else "RGB")


def _resized(image: Image.Image, resolution: int) -> Image.Image:
    side = image.width
    if side < resolution:
        filter = Image.Resampling.BICUBIC
    else:
        filter = Image.Resampling.LANCZOS if side % resolution else Image.Resampling.BOX
    return image.resize((resolution, resolution), filter)


def _shrunk_then_cut(image: Image.Image, resolution: int) -> Image.Image:
    """Halved by boxes while at least twice too large, the rest bicubic, then the centre."""
    while min(image.size) >= 2 * resolution:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = resolution / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return _centre(image.resize(size, Image.Resampling.BICUBIC), resolution)
