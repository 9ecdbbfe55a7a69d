"""``fewstep data check``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fewstep.cli.values import replaced
from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.data.survey import Survey


SHOWN = 5
"""Reasons, and images of each, that are printed."""

MARK = "fewstep data check"
"""In the files of contact sheets, so that no other picture is replaced."""

CLASSES = 20
"""Classes that are printed."""


def check(
    source: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SOURCE ...")],
    /,
    *,
    resolution: int = 64,
    out: Path = Path("contact-sheet.png"),
    crop: Literal["center", "adm", "none"] = "center",
    channels: Literal[1, 3] | None = None,
    labels: str = "auto",
    split: str = "train",
    background: str = "white",
    workers: int = 0,
) -> None:
    """Say what training would read of a source and what not, and draw some of its images.

    Args:
        source: what data prepare reads, a file that it wrote, or the name of a data set.
        resolution: height and width to which the images are cropped.
        out: the contact sheet, a .png picture with a row of images for each class.
        crop: the central square, as ADM prepares ImageNet, or none for images that are square.
        channels: 1 or 3; by default 1 if all images are grey.
        labels: auto, none, or the column that holds them.
        split: of a Hugging Face data set.
        background: the colour behind transparent pixels, such as white or #ffffff.
        workers: threads that decode.
    """
    if not source:
        raise UsageError("got no source; give a folder, a zip, or one or several shards")
    if out.suffix != ".png":
        raise UsageError(f"--out must be a .png picture, got {out}")
    from fewstep.evaluation.pictures import marked

    if out.exists() and not marked(out, MARK):
        raise UsageError(f"{out} is no contact sheet of this command; choose another --out")
    from fewstep.data.survey import survey, survey_of_name

    seen = survey_of_name(source[0]) if len(source) == 1 else None
    seen = seen or survey(
        source,
        resolution=resolution,
        crop=crop,
        channels=channels,
        labels=labels,
        split=split,
        background=background,
        workers=workers,
    )
    for line in _told(seen, source[0]):
        print(line)
    _draw(seen, out)


def _told(found: Survey, source: str) -> Iterator[str]:
    """What a survey found, line by line."""
    shape = "x".join("any" if size is None else str(size) for size in found.shape)
    yield f"{found.count:,} sample(s) would be read as {shape}"
    if found.sizes:
        smallest, largest = (" x ".join(map(str, size)) for size in found.sizes)
        yield f"the images have {smallest} to {largest} pixels"
    yield f"{len(found.classes)} class(es)" if found.classes else "no labels"
    for k, (name, n) in enumerate(found.classes[:CLASSES]):
        yield f"  label {k}: {name}, {n:,} sample(s)"
    if len(found.classes) > CLASSES:
        yield f"  and {len(found.classes) - CLASSES:,} more"
    for name, words in found.conditions:
        yield f"condition {name}: {words}"
    for note in found.notes:
        yield f"note: {note}"
    if found.skipped:
        yield f"{len(found.skipped):,} image(s) cannot be read:"
        for name, reason in found.skipped[:SHOWN]:
            yield f"  {name} {reason}"
        advice = f"fewstep data prepare {source} --on-error skip"
        yield f"training refuses them; to leave them out: {advice} --out FILE --resolution N"
    if found.others:
        kinds = ", ".join(f"{n:,} {end or 'without suffix'}" for end, n in found.others.items())
        yield f"other files: {kinds}"


def _draw(found: Survey, out: Path) -> None:
    from fewstep.evaluation.pictures import drawable, picture, rows

    if not found.shown or not drawable(found.shape):
        print(f"no contact sheet: samples of shape {found.shape} are no pictures")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    before = replaced(out)
    if found.classes and len(found.shape) == 3:
        rows(found.shown, out, MARK)
    else:
        import torch

        everything = torch.cat([x for _, x in found.shown])
        picture(everything, out, 8 if len(found.shape) == 3 else None, MARK)
    count = sum(len(x) for _, x in found.shown)
    print(f"wrote a contact sheet of {count} sample(s) to {out}{before}")
