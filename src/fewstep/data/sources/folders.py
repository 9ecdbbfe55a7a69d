"""Images in a folder or a zip as a source."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from fewstep.core import UsageError
from fewstep.data.formats import by_suffix, is_image, no_images, passed_over
from fewstep.data.labels import member_labels
from fewstep.data.members import Members
from fewstep.data.sources.base import Item, Source


def folder(path: Path, labels: str, classes: int | None = None) -> Source:
    """The images of a folder or a zip, by their POSIX paths; labels as ``ImageFolder`` reads them.

    Raises:
        UsageError: there are none, or their labels cannot be read.
    """
    if labels not in {"auto", "none"}:
        raise UsageError(f"got labels={labels!r}; folders and zips have auto or none")
    members = Members(path)
    names = sorted(filter(is_image, members.names))
    if not names:
        raise no_images(path, members.names)
    assigned = member_labels(members, names, "none" if labels == "none" else "auto", classes)
    over = passed_over(members.names)
    notes = (*members.notes, *((over,) if over else ()), *assigned.notes)
    items, total = _items(members, assigned.names, assigned.label), len(assigned.names)
    others = by_suffix(members.names)
    return Source(items, total, assigned.class_names, lambda: notes, others, apart=path.is_dir())


def _items(members: Members, names: list[str], label: np.ndarray | None) -> Iterator[Item]:
    files = members.bare()
    for i, name in enumerate(names):
        load = partial(files.opened, name)
        yield Item(name, members.where(name), load, None if label is None else int(label[i]))
