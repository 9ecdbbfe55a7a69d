"""The verbs of ``fewstep data``: check what is there, and make something to train on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.data.survey import Survey

SHOWN = 5
"""Bad images that are printed; a prepared file lists them all."""
CLASSES = 20
"""Classes that are printed."""


def prepare(
    source: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SOURCE ...")],
    /,
    *,
    out: Path,
    resolution: int,
    crop: Literal["center", "adm", "none"] = "center",
    channels: Literal[1, 3] | None = None,
    labels: str = "auto",
    on_error: Literal["refuse", "skip"] = "refuse",
    split: str = "train",
    workers: int = 0,
    background: str = "white",
    classes: int | None = None,
) -> None:
    """Write the images of any source as one verified file that training can read.

    Args:
        source: a folder or zip of images, an IDX file, a Hugging Face data set on the disk or
            hf:OWNER/NAME; or one or several shards (.tar, .tar.gz, .parquet, .npz), or a folder
            of them.
        out: the file, NAME.safetensors.
        resolution: height and width.
        crop: the central square, as ADM prepares ImageNet, or none for images that are square.
        channels: 1 or 3; by default 1 if all images are grey.
        labels: auto, none, or the column that holds them.
        on_error: what to do with an image that cannot be used.
        split: of a Hugging Face data set.
        workers: threads that decode.
        background: the colour behind transparent pixels, such as white or #ffffff.
        classes: their number, where labels are numbers; by default the numbers that occur are the
            classes.
    """
    from fewstep.data import prepare as write

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
    print(f"wrote {about.count:,} image(s) of {shape} {kinds} to {out}")
    for note in data.notes:
        print(f"note: {note}")
    if about.skipped:
        print(f"skipped {len(about.skipped):,}, all of which the file lists:")
        for name, reason in about.skipped[:SHOWN]:
            print(f"  {name} {reason}")
    for name, digest in about.sha256.items():
        print(f"sha256 of the {name}: {digest}")


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

    from fewstep.data.survey import survey, survey_of_name

    found = survey_of_name(source[0]) if len(source) == 1 else None
    found = found or survey(
        source,
        resolution=resolution,
        crop=crop,
        channels=channels,
        labels=labels,
        split=split,
        background=background,
        workers=workers,
    )
    for line in _told(found, source[0]):
        print(line)
    _draw(found, out)


def _told(found: Survey, source: str) -> Iterator[str]:
    """What a survey found, line by line."""
    shape = "x".join(map(str, found.shape))
    yield f"{found.count:,} sample(s) would be read as {shape}"
    if found.sizes:
        smallest, largest = (" x ".join(map(str, size)) for size in found.sizes)
        yield f"the images have {smallest} to {largest} pixels"
    yield f"{len(found.classes)} class(es)" if found.classes else "no labels"
    for k, (name, n) in enumerate(found.classes[:CLASSES]):
        yield f"  label {k}: {name}, {n:,} sample(s)"
    if len(found.classes) > CLASSES:
        yield f"  and {len(found.classes) - CLASSES:,} more"
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
    from fewstep.pictures import drawable, picture, rows

    if not found.shown or not drawable(found.shape):
        print(f"no contact sheet: samples of shape {found.shape} are no pictures")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    if found.classes and len(found.shape) == 3:
        rows(found.shown, out)
    else:
        import torch

        everything = torch.cat([x for _, x in found.shown])
        picture(everything, out, 8 if len(found.shape) == 3 else None)
    print(f"wrote a contact sheet of {sum(len(x) for _, x in found.shown)} sample(s) to {out}")


def pairs(
    teacher: Annotated[str, tyro.conf.arg(metavar="TEACHER")],
    /,
    *,
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])],
    out: Path,
    solver: Literal["heun", "euler", "dpm++2m"] = "heun",
    steps: int = 18,
    guidance: float | None = None,
    label: str | None = None,
    cond: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    seed: int = 0,
    shard_size: int = 1024,
    batch: int = 256,
    paths: int = 0,
    average: str | None = None,
    device: str | None = None,
) -> None:
    """Write noise and what a diffusion model makes of it, for methods that learn from such pairs.

    A killed command goes on when it is repeated. Several processes (torchrun) share the work.

    Args:
        teacher: a model folder, a run folder or a bundled name.
        n: how many.
        out: the folder.
        solver: of the model's ODE.
        steps: times at which the solver stops; 18 of Heun's method are 35 network calls.
        guidance: scale of classifier-free guidance; 1 is none. Doubles the network calls.
        label: the class of all pairs, its name or its number from 0 (the number of classes means
            none); by default the classes take turns.
        cond: a condition of all pairs, NAME=VALUE; repeat it for several. VALUE is a class's name
            or number, numbers with commas between them, or a .npy or .npz file with one row or one
            a pair.
        seed: pair i is a function of (seed, i), as sample i is.
        shard_size: pairs in a file.
        batch: pairs at a time.
        paths: states between noise and sample to store too, for students of several steps.
        average: another of the run's averages than its first.
        device: where to run; an accelerator if there is one.
    """
    from fewstep.devices import usable_device
    from fewstep.model import find, load
    from fewstep.pairs import make
    from fewstep.processes import announced

    world = announced()
    place = usable_device(device)
    if place.type == "cuda" and world.size > 1:
        place = f"cuda:{world.local}"
    model = load(teacher, average=average, device=place)
    print(f"model: {find(teacher, average)}", file=sys.stderr)
    given = model.contract.data.parse(cond, label)
    made, kept, found = make(
        model,
        out,
        n,
        solver=solver,
        steps=steps,
        guidance=guidance,
        label=given.pop("label", None),
        cond=given,
        seed=seed,
        shard_size=shard_size,
        batch=batch,
        paths=paths,
        world=world,
    )
    told = f"made {made} shard(s), kept {kept}"
    if found is None:
        print(f"{told}; process {world.rank} of {world.size} is done, others are not")
    else:
        shape = "x".join(map(str, found.shape))
        print(f"{told}; wrote {len(found):,} pair(s) of {shape} to {out}")
