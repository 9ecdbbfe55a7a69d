"""Checkpoints of other repositories become models of this library."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fewstep import hub
from fewstep.errors import UsageError
from fewstep.importing.archives import EXPECTED, Archive, open_archive
from fewstep.importing.formats import formats
from fewstep.importing.options import ImportOptions
from fewstep.importing.report import Report
from fewstep.importing.result import Imported
from fewstep.importing.single_files import refuse_single_file
from fewstep.importing.snapshots import edm2_snapshots
from fewstep.model import Model
from fewstep.models import Switched


def import_checkpoint(source: str | Path, options: ImportOptions | None = None) -> Imported:
    """Read a checkpoint of another repository; nothing in it is executed.

    Args:
        source: a file, or a folder that diffusers wrote; ``hub:OWNER/NAME[@REVISION]`` or
            ``hub:OWNER/NAME/FILE[@REVISION]`` downloads it from the Hugging Face Hub.
        options: what the checkpoint does not say.

    Returns:
        The model and a report; ``.model.save(path)`` writes a model folder.

    Raises:
        UsageError: the checkpoint is of no known format, damaged, or describes a network that the
            library does not have; or an option is needed or does not fit.
    """
    if hub.names(source):
        folder = hub.checkpoint(str(source))
        found = import_checkpoint(folder, options)
        notes = (*found.report.notes, f"downloaded as {hub.at_commit(str(source), folder)}")
        return Imported(found.model, replace(found.report, notes=notes))
    archive = open_archive(Path(source))
    refuse_single_file(archive)
    for format_ in formats():
        if format_.recognise(archive):
            return format_.read(archive, options or ImportOptions())
    if archive.kind == "folder" and edm2_snapshots(archive.source):
        raise UsageError(
            f"{archive.source} holds snapshots of EDM2's averages: give one of its files, or make "
            f"an average of any width with fewstep average {archive.source} --std WIDTH --out MODEL"
        )
    raise UsageError(
        f"{archive.source} holds {_contents(archive)}, which is no checkpoint of a known format; "
        f"{EXPECTED}"
    )


def import_pair(
    source: str | Path, below: str | Path, at: float, options: ImportOptions | None = None
) -> Imported:
    """Read the two networks of a model that changes its network at a noise level, such as TCM's.

    Args:
        source: the checkpoint of the network that answers from that level on.
        below: the checkpoint of the network that answers below it.
        at: the noise level.
        options: of both.

    Raises:
        UsageError: one of the two cannot be read, or they do not fit together.
    """
    high, low = import_checkpoint(source, options), import_checkpoint(below, options)
    if high.model.contract != low.model.contract:
        raise UsageError(
            f"{source} and {below} are no two stages of one model: they are sampled differently or "
            "generate other data"
        )
    together = Switched(low.model.denoiser, high.model.denoiser, at)
    parts = {"low.": low.report, "high.": high.report}
    report = Report(
        format=f"{high.report.format}, and below {at:g} a second such network",
        used={p + k: p + v for p, one in parts.items() for k, v in one.used.items()},
        unused={p + k: v for p, one in parts.items() for k, v in one.unused.items()},
        notes=high.report.notes,
    )
    return Imported(Model(together, high.model.contract), report)


def _contents(archive: Archive) -> str:
    content = archive.content
    if isinstance(content, dict | list):
        names = ", ".join(str(name)[:60] for name in list(content)[:6])
        kind = "the files" if archive.kind == "folder" else f"a {type(content).__name__} of"
        return f"{kind} {names or 'nothing'}" + (", ..." if len(content) > 6 else "")
    return f"a {type(content).__name__}"
