"""``fewstep data check``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fewstep.cli.values import replaced
from fewstep.errors import UsageError
from fewstep.option_kinds import optional

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
    channels: Annotated[Literal[1, 3] | None, optional("{1,3}")] = None,
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
        crop: center cuts out the central square and resizes it, adm resizes first and cuts then, as
            ImageNet is prepared for ADM, and none takes only images that are square.
        channels: 1 or 3; by default 1 if all images are grey.
        labels: where classes come from: auto, none, or the column that holds them.
        split: the split of a Hugging Face data set, such as train.
        background: the colour behind transparent pixels, such as white or #ffffff.
        workers: the number of threads that decode images.
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
    for line in _lines(seen, source[0]):
        print(line)
    _draw(seen, out)


def _lines(survey: Survey, source: str) -> Iterator[str]:
    """What a survey says, line by line."""
    shape = "x".join("any" if size is None else str(size) for size in survey.shape)
    yield f"{survey.count:,} sample(s) would be read as {shape}"
    if survey.sizes:
        sizes = dict.fromkeys(" x ".join(map(str, size)) for size in survey.sizes)
        yield f"the images have {' to '.join(sizes)} pixels"
    yield f"{len(survey.classes)} class(es)" if survey.classes else "no labels"
    for k, (name, n) in enumerate(survey.classes[:CLASSES]):
        yield f"  label {k}: {name}, {n:,} sample(s)"
    if len(survey.classes) > CLASSES:
        yield f"  and {len(survey.classes) - CLASSES:,} more"
    for name, words in survey.conditions:
        yield f"condition {name}: {words}"
    for note in survey.notes:
        yield f"note: {note}"
    if survey.skipped:
        yield f"{len(survey.skipped):,} image(s) cannot be read:"
        for name, reason in survey.skipped[:SHOWN]:
            yield f"  {name} {reason}"
        advice = f"fewstep data prepare {source} --on-error skip"
        yield f"training refuses them; to leave them out: {advice} --out FILE --resolution N"
    if survey.others:
        kinds = ", ".join(f"{n:,} {end or 'without suffix'}" for end, n in survey.others.items())
        yield f"other files: {kinds}"


def _draw(survey: Survey, out: Path) -> None:
    from fewstep.evaluation.pictures import drawable, picture, rows

    if not survey.shown or not drawable(survey.shape):
        print(f"no contact sheet: samples of shape {survey.shape} are no pictures")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    before = replaced(out)
    if survey.classes and len(survey.shape) == 3:
        rows(survey.shown, out, MARK)
    else:
        import torch

        everything = torch.cat([x for _, x in survey.shown])
        picture(everything, out, 8 if len(survey.shape) == 3 else None, MARK)
    count = sum(len(x) for _, x in survey.shown)
    print(f"wrote a contact sheet of {count} sample(s) to {out}{before}")
