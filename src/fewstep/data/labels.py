"""Classes of images: from ``dataset.json`` or the names of sub-folders, or as they come."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from fewstep.core import UsageError
from fewstep.data.decoding import BadFile
from fewstep.data.formats import is_hidden
from fewstep.data.members import Members
from fewstep.data.naming import in_order, shortened
from fewstep.errors import in_words

MAX_CLASSES = 2**20
MAX_NAME = 200
JSON = "dataset.json"
SPLITS = {
    *("train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing"),
    *("held_out", "held-out", "holdout"),
}
"""Names of folders that hold parts of a data set, not classes."""


@dataclass(frozen=True)
class Assigned:
    """Which images are read, and their classes.

    Args:
        names: of the images.
        label: int64, one an image, or None.
        class_names: one a class.
        notes: what users have to notice.
    """

    names: list[str]
    label: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Labels:
    """The labels of images as they come: all numbers, all names, or none at all.

    Args:
        class_names: of labels that are numbers, if they have names.
        classes: their number, where labels are numbers without names; by default those that occur
            are the classes.
    """

    def __init__(
        self, class_names: tuple[str, ...] | None = None, classes: int | None = None
    ) -> None:
        self._class_names = class_names or None
        if classes is not None and self._class_names is None:
            self._class_names = tuple(map(str, range(classes)))
        if classes is not None and len(self._class_names or ()) != classes:
            raise UsageError(
                f"got classes={classes}, but the source has {len(class_names or ())} classes with "
                "names; leave it out"
            )
        self._labels: list[Any] = []

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
        if self._labels and type(label) is not type(self._labels[0]):
            raise BadFile(
                where, f"has the label {label!r:.80}, the first image {self._labels[0]!r:.80}"
            )

    def add(self, label: int | str | None) -> None:
        """Take a label that was checked."""
        self._labels.append(label)

    def result(self) -> Assigned:
        """The labels and the names of their classes; no names of images."""
        if self._labels[0] is None:
            return Assigned([])
        if isinstance(self._labels[0], str):
            return by_name(self._labels)
        label = np.array(self._labels, np.int64)
        if self._class_names is None:
            return by_number(label)
        return Assigned([], label, self._class_names, empty(label, self._class_names))


def by_name(given: Sequence[str], names: Sequence[str] = ()) -> Assigned:
    """Labels that are names; the classes are in the order of :func:`in_order`."""
    classes, notes = in_order(given)
    index = {name: k for k, name in enumerate(classes)}
    return Assigned([*names], np.array([index[name] for name in given], np.int64), classes, notes)


def by_number(given: np.ndarray, names: Sequence[str] = (), classes: int | None = None) -> Assigned:
    """Labels that are numbers: those that occur are the classes, unless their number is given."""
    if classes is not None:
        every = tuple(map(str, range(classes)))
        return Assigned([*names], given, every, empty(given, every))
    values, label = np.unique(given, return_inverse=True)
    found = tuple(map(str, values.tolist()))
    label = label.reshape(-1).astype(np.int64)
    if len(values) == values[-1] + 1:
        return Assigned([*names], label, found)
    note = (
        f"the labels {shortened(found)} do not count from 0 without gaps: they are classes 0 to "
        f"{len(found) - 1} here, in that order and under those names"
    )
    return Assigned([*names], label, found, (note,))


def empty(label: np.ndarray, classes: Sequence[str]) -> tuple[str, ...]:
    """A note on the classes that no image has, if there are such."""
    counts = np.bincount(label, minlength=len(classes))
    missing = [name for name, n in zip(classes, counts, strict=True) if not n]
    note = f"{len(missing)} of {len(classes)} class(es) have no image: {shortened(missing)}"
    return (note,) if missing else ()


def member_labels(
    members: Members,
    names: Sequence[str],
    labels: Literal["auto", "none"],
    classes: int | None = None,
) -> Assigned:
    """The images of a folder or zip that are read, and their classes.

    ``auto`` reads the ``dataset.json`` beside all images: at the root, or in the folder common to
    all. Without one, the sub-folders of that common folder are the classes, in the order of
    :func:`in_order`; a few images beside at least two of them are passed over.

    Args:
        members: the files.
        names: of the images.
        labels: ``auto`` or ``none``.
        classes: of the numbers in ``dataset.json``; by default those that occur.

    Raises:
        UsageError: ``dataset.json`` cannot be used, the sub-folders are the parts of a data set, or
            most images lie beside the sub-folders.
    """
    common = _common(names)
    places = [_joined(*common[:k], JSON) for k in range(len(common) + 1)]
    place = next((place for place in places if place in members.names), None)
    if place is not None:
        if labels == "none":
            return Assigned([*names], notes=(f"the labels of {place} are not read",))
        return _json_labels(members, place, names, classes)
    notes = tuple(
        f"{name} is not read: it does not lie beside all images"
        for name in sorted(members.names)
        if name.rpartition("/")[2] == JSON
    )
    assigned = _folder_labels(members.path, names, common, labels)
    if assigned.class_names:
        notes += _folder_notes(members, names, len(common), assigned.class_names)
    return Assigned(assigned.names, assigned.label, assigned.class_names, (*notes, *assigned.notes))


def _json_labels(
    members: Members, place: str, names: Sequence[str], classes: int | None
) -> Assigned:
    where, top = members.where(place), place.removesuffix(JSON)
    expected = 'expected {"labels": [["image path", class], ...]} or {"labels": null}'
    text = members.read(place)
    try:
        entries = json.loads(text)["labels"]
        given = None if entries is None else dict(entries)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UsageError(f"{where} cannot be used ({in_words(error)}); {expected}") from error
    if given is None:
        return Assigned([*names], notes=(f"{place} says that the images have no labels",))
    label = np.empty(len(names), np.int64)
    for i, name in enumerate(names):
        inner = name.removeprefix(top)
        key = inner if inner in given else name
        if key not in given:
            raise UsageError(f"{where} has no label for {inner}; add it, or pass labels=none")
        one = given[key]
        if type(one) is not int or not 0 <= one < (classes or MAX_CLASSES):
            wanted = f"expected an integer in [0, {classes or MAX_CLASSES})"
            raise UsageError(f"{where} gives {inner} the label {one!r}; {wanted}")
        label[i] = one
    return by_number(label, names, classes)


def _folder_labels(
    path: Path, names: Sequence[str], common: Sequence[str], labels: Literal["auto", "none"]
) -> Assigned:
    depth = len(common)
    kinds = [_class_of(name, depth) for name in names]
    folders = sorted({kind for kind in kinds if kind is not None})
    if len(folders) > 1 and all(name.lower() in SPLITS for name in folders):
        _refuse_parts(path, _joined(*common), folders)
    if labels == "none":
        notes = f"the folders {shortened(folders)} are not read as classes"
        return Assigned([*names], notes=(notes,) if len(folders) > 1 else ())
    loose = [name for name, kind in zip(names, kinds, strict=True) if kind is None]
    if not folders:
        return Assigned([*names])
    where = f"{len(loose)} image(s), such as {loose[0]}, lie" if loose else ""
    if len(folders) == 1 and loose:
        notes = f"no labels are read, as {where} beside the only folder of images, {folders[0]}"
        return Assigned([*names], notes=(notes,))
    if 2 * len(loose) > len(names):
        raise UsageError(
            f"{where} beside the folders {shortened(folders)} of {path}, which hold "
            f"{len(names) - len(loose)}: put each into the folder of its class, or all into one "
            "folder to learn without labels"
        )
    kept = [(name, kind) for name, kind in zip(names, kinds, strict=True) if kind is not None]
    assigned = by_name([kind for _, kind in kept], [name for name, _ in kept])
    notes = (f"{where} beside the class folders and are passed over",) if loose else ()
    return Assigned(assigned.names, assigned.label, assigned.class_names, (*notes, *assigned.notes))


def _folder_notes(
    members: Members, names: Sequence[str], depth: int, classes: Sequence[str]
) -> tuple[str, ...]:
    """What is to be known of folders that are no classes, or are classes and may be none."""
    notes = []
    above = PurePosixPath(names[0]).parts[:depth]
    beside = [n for n in members.names if PurePosixPath(n).parts[:depth] == above]
    held = {_class_of(name, depth) for name in beside if not is_hidden(name)}
    without = sorted(name for name in held if name is not None and name not in classes)
    if without:
        notes.append(f"the folder(s) {shortened(without)} hold no image that is read: no classes")
    inside = {
        PurePosixPath(name).parts[: depth + 2] for name in names if _class_of(name, depth + 1)
    }
    split = sorted("/".join(one) for one in inside if sum(o[:-1] == one[:-1] for o in inside) > 1)
    if split:
        notes.append(f"folders inside of a class folder, such as {split[0]}, are no classes")
    parts = [name for name in classes if name.lower() in SPLITS]
    if parts:
        notes.append(
            f"the folder(s) {shortened(parts)} are classes here, beside others; if they are parts "
            "of a data set, name one of them"
        )
    return tuple(notes)


def _common(names: Sequence[str]) -> tuple[str, ...]:
    """The folder that all images lie in, as the parts of its path."""
    parents = [PurePosixPath(name).parent.parts for name in names]
    shared = takewhile(lambda level: len(set(level)) == 1, zip(*parents, strict=False))
    return tuple(level[0] for level in shared)


def _class_of(name: str, depth: int) -> str | None:
    parts = PurePosixPath(name).parent.parts
    return parts[depth] if len(parts) > depth else None


def _joined(*parts: str) -> str:
    return PurePosixPath(*parts).as_posix() if parts else ""


def _refuse_parts(path: Path, common: str, folders: Sequence[str]) -> None:
    top = path / common if common else path
    first = next((name for name in folders if name.lower().startswith("train")), folders[0])
    other = next(name for name in folders if name != first)
    unpack = "" if path.is_dir() else "unpack it, then "
    raise UsageError(
        f"{top} holds {shortened(folders)}, which are parts of a data set and no classes; {unpack}"
        f"name one of them: {top / first} to learn from, {top / other} to judge with (--held-out)"
    )
