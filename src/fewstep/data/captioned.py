"""Images with their captions, from whatever users have, a shard at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fewstep.contract import DataSpec
from fewstep.core import UsageError
from fewstep.data.captions import captions_of, has_captions
from fewstep.data.catalogue import training_data
from fewstep.data.fingerprint import content_digest
from fewstep.data.formats import background_of
from fewstep.data.images import ImageFolder
from fewstep.data.prepared import printable
from fewstep.data.reading import Decoder
from fewstep.data.sources import digest_of, has_splits, needs_preparing, open_source
from fewstep.data.specs import make_spec, spec_of

if TYPE_CHECKING:
    from fewstep.data import Dataset


class Samples(NamedTuple):
    """Some samples of a source: images ``(b, c, h, w)`` in [-1, 1], labels, captions."""

    x: Tensor
    label: Tensor | None
    captions: list[str]


class Shard(NamedTuple):
    """The samples of a shard: how many they are, and they themselves, in batches."""

    size: int
    batches: Iterator[Samples]


class Pictures(Protocol):
    """A source of images and captions.

    Attributes:
        name: of the source, not its place.
        origin: a digest of its content.
        reading: what was chosen of it, by option: captions, split, background.
        spec: of an image; its conditions are the label, or none.
        captioned: whether samples have captions.
    """

    name: str
    reading: Mapping[str, str]
    spec: DataSpec
    captioned: bool

    @property
    def origin(self) -> str:
        """See above; the whole source is read for it."""
        ...

    @property
    def total(self) -> int | None:
        """How many samples there are, if that is known."""
        ...

    def texts(self) -> Iterator[str]:
        """All captions."""
        ...

    def shards(self, size: int, batch: int) -> Iterator[Shard]:
        """Each shard in turn; one whose batches are not taken costs little."""
        ...


def opened(
    source: str | os.PathLike[str] | Sequence[str],
    *,
    captioned: bool,
    resolution: int | None = None,
    captions: str | None = None,
    labels: bool = True,
    background: str | None = None,
    split: str = "train",
) -> Pictures:
    """The images of a source, with their captions where they are asked for.

    Args:
        source: what ``fewstep train`` and ``fewstep data prepare`` read: a name, a folder or zip of
            images, a prepared file, shards, a table.
        captioned: read captions.
        resolution: to which images are cropped and resized.
        captions: a table of them; of shards and tables the column; None finds them.
        labels: keep the classes that the source has; shards and tables are read without.
        background: colour behind transparent pixels; white if not given.
        split: of a Hugging Face data set.

    Raises:
        UsageError: it cannot be read, or has no captions.
    """
    given = [str(one) for one in ([source] if isinstance(source, str | os.PathLike) else source)]
    if len(given) > 1 or needs_preparing(given[0]):
        if resolution is None:
            raise UsageError(f"to read the images of {given[0]} give their --resolution")
        return _Stream(given, resolution, captions if captioned else "none", background, split)
    data = training_data(given[0], resolution=resolution, labels=labels, background=background)
    behind = _colour(background) if isinstance(data, ImageFolder) else {}
    if len(spec_of(data).shape) != 3:
        raise UsageError(f"{given[0]} has samples of shape {data.shape}, which are no images")
    if not captioned:
        return _Whole(given[0], data, None, behind)
    if not isinstance(data, ImageFolder):
        raise UsageError(
            f"{given[0]} has no captions; give a folder or zip of images, shards or a table"
        )
    if captions is None and not has_captions(data.members, data.names):
        raise UsageError(
            f"{given[0]} has no captions: neither a text file beside each image nor a table "
            "metadata.jsonl; name a table with --captions FILE"
        )
    return _Whole(given[0], data, captions_of(data.members, data.names, captions), behind)


def _colour(background: str | None) -> dict[str, str]:
    return {"background": "#" + bytes(background_of(background or "white")).hex()}


class _Whole:
    """A data set that can be read in any order."""

    def __init__(
        self, name: str, data: Dataset, captions: list[str] | None, reading: Mapping[str, str]
    ) -> None:
        self.data, self.captions, self.reading = data, captions, reading
        self.name = printable(Path(name).resolve().name if Path(name).exists() else name)
        self.spec, self.captioned = spec_of(data), captions is not None

    @property
    def origin(self) -> str:
        digest = hashlib.sha256(content_digest(self.data).encode())
        for caption in self.captions or ():
            digest.update(caption.encode() + b"\0")
        return digest.hexdigest()

    @property
    def total(self) -> int:
        return len(self.data)

    def texts(self) -> Iterator[str]:
        yield from self.captions or ()

    def shards(self, size: int, batch: int) -> Iterator[Shard]:
        for start in range(0, self.total, size):
            stop = min(start + size, self.total)
            parts = (self._read(i, min(i + batch, stop)) for i in range(start, stop, batch))
            yield Shard(stop - start, parts)

    def _read(self, start: int, stop: int) -> Samples:
        batch = self.data.batch(range(start, stop))
        texts = [] if self.captions is None else self.captions[start:stop]
        return Samples(batch.x0, batch.cond.get("label"), texts)


class _Stream:
    """A source that is read from its beginning to its end."""

    def __init__(
        self,
        given: list[str],
        resolution: int,
        captions: str | None,
        background: str | None,
        split: str,
    ) -> None:
        column = "auto" if captions is None else captions
        self._given, self._split = given, split
        self._open = lambda: open_source(given, "none", split, None, column)
        self._open()  # what cannot be read is said before anything is made
        names = [Path(one).resolve().name for one in given]
        self.name = printable(names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}")
        self.captioned = column != "none"
        self.spec = make_spec((3, resolution, resolution), (-1.0, 1.0), {})
        splits = {"split": split} if has_splits(given[0]) else {}
        texts = {"captions": column} if self.captioned else {}
        self.reading: Mapping[str, str] = {**texts, **splits, **_colour(background)}
        self._decode = Decoder(3, resolution, "center", background_of(background or "white"))

    @property
    def origin(self) -> str:
        return digest_of(self._given, self._split)

    @property
    def total(self) -> int | None:
        return self._open().total

    def texts(self) -> Iterator[str]:
        return (item.caption for item in self._open().items if item.caption is not None)

    def shards(self, size: int, batch: int) -> Iterator[Shard]:
        items = iter(self._open().items)
        while group := [*islice(items, size)]:
            parts = (self._read(group[i : i + batch]) for i in range(0, len(group), batch))
            yield Shard(len(group), parts)

    def _read(self, items: Sequence[Any]) -> Samples:
        pixels, texts = [], []
        for item in items:
            decoded = self._decode(item)
            if isinstance(decoded, Exception):
                raise decoded
            pixels.append(decoded[0])
            texts.append(item.caption)
        x = torch.from_numpy(np.stack(pixels).astype(np.float32)) / 127.5 - 1
        return Samples(x, None, texts if self.captioned else [])
