"""What every source of images gives: one item after the other, not yet decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from PIL import Image

from fewstep.data.decoding import MAX_PIXELS, BadFile


@dataclass(frozen=True)
class Item:
    """One image.

    Args:
        name: inside its source; holds no path of the machine.
        where: what messages call it.
        load: reads it; raises ``BadFile`` if it cannot be used.
        label: its class, or the name of it, or None.
        caption: its text; None where captions are not read, or it has none.
    """

    name: str
    where: str
    load: Callable[[], Image.Image]
    label: int | str | None = None
    caption: str | None = None


@dataclass(frozen=True)
class Source:
    """Images in a fixed order.

    Args:
        items: to be taken once. What they raise concerns the whole source.
        total: how many there are, if that is known before they are read.
        class_names: of labels that are numbers, if they have names.
        notes: what a user has to notice, in sentences; complete once the items are taken.
        others: how many files of each suffix are no images that are read.
        apart: items may be loaded in another process, as they hold names or contents of files.
    """

    items: Iterator[Item]
    total: int | None
    class_names: tuple[str, ...] | None = None
    notes: Callable[[], tuple[str, ...]] = tuple
    others: Mapping[str, int] = field(default_factory=dict)
    apart: bool = False


def bad(name: str, error: BadFile) -> Item:
    """An item that cannot be loaded."""
    return Item(name, error.where, partial(_refuse, error))


def _refuse(error: BadFile) -> Image.Image:
    raise error


def picture(pixels: np.ndarray, where: str) -> Image.Image:
    """uint8 ``(c, h, w)`` with one or three channels as an image.

    Raises:
        BadFile: it has more than ``MAX_PIXELS``.
    """
    channels, height, width = pixels.shape
    if height * width > MAX_PIXELS:
        raise BadFile(where, f"has {height} x {width} pixels; at most {MAX_PIXELS} are read")
    if channels == 1:
        return Image.fromarray(pixels[0])
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
