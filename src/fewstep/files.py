"""Files that are whole or absent: written beside their place, flushed, then renamed into it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fewstep.errors import UsageError

TEMPORARY = ".new-"
"""Prefix of a name while it is being written."""

STALE = ".old-"
"""Prefix of a folder's name while it is being replaced or deleted."""

LOCK = ".lock"
"""In a folder in which one process works at a time."""


@contextmanager
def locked(folder: Path, busy: str) -> Iterator[None]:
    """Work in a folder as the only process; the lock goes with it, however that ends.

    Raises:
        UsageError: ``busy``: another process does.
    """
    with (folder / LOCK).open("w") as handle:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(busy) from error
        yield


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; it takes ``path``'s place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{TEMPORARY}{path.name}")
    stale = path.with_name(f"{STALE}{path.name}")
    _restore(stale, path)
    for leftover in (fresh, stale):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir()
    try:
        yield fresh
        for written in (*fresh.rglob("*"), fresh):
            flush(written)
        if path.exists():
            path.rename(stale)
        fresh.rename(path)
        flush(path.parent)
    finally:
        _restore(stale, path)
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(stale, ignore_errors=True)


def drop(folder: Path) -> None:
    """Delete a folder, which no longer has its name when its first file goes."""
    stale = folder.with_name(f"{STALE}{folder.name}")
    folder.rename(stale)
    shutil.rmtree(stale)


def tidy(folder: Path) -> None:
    """Delete the folders in ``folder`` that killed processes left half written or half deleted."""
    for prefix in (TEMPORARY, STALE):
        for leftover in folder.glob(f"{prefix}*"):
            shutil.rmtree(leftover)


def _restore(stale: Path, path: Path) -> None:
    """Undo the first of the two renames if the second did not follow."""
    if stale.exists() and not path.exists():
        stale.rename(path)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write; it takes ``path``'s place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays, because writers choose a format by it.
    fresh = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        yield fresh
        flush(fresh)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Ask the disk to keep a file or a folder's entries."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Readable JSON, whole or absent."""
    with whole_file(path) as fresh:
        fresh.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def sha256(data: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()
