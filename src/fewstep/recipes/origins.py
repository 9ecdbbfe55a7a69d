"""What a model is evaluated on: what the caller says, and else what its run recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.data.catalogue import entry, has_held_out
from fewstep.data.parts import share_of
from fewstep.data.prepared import SUFFIX
from fewstep.errors import UsageError
from fewstep.recipes.options import DataOptions
from fewstep.recipes.records import own_data, record_of, run_of


@dataclass(frozen=True)
class Origin:
    """What a model is evaluated on.

    Args:
        data: the name or path of its training data.
        held_out: what it never saw: a share of this data, the path of other data, or None.
        background: colour behind transparent pixels of images.
        recorded: the fingerprint of the held-out share in training, where a run recorded it.
    """

    data: str
    held_out: float | str | None
    background: str | None = None
    recorded: Mapping[str, Any] | None = None


def origin(model: str, data: str | None, held_out: float | str | None) -> Origin:
    """What a model is evaluated on.

    Args:
        model: a model folder, a run folder or a bundled name.
        data: the name or path of its training data; None is that of its run.
        held_out: what it never saw; None is what its run held out.

    Raises:
        UsageError: nothing says what the model learned from, or it was trained on the share that is
            to be held out.
    """
    try:
        own = own_data(model)
    except UsageError:
        if data is None:
            raise
        return Origin(data, held_out)
    if data is not None and not _same(data, own.data):
        images = entry(data) is None and Path(data).suffix != SUFFIX
        return Origin(data, held_out, own.background if images else None)
    share, before = share_of(held_out), share_of(own.held_out)
    if share is not None and share != before and not has_held_out(own.data):
        advice = "" if before is None else ", or leave out --held-out"
        raise UsageError(
            f"{model} was trained {_on(own)}, so that it has seen samples of a share of {share:g}; "
            f"give other data with --held-out PATH{advice}"
        )
    wanted = own.held_out if held_out is None else held_out
    run = run_of(model) if share_of(wanted) is not None else None
    recorded = {} if run is None else record_of(run).get("held_out") or {}
    return Origin(data or own.data, wanted, own.background, recorded.get("fingerprint"))


def other_data(model: str, data: str) -> str | None:
    """The data that a model learned from, where that is other data; None where nobody knows.

    Args:
        model: a model folder, a run folder or a bundled name.
        data: the name or path of the data that it is compared with.
    """
    try:
        own = own_data(model)
    except UsageError:  # its data is not on record
        return None
    return None if _same(data, own.data) else own.data


def seen_before(model: str, data: str, held_out: float | str | None) -> str | None:
    """A sentence where a model was trained on a share of data that is held out now.

    Args:
        model: a model folder, a run folder or a bundled name.
        data: the name or path of the data that the share is of.
        held_out: the share; None and other data are not compared.

    Raises:
        UsageError: the share does not lie in (0, 0.5].
    """
    share = share_of(held_out)
    try:
        own = own_data(model)
    except UsageError:  # nobody knows what it has seen
        return None
    if share is None or not _same(data, own.data):
        return None
    # What a smaller share holds out, a larger one holds out too.
    before = share_of(own.held_out)
    if before is not None and before >= share:
        return None
    return f"{model} was trained {_on(own)}, so that it has seen samples which are held out now"


def _on(own: DataOptions) -> str:
    """On which part of its data a model was trained, in words."""
    share = share_of(own.held_out)
    return f"on all of {own.data}" if share is None else f"with --held-out {share:g}"


def _same(data: str, other: str) -> bool:
    """Whether two names or paths of data mean the same."""
    if Path(data).exists() and Path(other).exists():
        return Path(data).resolve() == Path(other).resolve()
    return data.replace("_", "-") == other.replace("_", "-")
