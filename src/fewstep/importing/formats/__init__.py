"""Formats of checkpoints, one file each: how a format is recognised, and how it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fewstep.importing.archives import Archive
from fewstep.importing.options import ImportOptions
from fewstep.importing.result import Imported


@dataclass(frozen=True)
class Format:
    """A format of checkpoints.

    Args:
        name: of the format, for people.
        recognise: whether an archive is of this format; it reads no tensor.
        read: makes a model of such an archive.
    """

    name: str
    recognise: Callable[[Archive], bool]
    read: Callable[[Archive, ImportOptions], Imported]


def formats() -> tuple[Format, ...]:
    """All formats, in the order in which they are tried."""
    from fewstep.importing.formats import (
        class_pipelines,
        ctm,
        diffusers,
        dit,
        edm,
        edm2,
        edm2_state,
        fastgen,
        openai,
        pipelines,
        policy,
    )

    modules = (
        edm,
        edm2,
        edm2_state,
        openai,
        ctm,
        fastgen,
        dit,
        policy,
        class_pipelines,
        pipelines,
        diffusers,
    )
    return tuple(module.FORMAT for module in modules)
