"""Any source of images into one file to train on: ``fewstep data prepare``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from fewstep.core import UsageError
from fewstep.data.decoding import Crop, check_arguments
from fewstep.data.formats import background_of
from fewstep.data.prepared import SUFFIX, About, Prepared, printable, write_prepared
from fewstep.data.reading import Decoder, Reading, nothing_usable
from fewstep.data.sources import HUB, Source, open_source
from fewstep.system.files import TEMPORARY

STRETCH = 2**24
"""Bytes copied at once."""


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
    background: str = "white",
    classes: int | None = None,
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
        workers: processes that decode the images of a folder, and threads that decode those of
            other sources; 0 decodes between reading and writing.
        background: colour behind transparent pixels, such as ``white`` or ``#ffffff``.
        classes: their number where labels are numbers without names; by default the numbers that
            occur are the classes.

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
    if classes is not None and classes < 1:
        raise UsageError(f"got classes={classes}; expected at least 1")
    behind = background_of(background)
    path = Path(out)
    if path.suffix != SUFFIX:
        raise UsageError(f"got out={out}; expected a file that ends in {SUFFIX}")
    given = [str(one) for one in ([source] if isinstance(source, str | os.PathLike) else source)]
    if not given:
        raise UsageError("got no source; give a folder, a zip, or one or several shards")
    first = open_source(given, labels, split, classes)
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = path.with_name(f"{TEMPORARY}{path.name}.pixels")

    def passage(opened: Source, narrow: bool | None) -> Reading:
        reading = Reading(opened, resolution, behind, classes, skip=on_error == "skip")
        decode = Decoder(stored, resolution, crop, behind, narrow=narrow)
        with raw.open("wb") as file:
            for pixels, _ in reading.images(decode, workers, "preparing"):
                file.write(pixels.tobytes())
        return reading

    stored = channels or 3
    try:
        reading = passage(first, None)
        if reading.tally.mixed:  # some images were taken for 12 bits, but all have 16
            reading = passage(open_source(given, labels, split, classes), False)
        if not reading.count:
            raise nothing_usable(given[0], reading.skipped)
        assigned = reading.labels()
        kept = 1 if channels is None and reading.tally.grey else stored
        about = About(
            count=reading.count,
            shape=(kept, resolution, resolution),
            labels=len(assigned.class_names),
            class_names=assigned.class_names,
            source=_name(given),
            resolution=resolution,
            crop=crop,
            background=background,
            skipped=tuple(reading.skipped),
            notes=reading.notes(),
            sha256={},
        )
        shape = (reading.count, stored, resolution, resolution)
        everything = np.memmap(raw, np.uint8, "r", shape=shape)
        step = max(1, STRETCH // (stored * resolution**2))
        stretches = (everything[i : i + step, :kept] for i in range(0, reading.count, step))
        write_prepared(path, stretches, assigned.label, about)
    finally:
        raw.unlink(missing_ok=True)
    return Prepared(path)


def _name(given: Sequence[str]) -> str:
    """The name of the source, without its place."""
    names = [one if one.startswith(HUB) else Path(one).resolve().name for one in given]
    return printable(names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}")
