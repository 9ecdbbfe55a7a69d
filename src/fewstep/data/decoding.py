"""From the bytes of one image file to a square of pixels; damaged and oversized ones are named."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Literal, get_args

import numpy as np
from PIL import Image

from fewstep.core import UsageError
from fewstep.data.formats import (
    WHITE,
    Background,
    has_alpha,
    is_deep,
    kinds_of,
    orientation_of,
)
from fewstep.errors import in_words

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
    except MemoryError as error:
        raise BadFile(where, "needs more memory than there is; remove it") from error
    except Exception as error:  # decoders and archives raise all kinds on damaged data
        reason = in_words(error)[:200]
        raise BadFile(where, f"cannot be read ({reason}); repair or remove it") from error


def check_size(size: int, where: str) -> None:
    """Refuse to read more than ``MAX_BYTES`` for one image.

    Raises:
        BadFile: it has more.
    """
    if size > MAX_BYTES:
        raise BadFile(where, f"has {size} bytes; at most {MAX_BYTES} are read")


def opened(source: bytes | IO[bytes], where: str, name: str = "") -> Image.Image:
    """An image with its header read and its size checked, not yet decoded.

    Args:
        source: the content of a file, or the file.
        where: what messages call it.
        name: of the file; its suffix says whether it may be of another kind than PNG, JPEG, WEBP
            or BMP.

    Raises:
        BadFile: it is of no kind that is read, or has more than ``MAX_PIXELS``.
    """
    with naming(where):
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        # Pillow warns of odd EXIF data in good files. The filters of warnings belong to the
        # process, hence the lock; it is held for headers only.
        kinds = kinds_of(name)
        try:
            with _quiet, warnings.catch_warnings(action="ignore"):
                image = Image.open(file, formats=kinds)
        except Image.UnidentifiedImageError as error:
            raise BadFile(where, "is broken, empty or of a kind that is not read") from error
        if image.width * image.height > MAX_PIXELS:
            raise _too_large(where)
    return image


def square(
    image: Image.Image,
    where: str,
    channels: int,
    resolution: int,
    crop: Crop = "center",
    background: Background = WHITE,
    *,
    narrow: bool | None = None,
) -> np.ndarray:
    """An image as uint8 ``(channels, resolution, resolution)``.

    It is turned upright as its EXIF orientation says, transparent pixels are composited on
    ``background``, and 16 or 12 bits become 8.

    Args:
        image: opened, and perhaps not loaded yet.
        where: its name in messages.
        channels: 1 or 3.
        resolution: height and width of the result.
        crop: how it becomes square.
        background: colour behind transparent pixels.
        narrow: whether a file of 16 bits holds 12, as :func:`is_narrow` says of one image; by
            default the image's own values decide, and for the images of a data set all together.

    Raises:
        BadFile: it cannot be decoded, is not square and ``crop`` is ``none``, or holds floats.
    """
    if crop == "none" and image.width != image.height:
        size = f"{image.width} x {image.height}"
        raise BadFile(where, f"is {size} pixels, not square; choose another crop or remove it")
    with naming(where):
        # JPEG decodes to a fraction of its size much faster; twice the target leaves the last
        # halving to the better filter below. Other formats ignore it.
        whole = upright(image, where, None if crop == "adm" else 2 * resolution, narrow=narrow)
        if crop == "adm":
            fitted = _shrunk_then_cut(flat(whole, channels, background), resolution)
        else:
            cut = whole if whole.width == whole.height else _centre(whole, min(whole.size))
            fitted = _resized(flat(cut, channels, background), resolution)
        pixels = np.asarray(fitted).reshape(resolution, resolution, channels)
        return pixels.transpose(2, 0, 1)


def upright(
    image: Image.Image, where: str, enough: int | None = None, *, narrow: bool | None = None
) -> Image.Image:
    """A whole image in a mode of 8 bits, turned upright as its EXIF orientation says.

    Args:
        image: as :func:`opened` gives it.
        where: what messages call it.
        enough: a side in pixels; a JPEG may then be decoded at a fraction of its size.
        narrow: see :func:`square`.

    Raises:
        BadFile: it cannot be decoded, or holds floats.
    """
    with naming(where):
        again = _content(image)
        if enough is not None:
            image.draft(None, (enough, enough))
        image.load()
        turn = TURNS.get(orientation_of(image))
        whole = _eight_bits(image, where, again, narrow)
        return whole if turn is None else whole.transpose(turn)


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


def _content(image: Image.Image) -> bytes:
    """The file of an image of more than 8 bits, which may have to be read twice."""
    file = getattr(image, "fp", None)
    return file.getvalue() if is_deep(image) and isinstance(file, io.BytesIO) else b""


def is_narrow(image: Image.Image) -> bool:
    """Whether an image of more than 8 bits has no value above 4095, as those of 12 bits have not.

    Pillow keeps the upper 8 of 16 bits of colours. A PPM of any number of bits is scaled to 16
    already.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        return image.format != "PPM" and bool(np.asarray(image).max() < 2**12)
    deep_colour = image.format == "PNG" and image.mode in {"RGB", "RGBA"}
    return deep_colour and bool(np.asarray(image)[..., :3].max() < 2**4)


def _eight_bits(image: Image.Image, where: str, content: bytes, narrow: bool | None) -> Image.Image:
    """A loaded image in a mode of 8 bits."""
    if image.mode == "F":
        raise BadFile(where, "holds floats, whose range nobody says; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16 bits at 255 instead of scaling them.
        values = np.asarray(image).astype(np.int32)
        if values.min() < 0 or values.max() > 65535:
            raise BadFile(where, "holds values outside [0, 65535]; save it with 16 bits")
        narrow = is_narrow(image) if narrow is None else narrow
        return Image.fromarray((values >> (4 if narrow else 8)).astype(np.uint8))
    if content and (is_narrow(image) if narrow is None else narrow) and image.format == "PNG":
        return _colour_of_12_bits(image, content)
    return image


def _colour_of_12_bits(image: Image.Image, content: bytes) -> Image.Image:
    """Colours of 12 bits in a PNG of 16, whose upper 8, which Pillow keeps, they hardly reach."""
    upper = np.asarray(image)
    again: Any = Image.open(io.BytesIO(content), formats=("PNG",))
    again.tile = [tile._replace(args=tile.args.replace("16B", "16L")) for tile in again.tile]
    scaled = upper << 4 | np.asarray(again) >> 4
    if image.mode == "RGBA" and upper[..., 3].max() >= 2**4:
        scaled[..., 3] = upper[..., 3]
    return Image.fromarray(scaled)


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image of each EXIF orientation upright."""


def flat(image: Image.Image, channels: int, background: Background = WHITE) -> Image.Image:
    """An image without transparency, of 1 (grey) or 3 channels."""
    mode = "L" if channels == 1 else "RGB"
    if not has_alpha(image):
        return image if image.mode == mode else image.convert(mode)
    if image.mode in {"La", "RGBa"}:
        image = image.convert(image.mode.upper())
    layer = image.convert("RGBA")
    base = Image.new("RGB", layer.size, background)
    base.paste(layer, mask=layer.getchannel("A"))
    return base.convert(mode)


def _resized(image: Image.Image, resolution: int) -> Image.Image:
    side = image.width
    if side == resolution:
        return image
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
