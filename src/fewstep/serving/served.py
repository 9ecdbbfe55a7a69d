"""The models of a server, by the names that its clients use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fewstep import hub
from fewstep.errors import UsageError
from fewstep.model import Model, find, load


@dataclass(frozen=True)
class Served:
    """A model that is served.

    Args:
        name: that clients use; no path.
        model: itself.
        digest: sha256 of its weights.
        engine: what runs its network.
    """

    name: str
    model: Model
    digest: str
    engine: str = "eager"


def open_models(
    sources: Sequence[str], *, engine: str = "eager", device: str | None = None
) -> dict[str, Served]:
    """The models that ``fewstep serve`` names, each under a name of its own.

    Args:
        sources: model folders, run folders, bundled names or models on the Hub.
        engine: see :func:`fewstep.model.load`.
        device: likewise.

    Raises:
        UsageError: there is none, or one cannot be loaded.
    """
    if not sources:
        raise UsageError("got no model to serve; name one or several, such as digits-cd")
    served: dict[str, Served] = {}
    for source in sources:
        folder = find(source)
        loaded = load(folder, device=device, engine=engine)
        name = _name(source, served)
        served[name] = Served(name, loaded, _digest(folder), engine)
    return served


def _name(source: str, taken: dict[str, Served]) -> str:
    """The last part of a path that says something; a second one of that name gets a number."""
    if hub.names(source):
        name = source
    else:
        parts = [part for part in Path(source).resolve().parts if part != "model"]
        name = parts[-1] if Path(source).exists() and len(parts) > 1 else source
    plain, count = name, 2
    while name in taken:
        name, count = f"{plain}-{count}", count + 1
    return name


def _digest(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["sha256"])
