"""Which files are images, by their names; what of theirs a user has to notice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import PurePosixPath
from typing import Any

from PIL import Image, ImageColor, features

from fewstep.core import UsageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""Kinds that are read under any name."""
SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
    ".pgm": "PPM",
}
"""Kinds by suffix. Those that are not in ``FORMATS`` are read under their own suffix only."""
PLUGINS = {".heic": "HEIF", ".heif": "HEIF", ".avif": "AVIF"}
"""Kinds that are read where a package for them is installed."""
UNREAD = {
    *PLUGINS,
    *(".jxl", ".jp2", ".svg", ".psd", ".xcf", ".eps", ".pdf", ".exr", ".hdr", ".tga", ".ico"),
    *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
}
"""Suffixes of pictures; where they are not read, users are told."""

Background = tuple[int, int, int]
WHITE: Background = (255, 255, 255)

NOTES = {
    "rotated": "{n} are turned upright as their EXIF orientation says",
    "alpha": "{n} have an alpha channel; where it is transparent, they are composited on "
    "{background}",
    "frames": "{n} have several frames, of which the first is read",
    "deep": "{n} have more than 8 bits and are read as {bits}",
}
"""Traits of images that users are told of."""


def is_hidden(name: str) -> bool:
    """Whether a POSIX path is hidden, or what an archive made on a Mac holds beside a picture."""
    if name[:1] != "." and "/." not in name and "__MACOSX" not in name:
        return False  # nearly all, and a data set has millions
    parts = PurePosixPath(name).parts
    return any(part.startswith((".", "__MACOSX")) for part in parts)


def suffix_of(name: str) -> str:
    """The suffix of a POSIX path of a file, in lower case."""
    last = name.rpartition("/")[2]
    dot = last.rfind(".")
    return last[dot:].lower() if 0 < dot < len(last) - 1 else ""


def is_image(name: str) -> bool:
    """Whether a POSIX path is taken for an image: by its suffix, and not hidden."""
    return not is_hidden(name) and bool(kind_of(suffix_of(name)))


def kind_of(suffix: str) -> str | None:
    """The kind of image that a suffix stands for; None where it cannot be read."""
    plugin = PLUGINS.get(suffix)
    if plugin is not None:
        return plugin if _installed(plugin) else None
    return SUFFIXES.get(suffix)


def kinds_of(name: str) -> tuple[str, ...]:
    """The kinds as which a file of that name is read."""
    own = kind_of(suffix_of(name))
    return FORMATS if own is None or own in FORMATS else (*FORMATS, own)


def passed_over(names: Iterable[str]) -> str | None:
    """A note on the pictures among some files that cannot be read, counted by suffix."""
    counts = by_suffix(name for name in names if suffix_of(name) in UNREAD)
    if not counts:
        return None
    advice = "; pip install 'fewstep[heic]' reads .heic" if {".heic", ".heif"} & {*counts} else ""
    counted = ", ".join(f"{n} {suffix}" for suffix, n in counts.items())
    return f"{sum(counts.values())} picture(s) are of a kind that is not read: {counted}{advice}"


def by_suffix(names: Iterable[str]) -> dict[str, int]:
    """How many files of each suffix are not images that are read; hidden files do not count."""
    counts = Counter(suffix_of(name) for name in names if not (is_hidden(name) or is_image(name)))
    return dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def no_images(path: object, names: Iterable[str] = ()) -> UsageError:
    """The error that a place holds no images, with what it holds instead."""
    known, every = [*names], {**SUFFIXES, **PLUGINS}
    held = ", ".join(f"{n} {suffix or 'without suffix'}" for suffix, n in by_suffix(known).items())
    message = passed_over(known)
    return UsageError(
        f"{path} holds no images; files that end in {' '.join(filter(kind_of, every))} are"
        + (f" (it holds {held})" if held else "")
        + (f"; {message}" if message else "")
    )


@cache
def _installed(kind: str) -> bool:
    """Whether Pillow reads that kind; a package that teaches it is imported if it is there."""
    try:
        if kind == "HEIF":
            import_module("pillow_heif").register_heif_opener()
        elif not features.check("avif"):
            import_module("pillow_avif")
    except ImportError:
        return False
    return True


def background_of(text: str) -> Background:
    """The colour that a text names, ``white`` or ``#ffffff``.

    Raises:
        UsageError: it names none.
    """
    try:
        colour = ImageColor.getrgb(text)
    except (ValueError, AttributeError) as error:
        raise UsageError(
            f"got background={text!r}; expected a colour such as white or #ffffff"
        ) from error
    return colour[0], colour[1], colour[2]


