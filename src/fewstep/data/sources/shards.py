"""WebDataset shards: tar files in which neighbours of one name make a sample.

``a/000.jpg`` and ``a/000.cls`` (a number) or ``a/000.json`` (an object with the label) are one
sample: its key is the path up to the first dot of the file's name. Nothing is ever extracted to
the disk, so that paths and links in a shard have no power.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import IO, Any

from fewstep.data.decoding import (
    MAX_BYTES,
    SUFFIXES,
    BadFile,
    check_size,
    is_image,
    naming,
    opened,
)
from fewstep.data.sources.base import Item, Source, bad

MAX_TEXT = 2**20
MAX_FILES = 64
"""Of one sample."""


def tar(paths: Sequence[Path], labels: str) -> Source:
    """The images of shards, in the order in which they lie there.

    A shard that turns out to be damaged counts as one bad image after those before the damage.

    Args:
        paths: of the shards.
        labels: ``auto`` takes the number in ``.cls``, else ``label`` in ``.json``; another name
            takes that one of ``.json``; ``none`` takes none.
    """
    return Source(chain.from_iterable(_shard(path, labels) for path in paths), None)


def _shard(path: Path, labels: str) -> Iterator[Item]:
    try:
        with naming(str(path)), path.open("rb") as file:
            bounded: Any = _Bounded(file, path)
            archive = tarfile.open(fileobj=bounded, mode="r:")  # noqa: SIM115
            for sample in _samples(archive, file, path):
                yield from _items(archive, sample, path, labels)
    except BadFile as error:
        yield bad(path.name, error)


class _Bounded:
    """A file of which nobody reads more at once than an image may have."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.seek, self.tell, self._file, self._path = file.seek, file.tell, file, path

    def read(self, size: int = -1) -> bytes:
        # Headers in a tar can ask for any size, even a negative one, which would mean all.
        if not 0 <= size <= MAX_BYTES:
            raise BadFile(str(self._path), f"has a header of {size} bytes; it is damaged")
        return self._file.read(size)


def _samples(
    archive: tarfile.TarFile, file: IO[bytes], path: Path
) -> Iterator[list[tarfile.TarInfo]]:
    """Neighbours of one key; what is wrong behind the last sample is told after it."""
    sample: list[tarfile.TarInfo] = []
    members, damage = _members(archive, file, path), None
    while True:
        try:
            member = next(members, None)
        except BadFile as error:
            member, damage = None, error
        if sample and (member is None or _key(member) != _key(sample[0])):
            yield sample
            sample = []
        if member is None:
            break
        sample.append(member)
        if len(sample) > MAX_FILES:
            raise BadFile(str(path), f"has over {MAX_FILES} files of one name; rename them")
    if damage is not None:
        raise damage


def _members(archive: tarfile.TarFile, file: IO[bytes], path: Path) -> Iterator[tarfile.TarInfo]:
    last, kept = -1, vars(archive)["members"]
    with naming(str(path)):
        while (member := archive.next()) is not None:
            kept.clear()  # tarfile would hold them all
            if member.offset <= last:
                raise BadFile(str(path), "has an entry of negative size; it is damaged")
            last = member.offset
            yield member
        # tarfile takes damaged headers, and a file cut between two members, for the end.
        file.seek(archive.offset)
        end = file.read(tarfile.BLOCKSIZE)
        if len(end) < tarfile.BLOCKSIZE or any(end):
            told = "is damaged or cut short: it has no end mark; repair or remove it"
            raise BadFile(str(path), told)


def _key(member: tarfile.TarInfo) -> tuple[PurePosixPath, str]:
    path = PurePosixPath(member.name)
    return path.parent, path.name.partition(".")[0]


def _suffix(member: tarfile.TarInfo) -> str:
    _, dot, rest = PurePosixPath(member.name).name.partition(".")
    return (dot + rest).lower()


def _items(
    archive: tarfile.TarFile, sample: list[tarfile.TarInfo], path: Path, labels: str
) -> Iterator[Item]:
    for member in sample:
        if _suffix(member) not in SUFFIXES or not is_image(PurePosixPath(member.name).name):
            continue
        name, where = f"{path.name}/{member.name}", f"{member.name} in {path}"
        try:
            label = _label(archive, sample, where, labels)
            content = _content(archive, member, where)
        except BadFile as error:
            yield bad(name, error)
        else:
            yield Item(name, where, partial(opened, content, where), label)


def _label(
    archive: tarfile.TarFile, sample: list[tarfile.TarInfo], where: str, labels: str
) -> int | str | None:
    if labels == "none":
        return None
    texts = {_suffix(m): m for m in sample if _suffix(m) in {".cls", ".json"}}
    with naming(f"the label of {where}"):
        if ".cls" in texts and labels in {"auto", "cls"}:
            return int(_text(archive, texts[".cls"], where))
        if ".json" in texts:
            return json.loads(_text(archive, texts[".json"], where)).get(
                "label" if labels == "auto" else labels
            )
    return None


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> bytes:
    if member.size > MAX_TEXT:
        raise BadFile(where, f"has a label of {member.size} bytes; at most {MAX_TEXT} are read")
    return _content(archive, member, where)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> bytes:
    if not member.isfile() or member.issparse():
        raise BadFile(where, "is a link, a device or sparse; only plain files are read")
    check_size(member.size, where)
    file = archive.extractfile(member)
    content = b"" if file is None else file.read(member.size)
    if len(content) != member.size:
        raise BadFile(where, "is cut short")
    return content
