"""The files of a tar, compressed or not, in their order; memory and unpacked sizes are bounded."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from fewstep.data.decoding import MAX_BYTES, BadFile, check_size, naming
from fewstep.data.members import MAX_RATIO

MAX_READS = 100
"""For the header of one entry."""
KEPT = 2**16
"""Bytes that stay at hand behind the position in a compressed file."""


class Member:
    """One file of a tar.

    Args:
        name: its path.
        size: in bytes, as the tar announces it.
        read: returns its content; raises ``BadFile`` if it cannot be used.
    """

    def __init__(self, name: str, size: int, read: Callable[[], bytes]) -> None:
        self.name, self.size, self._read = name, size, read

    def content(self) -> bytes:
        """The content.

        Raises:
            BadFile: it cannot be used.
        """
        return self._read()


@contextmanager
def members(path: Path, wanted: Callable[[str], int]) -> Iterator[Iterator[Member]]:
    """The files of a tar, which can be read while the block lasts.

    Args:
        path: of the tar, compressed by gzip where its name ends in ``gz``.
        wanted: up to how many bytes a file of a name is read.

    Raises:
        BadFile: the tar is damaged.
    """
    packed = path.name.lower().endswith("gz")
    with naming(str(path)), path.open("rb") as raw:
        file: Any = _Forward(raw, path) if packed else raw
        bounded: Any = _Bounded(file, path)
        archive = tarfile.open(fileobj=bounded, mode="r:")  # noqa: SIM115
        yield _members(archive, _infos(archive, file, bounded, path), wanted, path, packed)


def _members(
    archive: tarfile.TarFile,
    infos: Iterator[tarfile.TarInfo],
    wanted: Callable[[str], int],
    path: Path,
    packed: bool,
) -> Iterator[Member]:
    for info in infos:
        read = partial(_content, archive, info, f"{info.name} in {path}")
        kept = packed and info.size <= wanted(info.name)
        yield Member(info.name, info.size, _at_once(read) if kept else read)


def _at_once(read: Callable[[], bytes]) -> Callable[[], bytes]:
    """A content that is read now, because a compressed file does not go back."""
    try:
        content: bytes | BadFile = read()
    except BadFile as error:
        content = error

    def again() -> bytes:
        if isinstance(content, BadFile):
            raise content
        return content

    return again


class _Bounded:
    """A file of which nobody reads more at once than an image may have, nor for one entry often."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.seek, self.tell, self._file, self._path = file.seek, file.tell, file, path
        self.reads = 0

    def read(self, size: int = -1) -> bytes:
        # tarfile would call itself once for each header that describes another.
        self.reads += 1
        if self.reads > MAX_READS:
            raise BadFile(str(self._path), "has headers that only lead to others; it is damaged")
        # Headers in a tar can ask for any size, even a negative one, which would mean all.
        if not 0 <= size <= MAX_BYTES:
            raise BadFile(str(self._path), f"has a header of {size} bytes; it is damaged")
        return self._file.read(size)


class _Forward:
    """A compressed file that is unpacked once, and goes back by a few bytes only."""

    def __init__(self, raw: IO[bytes], path: Path) -> None:
        # A bomb unpacks to about 1000 times its size, pictures hardly grow.
        self._most = max(2**20, MAX_RATIO * path.stat().st_size)
        self._file, self._path = gzip.GzipFile(fileobj=raw), path
        self._kept, self._end, self._at = b"", 0, 0

    def tell(self) -> int:
        return self._at

    def seek(self, place: int, whence: int = 0) -> int:
        if whence or place < self._end - len(self._kept):
            raise BadFile(str(self._path), "has entries that overlap; it is damaged")
        while self._end < place and self._more(min(KEPT, place - self._end)):
            pass
        self._at = place
        return place

    def read(self, size: int) -> bytes:
        behind = self._end - self._at
        parts = [self._kept[len(self._kept) - behind :][:size]] if behind > 0 else []
        left = size - sum(map(len, parts))
        while self._at <= self._end and left > 0 and (piece := self._more(min(2**20, left))):
            parts.append(piece)
            left -= len(piece)
        content = b"".join(parts)
        self._at += len(content)
        return content

    def _more(self, size: int) -> bytes:
        piece = self._file.read(size)
        self._end += len(piece)
        self._kept = (self._kept + piece)[-KEPT:]
        if self._end > self._most:
            reason = f"unpacks to more than {MAX_RATIO} times its size; unpack it"
            raise BadFile(str(self._path), reason)
        return piece


def _infos(
    archive: tarfile.TarFile, file: IO[bytes], bounded: _Bounded, path: Path
) -> Iterator[tarfile.TarInfo]:
    last, kept = -1, vars(archive)["members"]
    with naming(str(path)):
        while (member := archive.next()) is not None:
            bounded.reads = 0
            kept.clear()  # tarfile would hold them all
            if member.offset <= last:
                raise BadFile(str(path), "has an entry of negative size; it is damaged")
            last = member.offset
            yield member
        # tarfile takes damaged headers, and a file cut between two members, for the end.
        file.seek(archive.offset)
        end = file.read(tarfile.BLOCKSIZE)
        if len(end) < tarfile.BLOCKSIZE or any(end):
            reason = "is damaged or cut short: it has no end mark; repair or remove it"
            raise BadFile(str(path), reason)
        while isinstance(file, _Forward) and file.read(KEPT):
            pass  # what was compressed has its checksum at the end


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> bytes:
    if not member.isfile() or member.issparse():
        raise BadFile(where, "is a link, a device or sparse; only plain files are read")
    check_size(member.size, where)
    bounded: Any = archive.fileobj
    bounded.reads = 0
    file = archive.extractfile(member)
    content = b"" if file is None else file.read(member.size)
    bounded.reads = 0
    if len(content) != member.size:
        raise BadFile(where, "is cut short")
    return content
