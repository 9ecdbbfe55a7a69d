"""What ``fewstep data prepare`` reads: one file a kind of source."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from fewstep.core import UsageError
from fewstep.data.formats import is_image
from fewstep.data.sources.arrays import idx, npz
from fewstep.data.sources.base import Item, Source
from fewstep.data.sources.folders import folder
from fewstep.data.sources.shards import tar
from fewstep.data.sources.tables import disk, hub, hub_digest, parquet

__all__ = ["HUB", "Item", "Source", "digest_of", "has_splits", "needs_preparing", "open_source"]

HUB = "hf:"
"""Prefix of a data set's name on the Hugging Face Hub."""

SHARDS: dict[str, Callable[[list[Path], str, str], Source]] = {
    ".tar": tar,
    ".tar.gz": tar,
    ".tgz": tar,
    ".parquet": parquet,
    ".npz": npz,
}
"""Readers of files of which several make a data set, by suffix."""


def open_source(
    given: Sequence[str],
    labels: str,
    split: str,
    classes: int | None = None,
    captions: str = "none",
) -> Source:
    """The images of a source.

    Args:
        given: one folder, zip, IDX file, Hugging Face data set on the disk or ``hf:OWNER/NAME``;
            or one or several shards of one kind, or a folder of them.
        labels: ``auto``, ``none`` or the name of a column.
        split: of a Hugging Face data set.
        classes: of the numbers in a ``dataset.json``; by default those that occur.
        captions: of shards and tables: ``auto``, ``none`` or the name of a column.

    Raises:
        UsageError: it does not exist, is of no known kind, or cannot be read.
    """
    if len(given) == 1 and given[0].startswith(HUB):
        return hub(_hub_name(given[0]), labels, split, captions)
    paths = [Path(one) for one in given]
    for path in paths:
        if not path.exists():
            raise UsageError(
                f"{path} does not exist; a data set of the Hugging Face Hub is hf:OWNER/NAME"
            )
    shards = _shards(paths)
    if shards:
        return SHARDS[_kind(shards[0])](shards, labels, captions)
    if len(paths) != 1:
        raise UsageError(
            f"got {len(paths)} sources; only shards of one kind ({' '.join(SHARDS)}) can be "
            "several: prepare the others one by one"
        )
    path = paths[0]
    if _is_datasets(path):
        return disk(path, labels, split, captions)
    if _is_idx(path):
        return idx(path, labels)
    return folder(path, labels, classes)


def needs_preparing(path: str) -> bool:
    """Whether this is a source that training does not read itself."""
    if path.startswith(HUB):
        return True
    place = Path(path)
    return bool(_shards([place])) or _is_datasets(place) or _is_idx(place)


def has_splits(path: str) -> bool:
    """Whether this is a source of which a split is read: a Hugging Face data set."""
    return path.startswith(HUB) or _is_datasets(Path(path))


def digest_of(given: Sequence[str], split: str) -> str:
    """The sha256 of the files of a source that needs preparing, in their order.

    Args:
        given: see :func:`open_source`.
        split: of a Hugging Face data set.
    """
    if given[0].startswith(HUB):
        return hub_digest(_hub_name(given[0]), split)
    paths = [Path(one) for one in given]
    top = paths[0]
    if _is_datasets(top):
        top = top / split if (top / "dataset_dict.json").is_file() else top
        files = sorted(file for file in top.rglob("*") if file.is_file())
    else:
        files = _shards(paths) or paths
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _hub_name(given: str) -> str:
    name = given.removeprefix(HUB)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise UsageError(f"got {given}; expected hf:OWNER/NAME")
    return name


def _shards(paths: Sequence[Path]) -> list[Path]:
    """The shards given, or those of the one folder given if it holds no images; else none."""
    if len(paths) == 1 and paths[0].is_dir():
        top = paths[0]
        paths = sorted(file for file in top.iterdir() if _kind(file) and file.is_file())
        if not paths or any(is_image(file.name) for file in top.rglob("*")):
            return []
    kinds = {_kind(path) for path in paths}
    if "" in kinds or any(not path.is_file() for path in paths):
        return []
    if len(kinds) > 1:
        raise UsageError(f"got shards of several kinds, {' '.join(sorted(kinds))}; give one kind")
    return list(paths)


def _kind(path: Path) -> str:
    """The key of ``SHARDS`` in which a name ends, or nothing."""
    return next((end for end in SHARDS if path.name.lower().endswith(end)), "")


def _is_datasets(path: Path) -> bool:
    state = (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
    return state or (path / "dataset_dict.json").is_file()


def _is_idx(path: Path) -> bool:
    return path.is_file() and "-ubyte" in path.name
