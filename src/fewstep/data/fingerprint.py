"""What data holds, apart from where it lies: by it a resumed run knows its data again.

Two places with the same fingerprint hold the same data, whether they are spelt differently, were
moved, or one is a zip of the other. Of images in a folder or zip only names, sizes and labels are
compared, because reading every file can take long; of a prepared file the
sha256 in its header; of arrays a spread of rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fewstep.data.arrays import Arrays
from fewstep.data.images import ImageFolder
from fewstep.data.pairs import Paired, Pairs
from fewstep.data.parts import Part
from fewstep.data.prepared import Prepared
from fewstep.data.specs import spec_of
from fewstep.data.stored import Stored

ROWS = 1024
"""Rows of an array that are read, spread over it."""

Fingerprint = dict[str, Any]
"""JSON: ``kind``, number of ``samples``, ``classes``, and what else is compared, by its name."""

WORDS = {
    "kind": "the kind of data",
    "samples": "the number of samples",
    "classes": "the classes",
    "names": "the names of the images",
    "sizes": "the sizes of the images' files",
    "labels": "the labels",
    "images": "the pixels",
    "values": "the values",
    "part": "which samples are held out",
}


def fingerprint(data: Any) -> Fingerprint:
    """The fingerprint of a data set.

    A data set of the user's own may have a ``fingerprint`` of its own: a string, or a method that
    returns one. Without it only the number of samples and the classes are compared.

    Args:
        data: any data set.
    """
    if isinstance(data, Part):
        return {**fingerprint(data.whole), "part": data.digest}
    spec = spec_of(data)
    prints: Fingerprint = {
        "kind": type(data).__name__,
        "samples": len(data),
        "classes": [*spec.class_names] or spec.labels,
    }
    own = getattr(data, "fingerprint", None)
    if own is not None:
        return {**prints, "values": str(own() if callable(own) else own)}
    if isinstance(data, ImageFolder):
        names, sizes = data.names, [data.members.size(name) for name in data.names]
        top = _top(names)
        prints |= {"names": _sum(name[top:] for name in names), "sizes": _sum(map(str, sizes))}
        return {**prints, **_of_labels(data.given_labels)}
    if isinstance(data, Prepared):
        return {**prints, **data.about.sha256}
    if isinstance(data, Arrays | Stored):
        stored = data.arrays()
        return {**prints, "values": _sum(_of_rows(name, stored[name]) for name in sorted(stored))}
    if isinstance(data, Pairs):
        return {**prints, "values": _sum(data.about.sha256.values())}
    if isinstance(data, Paired):
        parts = {"data": fingerprint(data.data), "pairs": fingerprint(data.pairs)}
        return {**prints, **parts}
    return prints


def content_digest(data: Any) -> str:
    """The sha256 of all that a data set holds; images are read whole, unlike for a fingerprint.

    Args:
        data: any data set.
    """
    digest = hashlib.sha256(json.dumps(fingerprint(data), sort_keys=True).encode())
    if isinstance(data, ImageFolder):
        for name in data.names:
            digest.update(hashlib.sha256(data.members.read(name)).digest())
    elif isinstance(data, Arrays | Stored):
        for array in data.arrays().values():
            for start in range(0, len(array), ROWS):
                digest.update(np.ascontiguousarray(array[start : start + ROWS]).data)
    return digest.hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """In what two fingerprints differ, a sentence each; none means that the data is the same.

    Args:
        before: the fingerprint that a run recorded.
        now: that of the data it would go on with.
    """
    if before.get("kind") != now.get("kind"):
        return (f"{WORDS['kind']}: {before.get('kind')} before, {now.get('kind')} now",)
    lines = []
    for name in dict.fromkeys((*before, *now)):
        had, has = before.get(name), now.get(name)
        if had == has:
            continue
        if isinstance(had, dict) and isinstance(has, dict):
            lines += [f"{name}: {one}" for one in differences(had, has)]
            continue
        shown = name in {"samples", "classes"}
        change = f"{_shown(had)} before, {_shown(has)} now" if shown else "not as before"
        lines.append(f"{WORDS.get(name, name)}: {change}")
    return tuple(lines)


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _top(names: Iterable[str]) -> int:
    """The length of the folder that all names begin with: a zip may hold its folder or not."""
    parts = [name.split("/")[:-1] for name in names]
    common = 0
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common += len(level[0]) + 1
    return common


def _of_labels(label: np.ndarray | None) -> Fingerprint:
    return {} if label is None else {"labels": hashlib.sha256(label.tobytes()).hexdigest()}


def _of_rows(name: str, array: np.ndarray) -> str:
    index = np.unique(np.linspace(0, len(array) - 1, min(len(array), ROWS)).astype(np.int64))
    rows = np.ascontiguousarray(array[index])
    about = json.dumps([name, str(array.dtype), list(array.shape)])
    return f"{about} {hashlib.sha256(rows.tobytes()).hexdigest()}"


def _sum(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()
