"""WebDataset shards: tar files, compressed or not, in which neighbours of one name make a sample.

``a/000.jpg`` and ``a/000.cls`` (a number) or ``a/000.json`` (an object with the label) are one
sample: its key is the path up to the first dot of the file's name. An image with more dots in its
name (``000.seg.png``) is passed over beside one without (``000.png``), and an image of its own
where there is none (``v1.2_0001.png``). Nothing is ever extracted to the disk, so that paths and
links in a shard have no power.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, groupby
from pathlib import Path, PurePosixPath

from fewstep.data.captions import TEXTS, clean
from fewstep.data.decoding import MAX_BYTES, BadFile, naming, opened
from fewstep.data.formats import is_image, kind_of
from fewstep.data.sources.archive import Member, members
from fewstep.data.sources.base import Item, Source, bad

MAX_TEXT = 2**20
FOLDERS = 2
"""Folders that a note names."""

MAX_FILES = 64
"""Most files of one sample."""


def tar(paths: Sequence[Path], labels: str, captions: str = "none") -> Source:
    """The images of shards, in the order in which they lie there.

    A shard that turns out to be damaged counts as one bad image after those before the damage.

    Args:
        paths: of the shards.
        labels: ``auto`` takes the number in ``.cls``, else ``label`` in ``.json``; another name
            takes that one of ``.json``; ``none`` takes none.
        captions: ``auto`` takes the ``.txt``, else ``text`` or ``caption`` of ``.json``; another
            name takes that one of ``.json``; ``none`` takes none.
    """
    shards = _Shards(labels, captions)
    return Source(chain.from_iterable(map(shards.items, paths)), None, None, shards.notes)


class _Shards:
    """The images of shards, and what was passed over."""

    def __init__(self, labels: str, captions: str) -> None:
        self.labels, self.captions = labels, captions
        self.beside: list[str] = []
        self.dotted: list[str] = []
        self.unlabelled = 0
        self.labelled = False
        self.folders: dict[str, None] = {}

    def items(self, path: Path) -> Iterator[Item]:
        try:
            with members(path, _wanted) as content:
                for sample in _samples(content, path):
                    yield from self._sample(sample, path)
        except BadFile as error:
            yield bad(path.name, error)

    def notes(self) -> tuple[str, ...]:
        """What users have to notice."""
        notes = []
        if self.beside:
            notes.append(
                f"{len(self.beside)} image(s) are passed over because they lie beside another of "
                f"the same name, such as {self.beside[0]}"
            )
        if self.dotted:
            notes.append(
                f"{len(self.dotted)} image(s) have several dots in their names, such as "
                f"{self.dotted[0]}; each is an image of its own"
            )
        if self.unlabelled:
            notes.append(f"the labels of {self.unlabelled} image(s) are not read")
        if len(self.folders) > 1 and not self.labelled:
            first, second, *_ = self.folders
            notes.append(
                f"the folders inside of a shard, such as {first} and {second}, are no classes; "
                "unpack it and give the folder if they should be"
            )
        return tuple(notes)

    def _sample(self, sample: Sequence[Member], path: Path) -> Iterator[Item]:
        images = [one for one in sample if is_image(PurePosixPath(one.name).name)]
        plain = [one for one in images if _is_plain(one)]
        beside = [one.name for one in images if not _is_plain(one)]
        (self.beside if plain else self.dotted).extend(beside)
        for one in plain or images:
            name, where = f"{path.name}/{one.name}", f"{one.name} in {path}"
            try:
                label = self._label(sample, one, where)
                caption = self._caption(sample, one, where)
                content = one.content()
            except BadFile as error:
                yield bad(name, error)
            else:
                self.labelled |= label is not None
                if self.labels != "none" and len(self.folders) < FOLDERS:
                    self.folders[PurePosixPath(one.name).parent.name or "."] = None
                yield Item(name, where, partial(opened, content, where, one.name), label, caption)

    def _caption(self, sample: Sequence[Member], image: Member, where: str) -> str | None:
        if self.captions == "none":
            return None
        known = _beside(sample, image)
        text, table = known.get(".txt"), known.get(".json")
        with naming(f"the caption of {where}"):
            if text is not None and self.captions == "auto":
                return clean(_text(text, where).decode("utf-8"), where)
            row = {} if table is None else json.loads(_text(table, where))
            names = TEXTS if self.captions == "auto" else (self.captions,)
            value = next((row[name] for name in names if name in row), None)
        if value is None:
            raise BadFile(where, "has no caption: no .txt beside it, and no text in its .json")
        return clean(value, where)

    def _label(self, sample: Sequence[Member], image: Member, where: str) -> int | str | None:
        known = _beside(sample, image)
        number, table = known.get(".cls"), known.get(".json")
        if self.labels == "none":
            self.unlabelled += number is not None or table is not None
            return None
        with naming(f"the label of {where}"):
            if number is not None and self.labels in {"auto", "cls"}:
                return int(_text(number, where))
            if table is not None:
                wanted = "label" if self.labels == "auto" else self.labels
                return json.loads(_text(table, where)).get(wanted)
        return None


def _beside(sample: Sequence[Member], image: Member) -> dict[str, Member]:
    """The files of an image's sample by their endings."""
    known = {_ending(one): one for one in sample if _is_plain(one)}
    # A file of the image's whole name goes before one of the sample's.
    return known | {_ending(one): one for one in sample if _stem(one) == _stem(image)}


def _text(member: Member, where: str) -> bytes:
    """The content of a label's or a caption's file; what is wrong with it concerns its image."""
    if member.size > MAX_TEXT:
        raise BadFile(
            where, f"has beside it a text of {member.size} bytes; at most {MAX_TEXT} are read"
        )
    try:
        return member.content()
    except BadFile as error:
        raise BadFile(where, f"has a label whose file {error.reason}") from error


def _samples(stream: Iterator[Member], path: Path) -> Iterator[list[Member]]:
    """Neighbours of one key; what is wrong behind the last sample is told after it."""
    sample: list[Member] = []
    damage = None
    while True:
        try:
            member = next(stream, None)
        except BadFile as error:
            member, damage = None, error
        if sample and (member is None or _key(member) != _key(sample[0])):
            yield sample
            sample = []
        if member is None:
            break
        sample.append(member)
        if len(sample) > MAX_FILES and not any(map(_is_plain, sample)):
            *whole, last = ([*group] for _, group in groupby(sample, _stem))
            yield from whole
            sample = last
        if len(sample) > MAX_FILES:
            raise BadFile(str(path), f"has over {MAX_FILES} files of one name; rename them")
    if damage is not None:
        raise damage


def _wanted(name: str) -> int:
    """How large a file of that name may be to be read."""
    ending = PurePosixPath(name).suffix.lower()
    if ending in {".cls", ".json", ".txt"}:
        return MAX_TEXT
    return MAX_BYTES if kind_of(ending) else -1


def _key(member: Member) -> tuple[PurePosixPath, str]:
    path = PurePosixPath(member.name)
    return path.parent, path.name.partition(".")[0]


def _stem(member: Member) -> str:
    return PurePosixPath(member.name).stem


def _ending(member: Member) -> str:
    return PurePosixPath(member.name).suffix.lower()


def _is_plain(member: Member) -> bool:
    """Whether there is one dot in the name."""
    return _stem(member) == _key(member)[1]
