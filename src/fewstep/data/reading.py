"""Every image of a source, decoded: what can be used, what cannot, and what users must notice."""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice

import numpy as np

from fewstep.core import UsageError
from fewstep.data.decoding import BadFile, Crop, is_narrow, naming, square
from fewstep.data.formats import Background, Header, Tally, header_of
from fewstep.data.labels import Assigned, Labels
from fewstep.data.prepared import printable
from fewstep.data.sources import Item, Source
from fewstep.system.bars import bar

MAX_SKIPPED = 100_000
"""A source with more bad images is taken for another thing than images."""

CHUNK = 32
"""Images that a worker is handed at once."""

Decoded = tuple[np.ndarray, Header] | BadFile
"""Pixels and what the image's header showed, or what is wrong with it."""


@dataclass(frozen=True)
class Decoder:
    """What decodes an item to uint8 ``(channels, resolution, resolution)``.

    Args:
        channels: 1 or 3.
        resolution: height and width.
        crop: how images become square.
        background: colour behind transparent pixels.
        narrow: see :func:`~fewstep.data.decoding.square`.
    """

    channels: int
    resolution: int
    crop: Crop
    background: Background
    narrow: bool | None = None

    def __call__(self, item: Item) -> Decoded:
        """The pixels of an item and its header, or what is wrong with it."""
        try:
            image = item.load()
            with naming(item.where):
                header = header_of(image)
            settings = self.channels, self.resolution, self.crop, self.background
            pixels = square(image, item.where, *settings, narrow=self.narrow)
            if "deep" in header.traits and is_narrow(image):
                header = Header(header.size, header.traits | {"narrow"})
            return pixels, header
        except BadFile as error:
            return error


class Reading:
    """One passage through a source.

    Args:
        source: to be taken once.
        resolution: to which images are resized.
        background: on which transparent images are composited.
        classes: their number where labels are numbers without names, or None.
        skip: list images that cannot be used instead of refusing the source.

    Attributes:
        count: images that could be used.
        tally: what their headers showed.
        skipped: name and reason of each other image.
    """

    def __init__(
        self,
        source: Source,
        resolution: int,
        background: Background,
        classes: int | None,
        *,
        skip: bool,
    ) -> None:
        self.source, self.skip = source, skip
        self.count, self.tally = 0, Tally(resolution, background)
        self.skipped: list[tuple[str, str]] = []
        self._labels = Labels(source.class_names, classes)

    def images(
        self, decode: Callable[[Item], Decoded], workers: int, title: str
    ) -> Iterator[tuple[np.ndarray, int | str | None]]:
        """The pixels and labels of the images that can be used, in their order.

        Args:
            decode: a :class:`Decoder`.
            workers: processes, or threads where the source or the system has no other way; 0
                decodes between reading and handing out.
            title: of the bar.

        Raises:
            UsageError: an image cannot be used, or too many cannot if they are skipped.
        """
        with bar(title, "images", self.source.total) as advance:
            for item, decoded in _in_order(decode, self.source, workers):
                try:
                    if isinstance(decoded, BadFile):
                        raise decoded
                    self._labels.check(item.label, item.where)
                except BadFile as error:
                    self._skip(item, error)
                else:
                    pixels, header = decoded
                    self._labels.add(item.label)
                    self.count += 1
                    self.tally.add(header)
                    yield pixels, item.label
                advance(1)

    def labels(self) -> Assigned:
        """The labels of the images that could be used; at least one could."""
        assigned = self._labels.result()
        return Assigned(
            [], assigned.label, tuple(map(printable, assigned.class_names)), assigned.notes
        )

    def notes(self) -> tuple[str, ...]:
        """What users have to notice, in sentences."""
        notes = (*self.source.notes(), *self.labels().notes, *self.tally.notes())
        return tuple(map(printable, notes))

    def _skip(self, item: Item, error: BadFile) -> None:
        if not self.skip:
            raise error
        self.skipped.append((printable(item.name), printable(error.reason)))
        if len(self.skipped) > MAX_SKIPPED:
            raise UsageError(
                f"over {MAX_SKIPPED} images cannot be used, the last being {error}; check the "
                "source"
            ) from error


def nothing_usable(source: str, skipped: Sequence[tuple[str, str]]) -> UsageError:
    """The error that a source holds no image that can be used."""
    if not skipped:
        return UsageError(f"{source} holds no images")
    name, reason = skipped[0]
    return UsageError(f"{source} holds no usable image; the first, {name}, {reason}")


def _in_order(
    decode: Callable[[Item], Decoded], source: Source, workers: int
) -> Iterator[tuple[Item, Decoded]]:
    if not workers:
        yield from ((item, decode(item)) for item in source.items)
        return
    waiting: deque[tuple[list[Item], Future[list[Decoded]]]] = deque()
    with _pool(source, workers) as pool:
        try:
            while chunk := [*islice(source.items, CHUNK)]:
                waiting.append((chunk, _submitted(pool, decode, chunk)))
                if len(waiting) > 2 * workers:
                    yield from _received(waiting.popleft())
            while waiting:
                yield from _received(waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()


def _pool(source: Source, workers: int) -> Executor:
    """Processes where they can be had at once, as Python holds most of a small image's time."""
    if source.apart and sys.platform == "linux":  # forks beside threads are unsafe on macOS
        return ProcessPoolExecutor(workers, multiprocessing.get_context("fork"))
    return ThreadPoolExecutor(workers)


def _submitted(
    pool: Executor, decode: Callable[[Item], Decoded], chunk: list[Item]
) -> Future[list[Decoded]]:
    with warnings.catch_warnings():
        # Python warns of forks beside threads; these processes decode and nothing else.
        warnings.simplefilter("ignore", DeprecationWarning)
        return pool.submit(_decoded, decode, chunk)


def _decoded(decode: Callable[[Item], Decoded], chunk: list[Item]) -> list[Decoded]:
    return [decode(item) for item in chunk]


def _received(
    of: tuple[list[Item], Future[list[Decoded]]],
) -> Iterator[tuple[Item, Decoded]]:
    chunk, future = of
    try:
        yield from zip(chunk, future.result(), strict=True)
    except BrokenProcessPool as error:
        raise UsageError(
            "a process that decodes images was killed, probably for want of memory; take fewer "
            "--workers"
        ) from error
