"""Data that training can read: images in a folder, a zip or a prepared file, and stored arrays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from fewstep.core import UsageError
from fewstep.data.demonstration_files import holds_demonstrations, read_demonstrations
from fewstep.data.demonstrations import Chunks
from fewstep.data.encoded import Encoded, is_encoded
from fewstep.data.formats import background_of
from fewstep.data.images import ImageFolder
from fewstep.data.prepared import SUFFIX, Prepared, advice
from fewstep.data.sources import needs_preparing
from fewstep.data.stored import Stored, is_stored


def open_data(
    path: str | os.PathLike[str],
    resolution: int | None = None,
    labels: Literal["auto", "none"] = "auto",
    *,
    channels: Literal[1, 3] | None = None,
    background: str | None = None,
) -> ImageFolder | Prepared | Stored | Encoded | Chunks:
    """Data of any kind as a dataset, by index.

    Args:
        path: what :func:`open_images` reads, a file that ``fewstep.data.write_arrays`` wrote, a
            folder that ``fewstep data encode`` wrote, or demonstrations as a safetensors file.
        resolution: of images; stored arrays and encoded data have a shape of their own.
        labels: ``none`` hides the labels.
        channels: of images.
        background: colour behind transparent pixels of images.

    Raises:
        UsageError: the path cannot be read, or it holds images and their resolution is not given.
    """
    if is_encoded(path):
        return Encoded(path, labels=labels)
    if Path(path).suffix == SUFFIX and is_stored(path):
        return Stored(path, labels=labels)
    if Path(path).suffix == SUFFIX and holds_demonstrations(path):
        return Chunks(read_demonstrations(path))
    return open_images(path, resolution, labels, channels=channels, background=background)


def open_images(
    path: str | os.PathLike[str],
    resolution: int | None = None,
    labels: Literal["auto", "none"] = "auto",
    *,
    channels: Literal[1, 3] | None = None,
    background: str | None = None,
) -> ImageFolder | Prepared | Stored:
    """Images as a dataset, by index.

    Args:
        path: a folder or zip of images, a prepared file, or a file of stored arrays of images.
        resolution: height and width; a prepared file must have it, and needs none.
        labels: ``auto`` or ``none``, as in ``ImageFolder``.
        channels: 1 or 3; a prepared file must have them. Decided by the images if not given.
        background: colour behind transparent pixels, white if not given; a prepared file must have
            it.

    Raises:
        UsageError: the path is a source that has to be prepared first, cannot be read, or has
            another resolution or other channels.
    """
    if Path(path).suffix == SUFFIX and is_stored(path):
        data = Stored(path, labels=labels)
        if data.shape[1:] != (resolution, resolution) or channels not in {None, data.shape[0]}:
            raise UsageError(
                f"{path} holds samples of shape {data.shape}; asked for are images of "
                f"{channels or 'any'} channel(s) at resolution {resolution}"
            )
        return data
    if Path(path).suffix == SUFFIX:
        data = Prepared(path, labels=labels)
        if resolution not in {None, data.about.resolution}:
            raise UsageError(
                f"{path} was prepared at resolution {data.about.resolution}, asked for is "
                f"{resolution}; ask for that, or prepare it again"
            )
        if channels not in {None, data.shape[0]}:
            raise UsageError(
                f"{path} was prepared with {data.shape[0]} channel(s), asked for are {channels}; "
                "prepare it again"
            )
        known = data.about.background
        if background is not None and background_of(background) != background_of(known):
            raise UsageError(
                f"{path} was prepared on the background {known}, asked for is "
                f"{background}; prepare it again"
            )
        return data
    if needs_preparing(str(path)):
        raise UsageError(
            f"{path} cannot be read in any order, as training must; {advice(path, resolution)}, "
            "then give that file"
        )
    if resolution is None:
        raise UsageError(f"to read the images of {path} give their --resolution")
    behind = "white" if background is None else background
    return ImageFolder(path, resolution, channels=channels, labels=labels, background=behind)
