"""Classes of images: from ``dataset.json`` or the names of sub-folders, or as they come."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np

from fewstep.core import UsageError
from fewstep.data.decoding import BadFile
from fewstep.data.members import Members

MAX_CLASSES = 2**20
MAX_NAME = 200


class Labels:
    """The labels of images as they come: all numbers, all names, or none at all.

    Args:
        class_names: of labels that are numbers, if they have names.
    """

    def __init__(self, class_names: tuple[str, ...] | None = None) -> None:
        self._class_names = class_names or None
        self._found: list[Any] = []

    def check(self, label: Any, where: str) -> None:
        """Refuse a label that does not go with those before.

        Raises:
            BadFile: it is of another kind, or no class.
        """
        top = MAX_CLASSES if self._class_names is None else len(self._class_names)
        named = type(label) is str and len(label) <= MAX_NAME
        if label is not None and type(label) is not int and not named:
            raise BadFile(where, f"has the label {label!r:.80}; expected a number or a name")
        if isinstance(label, int) and not 0 <= label < top:
            raise BadFile(
                where,
                f"has the label {label}; expected an integer in [0, {top}): mend it, or pass "
                "labels=none",
            )
        if self._found and type(label) is not type(self._found[0]):
            raise BadFile(
                where, f"has the label {label!r:.80}, the first image {self._found[0]!r:.80}"
            )

    def add(self, label: int | str | None) -> None:
        """Take a label that was checked."""
        self._found.append(label)

    def result(self) -> tuple[np.ndarray | None, tuple[str, ...]]:
        """int64, one each, or None; and the names of the classes. Names are sorted."""
        if self._found[0] is None:
            return None, ()
        if isinstance(self._found[0], str):
            names = sorted(set(self._found))
            index = {name: k for k, name in enumerate(names)}
            return np.array([index[name] for name in self._found], np.int64), tuple(names)
        label = np.array(self._found, np.int64)
        return label, self._class_names or tuple(str(k) for k in range(label.max() + 1))


def member_labels(
    members: Members, names: Sequence[str], labels: Literal["auto", "none"]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels, int64 of the length of ``names``, or None; and the names of the classes.

    ``auto`` reads ``dataset.json`` at the root; without one, if every image lies in a sub-folder
    of the folder common to all, those sub-folders, sorted, are the classes.

    Raises:
        UsageError: ``dataset.json`` cannot be used.
    """
    if labels == "none":
        return None, ()
    if "dataset.json" in members.names:
        return _json_labels(members, names)
    return _folder_labels(names)


def _json_labels(
    members: Members, names: Sequence[str]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    where = members.where("dataset.json")
    expected = 'expected {"labels": [["image path", class], ...]} or {"labels": null}'
    text = members.read("dataset.json")
    try:
        entries = json.loads(text)["labels"]
        given = None if entries is None else dict(entries)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UsageError(f"{where} cannot be used ({error!r}); {expected}") from error
    if given is None:
        return None, ()
    for name in names:
        if name not in given:
            raise UsageError(f"{where} has no label for {name}; add it, or pass labels=none")
        label = given[name]
        if type(label) is not int or not 0 <= label < MAX_CLASSES:
            wanted = f"expected an integer in [0, {MAX_CLASSES})"
            raise UsageError(f"{where} gives {name} the label {label!r}; {wanted}")
    label = np.array([given[name] for name in names], np.int64)
    return label, tuple(str(k) for k in range(label.max() + 1))


def _folder_labels(names: Sequence[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    parents = [PurePosixPath(name).parent.parts for name in names]
    shared = takewhile(lambda level: len(set(level)) == 1, zip(*parents, strict=False))
    common = len(list(shared))
    if any(len(parts) == common for parts in parents):
        return None, ()
    classes = sorted({parts[common] for parts in parents})
    index = {name: k for k, name in enumerate(classes)}
    return np.array([index[parts[common]] for parts in parents], np.int64), tuple(classes)
