"""Any source of images into one file to train on: ``fewstep data prepare``."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np

from fewstep.bars import bar
from fewstep.core import UsageError
from fewstep.data.decoding import BadFile, Crop, check_arguments, is_grey, square
from fewstep.data.labels import Labels
from fewstep.data.prepared import SUFFIX, About, Prepared, write_prepared
from fewstep.data.sources import HUB, Item, Source, open_source
from fewstep.files import TEMPORARY

MAX_SKIPPED = 100_000
"""A source with more bad images is taken for another thing than images."""
STRETCH = 2**24
"""Bytes copied at once."""

Found = tuple[np.ndarray, bool] | BadFile
"""Pixels and whether the image was grey, or what is wrong with it."""


def prepare(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    resolution: int,
    crop: Crop = "center",
    channels: Literal[1, 3] | None = None,
    labels: str = "auto",
    on_error: Literal["refuse", "skip"] = "refuse",
    split: str = "train",
    workers: int = 0,
) -> Prepared:
    """Decode, crop and resize every image of a source, and write one verified file.

    The same source gives the same bytes, whatever ``workers`` is. While it is written, the file
    takes twice its space.

    Args:
        source: a folder or zip of images, an IDX file, a Hugging Face data set on the disk or
            ``hf:OWNER/NAME``; or WebDataset shards (.tar), Parquet files or .npz files: one,
            several, or a folder of them.
        out: the file, NAME.safetensors; an older one is replaced.
        resolution: height and width, at least 1.
        crop: how images become square, see ``Crop``.
        channels: 1 or 3; if not given 1 when all images are grey, else 3.
        labels: ``auto``, ``none``, or the column that holds them.
        on_error: ``refuse`` the source for the first image that cannot be used, or ``skip`` such
            images; they are listed in the file.
        split: of a Hugging Face data set.
        workers: threads that decode; 0 decodes between reading and writing.

    Returns:
        The file as a dataset.

    Raises:
        UsageError: an argument, the source or one of its images cannot be used.
    """
    check_arguments(resolution, channels, crop)
    if on_error not in {"refuse", "skip"}:
        raise UsageError(f"got on_error={on_error!r}; expected refuse or skip")
    if workers < 0:
        raise UsageError(f"got workers={workers}; expected at least 0")
    path = Path(out)
    if path.suffix != SUFFIX:
        raise UsageError(f"got out={out}; expected a file that ends in {SUFFIX}")
    given = [str(one) for one in ([source] if isinstance(source, str | os.PathLike) else source)]
    if not given:
        raise UsageError("got no source; give a folder, a zip, or one or several shards")
    opened = open_source(given, labels, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = path.with_name(f"{TEMPORARY}{path.name}.pixels")

    def decode(item: Item) -> Found:
        try:
            image = item.load()
            grey = is_grey(image.mode)
            return square(image, item.where, channels or 3, resolution, crop), grey
        except BadFile as error:
            return error

    try:
        found = _decoded_to(raw, opened, decode, workers, skip=on_error == "skip")
        if not found.count:
            raise UsageError(_nothing(given, found.skipped))
        label, class_names = found.labels.result()
        stored = channels or 3
        kept = 1 if channels is None and found.grey else stored
        about = About(
            count=found.count,
            shape=(kept, resolution, resolution),
            labels=len(class_names),
            class_names=tuple(map(printable, class_names)),
            source=_name(given),
            resolution=resolution,
            crop=crop,
            skipped=tuple((printable(name), printable(why)) for name, why in found.skipped),
            sha256={},
        )
        pixels = np.memmap(raw, np.uint8, "r", shape=(found.count, stored, resolution, resolution))
        step = max(1, STRETCH // (stored * resolution**2))
        stretches = (pixels[i : i + step, :kept] for i in range(0, found.count, step))
        write_prepared(path, stretches, label, about)
    finally:
        raw.unlink(missing_ok=True)
    return Prepared(path)


class _Outcome:
    """What came of a source: count, labels, bad images, and whether all were grey."""

    def __init__(self, class_names: tuple[str, ...] | None) -> None:
        self.count, self.grey = 0, True
        self.labels = Labels(class_names)
        self.skipped: list[tuple[str, str]] = []


def _decoded_to(
    raw: Path, source: Source, decode: Callable[[Item], Found], workers: int, *, skip: bool
) -> _Outcome:
    outcome = _Outcome(source.class_names)
    with raw.open("wb") as file, bar("preparing", "images", source.total) as advance:
        for item, found in _in_order(decode, source.items, workers):
            try:
                if isinstance(found, BadFile):
                    raise found
                outcome.labels.check(item.label, item.where)
            except BadFile as error:
                if not skip:
                    raise
                outcome.skipped.append((item.name, error.reason))
                if len(outcome.skipped) > MAX_SKIPPED:
                    raise UsageError(
                        f"over {MAX_SKIPPED} images cannot be used, the last being {error}; "
                        "check the source"
                    ) from error
            else:
                pixels, grey = found
                outcome.labels.add(item.label)
                outcome.count += 1
                outcome.grey &= grey
                file.write(pixels.tobytes())
            advance(1)
    return outcome


def _in_order(
    decode: Callable[[Item], Found], items: Iterator[Item], workers: int
) -> Iterator[tuple[Item, Found]]:
    if not workers:
        yield from ((item, decode(item)) for item in items)
        return
    waiting: deque[tuple[Item, Future[Found]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append((item, pool.submit(decode, item)))
            if len(waiting) > 4 * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def printable(text: str) -> str:
    """A name from a file as it can be shown and stored: no control codes, no broken letters."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _nothing(given: Sequence[str], skipped: Sequence[tuple[str, str]]) -> str:
    if not skipped:
        return f"{given[0]} holds no images"
    name, reason = skipped[0]
    return f"{given[0]} holds no usable image; the first, {name}, {reason}"


def _name(given: Sequence[str]) -> str:
    """What the source is called, without its place."""
    names = [one if one.startswith(HUB) else Path(one).resolve().name for one in given]
    return printable(names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}")
