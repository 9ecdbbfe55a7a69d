"""Images in a folder or a zip, cropped and resized to one square resolution.

Labels come from ``dataset.json`` at the root in the format of EDM's data sets (Karras et al. 2022),
``{"labels": [["00000/img00000000.png", 6], ...]}`` or ``{"labels": null}``, else from folder names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch

from fewstep.core import Batch, UsageError
from fewstep.data.arrays import Indices
from fewstep.data.decoding import SUFFIXES, BadFile, check_arguments, is_grey, is_image, square
from fewstep.data.labels import member_labels
from fewstep.data.members import Members
from fewstep.data.prepared import advice
from fewstep.data.specs import image_spec

IN_MEMORY = 2**30
CHUNK = 1024

Found = TypeVar("Found")


class ImageFolder:
    """A folder (with its sub-folders) or a zip of images, as a dataset.

    Images are taken in the order of their POSIX paths; hidden files are left out. Each is cropped
    to its central square and resized. Transparency is dropped, and EXIF rotation is not applied
    (as in EDM's data sets). Pixels are decoded once if they fit in 1 GiB, else on every access.

    Args:
        path: the folder or zip.
        resolution: height and width, at least 1.
        channels: 1 or 3; if not given 1 when the images are grey (up to 64 are looked at), else 3.
        labels: ``auto`` reads ``dataset.json`` at the root; without one, if every image lies in a
            sub-folder of the folder common to all, those sub-folders, sorted, are the classes.
            ``none`` reads no labels.
        on_error: ``refuse`` images that cannot be decoded, or ``skip`` them; the latter only if
            the pixels fit in memory, because then all are decoded here.

    Attributes:
        shape: ``(channels, resolution, resolution)``.
        labels: number of classes, 0 without labels.
        image: True; values are in [-1, 1].
        spec: what an image is and depends on.
        names: paths of the images inside ``path``.
        class_names: one a class: the sub-folder, or the number given in ``dataset.json``.
        skipped: name and reason of each image that was left out.

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
    ) -> None:
        check_arguments(resolution, channels)
        if labels not in {"auto", "none"}:
            raise UsageError(f"got labels={labels!r}; expected auto or none")
        if on_error not in {"refuse", "skip"}:
            raise UsageError(f"got on_error={on_error!r}; expected refuse or skip")
        self._members = Members(Path(path))
        self.names = sorted(filter(is_image, self._members.names))
        if not self.names:
            raise UsageError(f"{path} holds no images; files that end in {' '.join(SUFFIXES)} are")
        self._label, self.class_names = member_labels(self._members, self.names, labels)
        self.labels = len(self.class_names)
        self.image = True
        self.skipped: tuple[tuple[str, str], ...] = ()
        self.shape = (channels or self._channels(on_error), resolution, resolution)
        self.spec = image_spec(self.shape, self.class_names)
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

    def _channels(self, on_error: str) -> Literal[1, 3]:
        for name in self.names[:: -(-len(self.names) // 64)]:
            try:
                if not is_grey(self._members.opened(name).mode):
                    return 3
            except BadFile:
                if on_error == "refuse":
                    raise
        return 1

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
            raise UsageError(f"{self._members.path} holds no usable image; {name} {reason}")
        self.names = [self.names[i] for i in good]
        self._label = None if self._label is None else self._label[good]
        return pixels[: len(good)]

    def _decode(self, name: str) -> np.ndarray:
        channels, resolution, _ = self.shape
        return square(self._members.opened(name), self._members.where(name), channels, resolution)

    def _tried(self, name: str) -> np.ndarray | BadFile:
        try:
            return self._decode(name)
        except BadFile as error:
            return error


def _in_order(decode: Callable[[str], Found], names: Sequence[str]) -> Iterator[Found]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        # Chunks bound how much is queued, and how late a bad file is reported.
        for start in range(0, len(names), CHUNK):
            yield from pool.map(decode, names[start : start + CHUNK])
