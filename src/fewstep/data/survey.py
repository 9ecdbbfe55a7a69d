"""What training and ``fewstep data prepare`` would read of a source, before either runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from fewstep.data.catalogue import entry, training_data
from fewstep.data.checks import check_batch
from fewstep.data.decoding import Crop, check_arguments
from fewstep.data.described import Columns
from fewstep.data.formats import background_of
from fewstep.data.prepared import SUFFIX, printable
from fewstep.data.reading import Decoder, Reading, nothing_usable
from fewstep.data.sources import open_source
from fewstep.data.specs import spec_of

if TYPE_CHECKING:
    from fewstep.data import Dataset

EACH = 8
"""Images of a class that are shown."""
CLASSES = 16
"""Classes of which images are shown."""


@dataclass(frozen=True)
class Survey:
    """What a source holds.

    Args:
        count: samples that can be used.
        shape: of a sample.
        classes: their names, and how many samples each has; empty without labels.
        conditions: name and description of each condition other than ``label``.
        sizes: width and height of the smallest and the largest image.
        notes: what a user has to notice, in sentences.
        skipped: name and reason of each image that cannot be used.
        others: how many files of each suffix are no images that are read.
        shown: some images ``(k, c, h, w)`` in [-1, 1] by class; by no name without labels.
    """

    count: int
    shape: tuple[int | None, ...]
    classes: tuple[tuple[str, int], ...] = ()
    conditions: tuple[tuple[str, str], ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    others: Mapping[str, int] = field(default_factory=dict)
    shown: tuple[tuple[str, Tensor], ...] = ()


def survey(
    source: Sequence[str],
    *,
    resolution: int,
    crop: Crop = "center",
    channels: Literal[1, 3] | None = None,
    labels: str = "auto",
    split: str = "train",
    background: str = "white",
    workers: int = 0,
) -> Survey:
    """Read every image of a source as ``prepare`` would, and write nothing.

    Args:
        source: as of :func:`~fewstep.data.prepare.prepare`; likewise the rest.
        resolution: height and width of what would be read.
        crop: how images become square.
        channels: 1 or 3; if not given 1 when all images are grey, else 3.
        labels: ``auto``, ``none``, or the column that holds them.
        split: of a Hugging Face data set.
        background: colour behind transparent pixels.
        workers: threads that decode.

    Raises:
        UsageError: an argument or the source cannot be used, or none of its images.
    """
    check_arguments(resolution, channels, crop)
    behind = background_of(background)
    samples: dict[int | str | None, list[np.ndarray]] = {}

    def passage(narrow: bool | None) -> Reading:
        samples.clear()
        reading = Reading(open_source(source, labels, split), resolution, behind, None, skip=True)
        decode = Decoder(channels or 3, resolution, crop, behind, narrow=narrow)
        for pixels, label in reading.images(decode, workers, "checking"):
            if label in samples or len(samples) < CLASSES:
                row = samples.setdefault(label, [])
                if len(row) < (EACH if label is not None else EACH**2):
                    row.append(pixels)
        return reading

    reading = passage(None)
    if reading.tally.mixed:  # some images were taken for 12 bits, but all have 16
        reading = passage(False)
    if not reading.count:
        raise nothing_usable(source[0], reading.skipped)
    assigned = reading.labels()
    kept = channels or (1 if reading.tally.grey else 3)
    names = reading.source.class_names
    shown = []
    for label, row in samples.items():
        name = names[label] if names and isinstance(label, int) else label
        x = torch.from_numpy(np.stack(row)[:, :kept].astype(np.float32)) / 127.5 - 1
        shown.append((printable("" if name is None else str(name)), x))
    order = {name: k for k, name in enumerate(assigned.class_names)}
    counts = (
        () if assigned.label is None else np.bincount(assigned.label, minlength=len(order)).tolist()
    )
    return Survey(
        reading.count,
        (kept, resolution, resolution),
        tuple(zip(assigned.class_names, counts, strict=True)) if counts else (),
        sizes=reading.tally.sizes,
        notes=reading.notes(),
        skipped=tuple(reading.skipped),
        others=reading.source.others,
        shown=tuple(sorted(shown, key=lambda one: order.get(one[0], 0))),
    )


def survey_of_name(name: str) -> Survey | None:
    """The survey of a data set of the library or of a file to train on; None for other sources."""
    if entry(name) is None and Path(name).suffix != SUFFIX:
        return None
    return survey_of(training_data(name))


def survey_of(data: Dataset) -> Survey:
    """The survey of a data set that is open, of which every sample is looked at.

    Raises:
        UsageError: a sample is not what the data set says.
    """
    spec = spec_of(data)
    counts = np.zeros(spec.labels, np.int64)
    rows: dict[int, list[Tensor]] = {}
    columns = Columns(spec)
    for start in range(0, len(data), 256):
        index = range(start, min(start + 256, len(data)))
        batch = data.batch(index)
        check_batch(batch, spec, index)
        columns.add(batch)
        label = batch.cond["label"].tolist() if spec.labels else [0] * len(index)
        if spec.labels:
            counts += np.bincount(label, minlength=spec.labels)
        for k, x in zip(label, batch.x0, strict=True):
            row = rows.setdefault(k, []) if k in rows or len(rows) < CLASSES else [x] * EACH
            if len(row) < (EACH if spec.labels else EACH**2):
                row.append(x)
    names = spec.class_names or tuple(map(str, range(spec.labels)))
    return Survey(
        len(data),
        spec.shape,
        tuple(zip(names, counts.tolist(), strict=True)),
        columns.described(),
        notes=tuple(getattr(data, "notes", ())),
        shown=tuple((names[k] if names else "", torch.stack(rows[k])) for k in sorted(rows)),
    )
