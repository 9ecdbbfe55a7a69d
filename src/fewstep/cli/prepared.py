"""``fewstep train METHOD --model PIPELINE --data IMAGES``: the teacher and its data, made once."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.errors import UsageError
from fewstep.recipes import Recipe, recipe
from fewstep.recipes.method import MethodOptions

if TYPE_CHECKING:
    from fewstep.frontends import TextReader

TEACHER, DATA, RECORD, HOLD = "teacher", "data", "prepared.json", "prepared.lock"
"""What stands in the run folder beside the run."""

SHOWN = 5
"""How many captions that are too long are shown."""


def prepared(
    first: Recipe[MethodOptions], model: str, captions: str | None, out: Path, *, dry: bool = False
) -> Recipe[MethodOptions]:
    """The recipe with the pipeline as its teacher and the encoded images as its data.

    The pipeline is imported into ``out/teacher`` (a model of the library stays where it is) and the
    images with their captions are encoded into ``out/data``, by the first process that comes; what
    is there already is kept.

    Args:
        first: whose ``--data`` names images.
        model: the folder of a pipeline of diffusers, or its name on the Hugging Face Hub; or a
            model of the library, whose data stay as they are where it has no codec and no texts.
        captions: see ``fewstep data encode --captions``.
        out: the run folder.
        dry: make nothing.

    Raises:
        UsageError: the options contradict each other, the pipeline or the images cannot be read,
            or the folder was prepared from others.
    """
    if first.start.teacher != recipe(first.name).start.teacher:
        raise UsageError(
            f"--model makes the teacher of this run, got --teacher {first.start.teacher} too; give "
            "one of them"
        )
    if not first.data.data:
        raise UsageError(f"{first.name} --model {model} needs --data: images with captions")
    options = first.data
    own = _own(model)
    if own is not None:
        given = replace(first, start=replace(first.start, teacher=model))
        ready = (Path(first.data.data) / "encoded.json").exists()
        from fewstep.frontends.chunks import ChunkCodec
        from fewstep.model_files import frontend_of

        frontend = frontend_of(own)
        if ready or frontend is None or isinstance(frontend.codec, ChunkCodec):
            if captions is not None:
                raise UsageError(f"{model} reads no captions of {first.data.data}; leave them out")
            return given
    settings = {
        "model": model,
        "data": options.data,
        "captions": captions,
        "resolution": options.resolution,
        "labels": options.labels,
        "background": options.background,
    }
    before = _before(out)
    if before is not None and before != settings:
        others = ", ".join(
            f"{k} {before.get(k)!r}" for k in settings if before.get(k) != settings[k]
        )
        raise UsageError(
            f"{out} was prepared with {others}; repeat the command as it was, or choose another "
            "--out"
        )
    if dry and before is None:
        raise UsageError(
            "--dry-run imports no pipeline and encodes nothing: leave it out, or use fewstep "
            "import and fewstep data encode first, and give --teacher"
        )
    teacher = model if own is not None else str(out / TEACHER)
    data = replace(options, data=str(out / DATA), resolution=None, background=None)
    made = replace(first, data=data, start=replace(first.start, teacher=teacher))
    made.check_options()
    if own is None:
        _check(made)
    if not dry:
        _prepare(settings, out, imports=own is None)
    return made


def _check(made: Recipe[MethodOptions]) -> None:
    """Refuse before hours of encoding what a pipeline as the teacher would be refused for after."""
    method = made.method
    if method.after is not None:
        raise UsageError(
            f"{made.name} starts from a model of {method.after}, and a pipeline is a diffusion "
            f"model; train {method.after} with --model first, and give its run as --teacher"
        )
    if method.diffusion:
        raise UsageError(
            f"{made.name} distils no teacher; import the pipeline with fewstep import, encode the "
            "data with fewstep data encode, and choose a method that distils"
        )
    if made.options.needs_pairs() and not made.arguments().get("pairs"):
        raise UsageError(
            f"{made.name} learns from pairs of noise and the teacher's samples: import the "
            "pipeline with fewstep import, make pairs with fewstep data pairs, encode the data "
            "with fewstep data encode, and give --teacher, --data and --pairs"
        )


def _before(out: Path) -> dict[str, Any] | None:
    """What the folder was prepared with, if it was."""
    path = out / RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is damaged ({error}); choose another --out") from error
    if not isinstance(record, dict):
        raise UsageError(f"{path} is damaged; choose another --out")
    return record


def _own(model: str) -> Path | None:
    """The folder of a model of this library; None where the name is that of a pipeline."""
    from fewstep.model import find

    try:
        folder = find(model)
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (UsageError, OSError, ValueError):
        return None
    return folder if isinstance(about, dict) and "denoiser" in about else None


def _prepare(settings: dict[str, Any], out: Path, imports: bool) -> None:
    from fewstep.data.captioned import opened
    from fewstep.data.shards import held
    from fewstep.encoding import encode
    from fewstep.importing import ImportOptions, import_checkpoint
    from fewstep.importing.remote import pipeline_folder
    from fewstep.model import load
    from fewstep.system.devices import usable_device
    from fewstep.system.files import LOCK, TEMPORARY, write_json

    teacher, imported = out / TEACHER, None
    names = {p.name for p in out.iterdir()} if out.exists() else set()
    own = {LOCK, HOLD, RECORD, f"{TEMPORARY}{RECORD}"}
    if not names <= own and RECORD not in names:
        raise UsageError(f"{out} is not empty and was not prepared; choose another --out")
    if not imports:
        model = load(settings["model"], device="cpu")
    elif (teacher / "config.json").exists():
        model = load(teacher, device="cpu")
    else:
        options = ImportOptions(resolution=settings["resolution"])
        imported = import_checkpoint(pipeline_folder(settings["model"]), options)
        model = imported.model
    resolution = model.shape[1]
    pictures = opened(
        settings["data"],
        captioned=model.frontend.text is not None,
        resolution=resolution,
        captions=settings["captions"],
        labels=False,  # the conditions of a pipeline are texts; folders are no classes of it
        background=settings["background"],
    )
    out.mkdir(parents=True, exist_ok=True)
    with (out / HOLD).open("a") as handle, held(handle, 0, str(out / DATA)):
        write_json(out / RECORD, settings)
        if imported is not None and not (teacher / "config.json").exists():
            print(f"importing {settings['model']} into {teacher}", file=sys.stderr)
            imported.model.save(teacher, card=f"# A teacher\n\n{imported.report.summary()}\n")
        text = model.frontend.text
        made, kept, data = encode(
            pictures,
            out / DATA,
            codec=model.frontend.images,
            text=text,
            device=usable_device(None),
        )
        assert data is not None
        print(
            f"{out / DATA}: {len(data):,} sample(s), {made} shard(s) made, {kept} kept",
            *data.notes,
            *(_too_long(text, [*pictures.texts()]) if data.about.cut and text else ()),
            sep="\n",
            file=sys.stderr,
        )


def _too_long(text: TextReader, captions: list[str]) -> list[str]:
    """Lines that show the first captions of which the end is not read."""
    places = text.cut(captions)
    lines = [f"  sample {i}: {captions[i]!r:.80}" for i in places[:SHOWN]]
    return [*lines, *([f"  and {len(places) - SHOWN} more"] if len(places) > SHOWN else [])]
