"""Images in a folder or a zip, cropped and resized to one square resolution.

Labels come from a ``dataset.json`` beside all images in the format of EDM's data sets (Karras et
al. 2022), ``{"labels": [["00000/img00000000.png", 6], ...]}`` or ``{"labels": null}``, else from
folder names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch

from fewstep.core import Batch, UsageError
from fewstep.data.arrays import Indices
from fewstep.data.decoding import BadFile, check_arguments, is_narrow, naming, square
from fewstep.data.formats import (
    Header,
    Tally,
    background_of,
    is_image,
    no_images,
    passed_over,
)
from fewstep.data.labels import empty, member_labels
from fewstep.data.members import Members
from fewstep.data.prepared import advice, printable
from fewstep.data.specs import image_spec
from fewstep.system.bars import bar

IN_MEMORY = 2**30
CHUNK = 1024
MANY = 20_000
"""Images whose headers take so long to read that a bar is shown."""

Found = TypeVar("Found")


class ImageFolder:
    """A folder (with its sub-folders) or a zip of images, as a dataset.

    Images are taken in the order of their POSIX paths; hidden files are left out, and symbolic
    links to folders are followed. Each is turned upright as its EXIF orientation says, cropped to
    its central square and resized; transparent pixels are composited on the background. Pixels are
    decoded once if they fit in 1 GiB, else on every access; headers are all read here.

    Args:
        path: the folder or zip.
        resolution: height and width, at least 1.
        channels: 1 or 3; if not given 1 when all images are grey, else 3.
        labels: ``auto`` reads the ``dataset.json`` beside all images; without one, the sub-folders
            of the folder common to all images are the classes, sorted (as numbers if all are
            integers). ``none`` reads no labels.
        on_error: ``refuse`` images that cannot be decoded, or ``skip`` them; the latter only if
            the pixels fit in memory, because then all are decoded here.
        background: colour behind transparent pixels, such as ``white`` or ``#ffffff``.

    Attributes:
        shape: ``(channels, resolution, resolution)``.
        labels: number of classes, 0 without labels.
        image: True; values are in [-1, 1].
        spec: what an image is and depends on.
        names: paths of the images inside ``path``.
        class_names: one a class: the sub-folder, or the number given in ``dataset.json``.
        skipped: name and reason of each image that was left out.
        notes: what a user has to notice, in sentences.

    Raises:
        UsageError: an argument, a file or ``dataset.json`` cannot be used; the message names it.
            Images of more than 64 megapixels and files of more than 256 MiB are refused.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        resolution: int,
        *,
        channels: Literal[1, 3] | None = None,
        labels: Literal["auto", "none"] = "auto",
        on_error: Literal["refuse", "skip"] = "refuse",
        background: str = "white",
    ) -> None:
        check_arguments(resolution, channels)
        if labels not in {"auto", "none"}:
            raise UsageError(f"got labels={labels!r}; expected auto or none")
        if on_error not in {"refuse", "skip"}:
            raise UsageError(f"got on_error={on_error!r}; expected refuse or skip")
        self._background = background_of(background)
        self.members = Members(Path(path))
        names = sorted(filter(is_image, self.members.names))
        if not names:
            raise no_images(path, self.members.names)
        assigned = member_labels(self.members, names, labels)
        self.names, self._label = assigned.names, assigned.label
        self.class_names = tuple(map(printable, assigned.class_names))
        self.labels = len(self.class_names)
        self.image = True
        self.skipped: tuple[tuple[str, str], ...] = ()
        self._narrow: bool | None = None
        tally = self._headers(on_error, resolution)
        self.shape = (channels or (1 if tally.grey else 3), resolution, resolution)
        self.spec = image_spec(self.shape, self.class_names)
        over = passed_over(self.members.names)
        notes = (*self.members.notes, *((over,) if over else ()), *assigned.notes, *tally.notes())
        self.notes = tuple(map(printable, notes))
        fits = len(self.names) * int(np.prod(self.shape)) <= IN_MEMORY
        if on_error == "skip":
            if not fits:
                raise UsageError(
                    f"the {len(self.names)} images of {path} do not fit in memory, so that bad "
                    f"ones cannot be found now; {advice(path, resolution)} --on-error skip"
                )
            self._pixels = self._decode_good()
        else:
            self._pixels = self._decode_all(self.names) if fits else None

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, indices: Indices) -> Batch:
        """The images at ``indices``: ``x0`` ``(b, c, h, w)``; with labels, ``cond["label"]``."""
        index = np.asarray(indices, dtype=np.int64)
        if self._pixels is None:
            pixels = self._decode_all([self.names[i] for i in index])
        else:
            pixels = self._pixels[index]
        cond = {} if self._label is None else {"label": torch.from_numpy(self._label[index])}
        return Batch(torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1), cond)

    @property
    def given_labels(self) -> np.ndarray | None:
        """The class of each image, int64, or None."""
        return self._label

    def _headers(self, on_error: str, resolution: int) -> Tally:
        """What the headers of all images show."""
        tally = Tally(resolution, self._background)
        total, deep = len(self.names), list[tuple[str, Header]]()
        with nullcontext(_ignore) if total < MANY else bar("reading", "headers", total) as advance:
            for name, one in zip(self.names, _in_order(self._header, self.names), strict=True):
                advance(1)
                if isinstance(one, BadFile):
                    if on_error == "refuse":
                        raise one
                elif "deep" in one.traits:
                    deep.append((name, one))
                else:
                    tally.add(one)
        # Images of more than 8 bits have 12 only if all of them may.
        self._narrow = all(map(self._is_narrow, (name for name, _ in deep))) if deep else None
        for _, header in deep:
            narrow = {"narrow"} if self._narrow else set[str]()
            tally.add(Header(header.size, header.traits | narrow))
        return tally

    def _is_narrow(self, name: str) -> bool:
        """Whether an image has no value above 4095; one that cannot be decoded says nothing."""
        try:
            with naming(self.members.where(name)):
                return is_narrow(self.members.opened(name))
        except BadFile:
            return True

    def _decode_all(self, names: Sequence[str]) -> np.ndarray:
        pixels = np.empty((len(names), *self.shape), np.uint8)
        for i, decoded in enumerate(_in_order(self._decode, names)):
            pixels[i] = decoded
        return pixels

    def _decode_good(self) -> np.ndarray:
        """The pixels of all images that can be decoded; the others leave ``names``."""
        pixels = np.empty((len(self.names), *self.shape), np.uint8)
        good: list[int] = []
        for i, outcome in enumerate(_in_order(self._tried, self.names)):
            if isinstance(outcome, BadFile):
                self.skipped += ((self.names[i], outcome.reason),)
            else:
                pixels[len(good)] = outcome
                good.append(i)
        if not good:
            name, reason = self.skipped[0]
            raise UsageError(f"{self.members.path} holds no usable image; {name} {reason}")
        self.names = [self.names[i] for i in good]
        if self._label is not None:
            self._label = self._label[good]
            self.notes += empty(self._label, self.class_names)
        if self.skipped:
            note = f"{len(self.skipped)} image(s) cannot be used and are left out"
            self.notes += (f"{note}: {printable(self.skipped[0][0])} {self.skipped[0][1]}",)
        return pixels[: len(good)]

    def _decode(self, name: str) -> np.ndarray:
        channels, resolution, _ = self.shape
        image, where = self.members.opened(name), self.members.where(name)
        behind, narrow = self._background, self._narrow
        return square(image, where, channels, resolution, background=behind, narrow=narrow)

    def _header(self, name: str) -> Header | BadFile:
        try:
            return self.members.header(name)
        except BadFile as error:
            return error

    def _tried(self, name: str) -> np.ndarray | BadFile:
        try:
            return self._decode(name)
        except BadFile as error:
            return error


def _ignore(n: int) -> None:
    """Show no progress."""


def _in_order(decode: Callable[[str], Found], names: Sequence[str]) -> Iterator[Found]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        # Chunks bound how much is queued, and how late a bad file is reported.
        for start in range(0, len(names), CHUNK):
            yield from pool.map(decode, names[start : start + CHUNK])
