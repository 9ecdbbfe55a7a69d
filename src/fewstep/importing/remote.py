"""Pipelines by the name that they have on the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from fewstep import hub
from fewstep.errors import UsageError
from fewstep.frontends.stock import package

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def pipeline_folder(name: str) -> Path:
    """The folder of a pipeline; one that is not on this disk is downloaded into the Hub's cache.

    Args:
        name: a folder, or ``OWNER/NAME`` or ``hub:OWNER/NAME[@REVISION]`` on the Hub.

    Raises:
        UsageError: there is no such folder, and the name is none of the Hub's, or cannot be had.
    """
    if Path(name).is_dir():
        return Path(name)
    place = hub.parse(name) if hub.names(name) else None
    repository, revision = (place.repository, place.revision) if place else (name, None)
    if not NAME.fullmatch(repository):
        raise UsageError(
            f"no pipeline {name!r}: give the folder of one, or its name OWNER/NAME on the Hugging "
            "Face Hub"
        )
    library = package("huggingface_hub", f"downloading {name}")
    try:
        folder = library.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=[*hub.PIPELINE],
            ignore_patterns=[*hub.UNUSED],
        )
    except Exception as error:  # it raises all kinds
        raise UsageError(
            f"{name} is no folder here and cannot be downloaded from the Hugging Face Hub: {error}"
        ) from error
    return Path(folder)
