"""Files that are whole or absent: written beside their place, flushed, then renamed into it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from fewstep.errors import UsageError

TEMPORARY = ".new-"
"""Prefix of a name while it is being written."""

STALE = ".old-"
"""Prefix of a folder's name while it is being replaced or deleted."""

LOCK = ".lock"
"""In a folder in which one process works at a time."""


_BUSY = {errno.EACCES, errno.EAGAIN}
"""What the system says of a lock that another process holds."""

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
"""What a file system without locks says."""

_NO_FLUSH = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
"""What a file system says that cannot flush a file or a folder."""

_warned: set[str] = set()


@contextmanager
def locked(folder: Path, busy: str) -> Iterator[None]:
    """Work in a folder as the only process; the lock goes with it, however that ends.

    Where the file system has no locks, this is said once and the work goes on.

    Raises:
        UsageError: ``busy``: another process does.
    """
    with (folder / LOCK).open("w") as handle:
        if not lock(handle):
            raise UsageError(busy)
        yield


def lock(handle: Any, byte: int = 0, length: int = 0, *, wait: bool = False) -> bool:
    """Lock a part of a file for this process.

    Args:
        handle: an open file.
        byte: where the part begins.
        length: its length; 0 is all that follows.
        wait: until another process lets go of it.

    Returns:
        Whether the work may go on: False where another process holds the lock.
    """
    module = _locks()
    if module is None:
        _warn(f"{handle.name}: this system has no file locks; start one process here at a time")
        return True
    try:
        module.lockf(handle, module.LOCK_EX | (0 if wait else module.LOCK_NB), length, byte)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        if error.errno not in _NO_LOCKS:
            raise
        _warn(
            f"{Path(handle.name).parent}: this file system has no locks ({error.strerror}); start "
            "one process here at a time"
        )
    return True


def unlock(handle: Any, byte: int = 0, length: int = 0) -> None:
    """Let go of what :func:`lock` locked."""
    module = _locks()
    if module is None:
        return
    try:
        module.lockf(handle, module.LOCK_UN, length, byte)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _locks() -> Any:
    """The module of locks; None where the system has none, as Windows."""
    try:
        return import_module("fcntl")
    except ImportError:
        return None


def _warn(text: str) -> None:
    """Say something once in a process."""
    if text not in _warned:
        _warned.add(text)
        print(text, file=sys.stderr, flush=True)


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


def check_replaceable(path: Path, names: Collection[str], mark: str) -> None:
    """Refuse to replace anything but an earlier folder of the same kind, or an empty one.

    Args:
        path: the folder that will be written.
        names: of all that such a folder holds.
        mark: the file by which it is known.

    Raises:
        UsageError: ``path`` is a file, or a folder that holds something else, which would be lost.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise UsageError(f"{path} is a file; choose another folder")
    entries = sorted(one.name for one in path.iterdir())
    foreign = [name for name in entries if name not in names]
    if entries and (foreign or mark not in entries):
        lost = (foreign or entries)[0]
        raise UsageError(
            f"{path} holds {lost!r}, which writing here would delete; choose another folder"
        )


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
    """Ask the disk to keep a file or a folder's entries.

    Where the file system cannot, this is said once, because a power cut may then lose files.
    """
    if os.name == "nt" and path.is_dir():
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise
        _warn(
            f"this file system cannot flush what is written ({error.strerror}); a power cut may "
            "lose the newest files"
        )
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Readable JSON, whole or absent."""
    with whole_file(path) as fresh:
        fresh.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def sha256(data: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()
