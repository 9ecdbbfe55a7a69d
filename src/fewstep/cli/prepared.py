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

    The pipeline is imported into ``out/teacher`` and the images with their captions are encoded
    into ``out/data``, by the first process that comes; what is there already is kept.

    Args:
        first: whose ``--data`` names images.
        model: the folder of a pipeline of diffusers, or its name on the Hugging Face Hub.
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
    if not dry:
        _prepare(settings, out)
    data = replace(options, data=str(out / DATA), resolution=None, background=None)
    return replace(first, data=data, start=replace(first.start, teacher=str(out / TEACHER)))


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


def _prepare(settings: dict[str, Any], out: Path) -> None:
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
    if (teacher / "config.json").exists():
        model = load(teacher, device="cpu")
    else:
        options = ImportOptions(resolution=settings["resolution"])
        imported = import_checkpoint(pipeline_folder(settings["model"]), options)
        model = imported.model
    resolution = model.shape[1]
    pictures = opened(
        settings["data"],
        captioned=True,
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
