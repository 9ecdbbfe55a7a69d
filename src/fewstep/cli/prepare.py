"""``fewstep data prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fewstep.option_kinds import Whole, optional

if TYPE_CHECKING:
    pass


SHOWN = 5
"""Bad images that are printed; a prepared file lists them all."""


def prepare(
    source: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SOURCE ...")],
    /,
    *,
    out: Path,
    resolution: int,
    crop: Literal["center", "adm", "none"] = "center",
    channels: Annotated[Literal[1, 3] | None, optional("{1,3}")] = None,
    labels: str = "auto",
    on_error: Literal["refuse", "skip"] = "refuse",
    split: str = "train",
    workers: int = 0,
    background: str = "white",
    classes: Whole = None,
) -> None:
    """Write the images of any source as one verified file that training can read.

    Args:
        source: a folder or zip of images, an IDX file, a Hugging Face data set on the disk or
            hf:OWNER/NAME; or one or several shards (.tar, .tar.gz, .parquet, .npz), or a folder
            of them.
        out: the file that is written, NAME.safetensors.
        resolution: height and width to which the images are cropped and resized.
        crop: center cuts out the central square and resizes it, adm resizes first and cuts then, as
            ImageNet is prepared for ADM, and none takes only images that are square.
        channels: 1 or 3; by default 1 if all images are grey.
        labels: where classes come from: auto, none, or the column that holds them.
        on_error: what to do with an image that cannot be used.
        split: the split of a Hugging Face data set, such as train.
        workers: the number of processes that decode the images of a folder, and of threads for
            other sources.
        background: the colour behind transparent pixels, such as white or #ffffff.
        classes: the number of classes, where labels are numbers; by default the numbers that occur
            are the classes.
    """
    from fewstep.cli.values import replaced
    from fewstep.data import prepare as write

    before = replaced(out)
    data = write(
        source,
        out,
        resolution=resolution,
        crop=crop,
        channels=channels,
        labels=labels,
        on_error=on_error,
        split=split,
        workers=workers,
        background=background,
        classes=classes,
    )
    about = data.about
    kinds = f"in {about.labels} classes" if about.labels else "without labels"
    shape = "x".join(map(str, about.shape))
    print(f"wrote {about.count:,} image(s) of {shape} {kinds} to {out}{before}")
    for note in data.notes:
        print(f"note: {note}")
    if about.skipped:
        print(f"skipped {len(about.skipped):,}, all of which the file lists:")
        for name, reason in about.skipped[:SHOWN]:
            print(f"  {name} {reason}")
    for name, digest in about.sha256.items():
        print(f"sha256 of the {name}: {digest}")