@dataclass(frozen=True)
class Header:
    """What the header of an image shows.

    Args:
        size: width and height.
        traits: keys of ``NOTES``, ``grey``, and ``narrow`` where an image with more than 8 bits
            was decoded and has no value above 4095.
    """

    size: tuple[int, int]
    traits: frozenset[str]


def header_of(image: Image.Image) -> Header:
    """What an image shows before it is loaded."""
    traits = {
        "grey": _is_grey(image),
        "alpha": has_alpha(image),
        "deep": is_deep(image),
        "rotated": orientation_of(image) != 1,
        "frames": bool(getattr(image, "is_animated", False)),
    }
    return Header(image.size, frozenset(name for name, true in traits.items() if true))


def has_alpha(image: Image.Image) -> bool:
    """Whether some of an image's pixels may be transparent."""
    return image.mode in {"LA", "La", "PA", "RGBA", "RGBa"} or "transparency" in image.info


def is_deep(image: Image.Image) -> bool:
    """Whether a channel has more than 8 bits, before the image is loaded."""
    tiles: Any = getattr(image, "tile", ())
    raw = str(tiles[0][3]) if tiles else ""
    return image.mode == "I" or image.mode.startswith("I;16") or ";16" in raw


_EXIF = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}
"""Where a PNG says its orientation."""


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 is upright. Damaged EXIF data says nothing."""
    # A PNG's EXIF data may lie behind its pixels, which asking for it would decode.
    if image.format == "PNG" and _EXIF.isdisjoint(image.info):
        return 1
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # Pillow raises all kinds on damaged data
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _is_grey(image: Image.Image) -> bool:
    if image.mode in {"P", "PA"} and image.palette is not None:
        palette: Any = image.palette
        step = len(palette.rawmode or palette.mode)
        raw = bytes(palette.palette)
        return bool(raw) and raw[0::step] == raw[1::step] == raw[2::step]
    return image.mode in {"1", "L", "LA", "La", "I", "F"} or image.mode.startswith("I;16")


class Tally:
    """The traits of a data set's images, counted.

    Args:
        resolution: to which images are resized.
        background: on which transparent images are composited.

    Attributes:
        n: images.
        sizes: the smallest and the largest, by their area.
    """

    def __init__(self, resolution: int, background: Background = WHITE) -> None:
        self.resolution, self.background, self.n = resolution, background, 0
        self.sizes: tuple[tuple[int, int], ...] = ()
        self._small = 0
        self._counts: Counter[str] = Counter()
        self._all_grey = True

    def add(self, header: Header) -> None:
        """Count an image."""
        traits = header.traits
        self.n += 1
        self._small += min(header.size) < self.resolution
        if header.size not in self.sizes:
            ordered = sorted((*self.sizes, header.size), key=lambda size: (size[0] * size[1], size))
            self.sizes = (ordered[0], ordered[-1])
        if traits:
            self._counts.update(traits)
        tinted = "alpha" in traits and len(set(self.background)) > 1
        self._all_grey &= "grey" in traits and not tinted

    @property
    def grey(self) -> bool:
        """Whether no image has colour; the one rule by which images have 1 or 3 channels."""
        return self._all_grey

    @property
    def narrow(self) -> bool:
        """Whether no image of more than 8 bits has a value above 4095: such sets have 12 bits."""
        return self._counts["narrow"] == self._counts["deep"]

    @property
    def mixed(self) -> bool:
        """Whether some images of more than 8 bits have no value above 4095, and others have one."""
        return self._counts["narrow"] > 0 and not self.narrow

    def notes(self) -> tuple[str, ...]:
        """One sentence for each trait that users have to notice."""
        red, green, blue = self.background
        bits = "12 bits, as none has a value above 4095" if self.narrow else "16 bits"
        name = "white" if self.background == WHITE else f"#{red:02x}{green:02x}{blue:02x}"
        notes = [
            text.format(n=f"{self._counts[trait]} image(s)", background=name, bits=bits)
            for trait, text in NOTES.items()
            if self._counts[trait]
        ]
        if self._small:
            notes.append(
                f"{self._small} image(s) have fewer than {self.resolution} pixels a side and are "
                "enlarged"
            )
        grey = self._counts["grey"]
        if 0 < grey < self.n:
            notes.append(f"{grey} of {self.n} image(s) are grey, the others have colour")
        return tuple(notes)
