"""Images and captions into latents and the conditions of texts: ``fewstep data encode``.

Every shard is encoded in batches of its own, so its bytes depend on the command alone: a killed
command that is repeated, and any number of processes, leave the same folder. Processes never meet:
they share the folder and the locks in it, and the last to finish completes ``encoded.json``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from fewstep.conditions import Condition
from fewstep.contract import DataSpec
from fewstep.core import UsageError
from fewstep.data import Dataset, fingerprint, spec_of
from fewstep.data.captions import captions_of, has_captions
from fewstep.data.catalogue import training_data
from fewstep.data.encoded import (
    AGAIN,
    CUT,
    KEY,
    RECORD,
    About,
    Encoded,
    Stored,
    name_of,
    read_record,
    stored_conditions,
)
from fewstep.data.formats import background_of
from fewstep.data.images import ImageFolder
from fewstep.data.prepared import printable
from fewstep.data.reading import decoder
from fewstep.data.shards import compare_settings, file_digest, held, packed, unpacked
from fewstep.data.sources import needs_preparing, open_source
from fewstep.data.specs import make_spec
from fewstep.frontends import Codec, Frontend, TextReader
from fewstep.frontends.codec import normalised
from fewstep.system.bars import bar
from fewstep.system.files import LOCK, TEMPORARY, whole_file, write_json
from fewstep.system.processes import ALONE, World

MEASURED = 1024
"""Images from which a codec is normalised."""

DTYPES: dict[Stored, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


class Outcome(NamedTuple):
    """Shards that were made and that were there already; the data, once all processes are done."""

    made: int
    kept: int
    data: Encoded | None


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
        origin: a digest of its samples, or nothing.
        spec: of an image; its conditions are the label, or none.
        captioned: whether samples have captions.
    """

    name: str
    origin: str
    spec: DataSpec
    captioned: bool

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


@runtime_checkable
class Movable(Protocol):
    """What can run on a device, as pretrained text encoders can."""

    def to(self, device: torch.device | str) -> Any:
        """Move it there."""
        ...


def encode(
    pictures: Pictures,
    out: str | os.PathLike[str],
    *,
    codec: Codec | None = None,
    text: TextReader | None = None,
    normalise: bool = False,
    stored: Stored = "float32",
    shard_size: int = 1024,
    batch: int = 16,
    world: World = ALONE,
    device: torch.device | str = "cpu",
) -> Outcome:
    """Write encoded data, or what is missing of it.

    Args:
        pictures: what :func:`opened` returns.
        out: the folder.
        codec: between images and latents; None keeps pixels.
        text: what reads captions; None reads none.
        normalise: give every channel of the latents the mean 0 and the standard deviation 0.5,
            measured on the first images.
        stored: numbers of latents and embeddings.
        shard_size: samples in a file.
        batch: samples at a time; changes nothing but memory, speed and the rounding of sums.
        world: this process makes every ``size``-th shard, from ``rank`` on.
        device: where the encoders run.

    Raises:
        UsageError: an argument or the source cannot be used, the folder holds something else, or
            another process makes the same shard.
    """
    for option, value in (("--shard-size", shard_size), ("--batch", batch)):
        if value < 1:
            raise UsageError(f"{option} must be at least 1, got {value}")
    if stored not in DTYPES:
        raise UsageError(f"--stored must be one of {', '.join(DTYPES)}, got {stored!r}")
    if codec is None and text is None:
        raise UsageError("there is nothing to encode: give --codec for images, --text for captions")
    if normalise and codec is None:
        raise UsageError("--normalise scales latents, and there are none without --codec")
    if text is not None and not pictures.captioned:
        raise UsageError(f"{pictures.name} was opened without captions, which --text reads")
    path = Path(out)
    path.mkdir(parents=True, exist_ok=True)
    own = {LOCK, RECORD, f"{TEMPORARY}{RECORD}", "codec", "text"}
    if not (path / RECORD).exists() and any(p.name not in own for p in path.iterdir()):
        raise UsageError(f"{path} is not empty and holds no encoded data; choose another --out")
    with (path / LOCK).open("w") as handle:
        with held(handle, 0, str(path / RECORD)):
            work = _begin(path, pictures, codec, text, normalise, stored, shard_size, batch, device)
        made, kept, n = work.run(world, handle)
        with held(handle, 0, str(path / RECORD)):
            data = _complete(path, work.about, n)
    return Outcome(made, kept, data)


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
    if len(spec_of(data).shape) != 3:
        raise UsageError(f"{given[0]} has samples of shape {data.shape}, which are no images")
    if not captioned:
        return _Whole(given[0], data, None)
    if not isinstance(data, ImageFolder):
        raise UsageError(
            f"{given[0]} has no captions; give a folder or zip of images, shards or a table"
        )
    if captions is None and not has_captions(data.members, data.names):
        raise UsageError(
            f"{given[0]} has no captions: neither a text file beside each image nor a table "
            "metadata.jsonl; name a table with --captions FILE"
        )
    return _Whole(given[0], data, captions_of(data.members, data.names, captions))


class _Whole:
    """A data set that can be read in any order."""

    def __init__(self, name: str, data: Dataset, captions: list[str] | None) -> None:
        self.data, self.captions = data, captions
        self.name = printable(Path(name).resolve().name if Path(name).exists() else name)
        digest = hashlib.sha256(repr(sorted(fingerprint(data).items())).encode())
        for caption in captions or ():
            digest.update(caption.encode() + b"\0")
        self.origin, self.spec = digest.hexdigest(), spec_of(data)
        self.captioned = captions is not None

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
        found = self.data.batch(range(start, stop))
        texts = [] if self.captions is None else self.captions[start:stop]
        return Samples(found.x0, found.cond.get("label"), texts)


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
        self._open = lambda: open_source(given, "none", split, None, column)
        names = [Path(one).resolve().name for one in given]
        self.name = printable(names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}")
        self.captioned = column != "none"
        self.origin, self.spec = "", make_spec((3, resolution, resolution), (-1.0, 1.0), {})
        self._decode = decoder(3, resolution, "center", background_of(background or "white"))

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


def _begin(
    out: Path,
    pictures: Pictures,
    codec: Codec | None,
    text: TextReader | None,
    normalise: bool,
    stored: Stored,
    shard_size: int,
    batch: int,
    device: torch.device | str,
) -> _Work:
    """Begin encoded data in a folder, or go on with it; one process at a time comes here."""
    shape = pictures.spec.shape if codec is None else codec.shape_of(pictures.spec.shape)
    if codec is not None:
        codec = codec.to(device)
        codec = _normalised(codec, pictures, batch, device) if normalise else codec
    if isinstance(text, Movable):
        text.to(device)
    frontend = Frontend(codec, text)
    conditions: dict[str, Condition] = dict(pictures.spec.conditions)
    conditions |= {} if text is None else text.conditions
    about = About(
        source=pictures.name,
        origin=pictures.origin,
        spec=make_spec(shape, (-1.0, 1.0) if codec is None else None, conditions),
        frontend=frontend.digests,
        stored=stored,
        shard_size=shard_size,
    )
    if (out / RECORD).exists():
        before = read_record(out)
        compare_settings(before.settings(), about.settings(), out, "encoded data")
    else:
        frontend.write(out)
        write_json(out / RECORD, about.model_dump(mode="json"))
    return _Work(out, pictures, frontend, about, batch, torch.device(device))


def _normalised(codec: Codec, pictures: Pictures, batch: int, device: torch.device | str) -> Codec:
    """The codec with the shift and scale that the first images call for."""
    first = next(pictures.shards(MEASURED, batch), None)
    if first is None:
        raise UsageError(f"{pictures.name} holds no images")
    try:
        return normalised(codec.net, (samples.x.to(device) for samples in first.batches))
    except UsageError as error:
        raise UsageError(f"{pictures.name}: {error}; leave out --normalise") from error


@dataclass(frozen=True)
class _Work:
    """What this process does in a folder."""

    out: Path
    pictures: Pictures
    frontend: Frontend
    about: About
    batch: int
    device: torch.device

    def run(self, world: World, handle: Any) -> tuple[int, int, int]:
        """Make this process's shards that are not there.

        Returns:
            How many were made, how many were kept, and how many samples all shards have.
        """
        about, made, kept, n = self.about, 0, 0, 0
        with bar("encoding", "images", self.pictures.total) as advance:
            for i, shard in enumerate(self.pictures.shards(about.shard_size, self.batch)):
                n += shard.size
                target = self.out / name_of(i)
                if i % world.size == world.rank:
                    with held(handle, 1 + i, str(target), wait=False):
                        if self._whole(target, i, shard.size):
                            kept += 1
                        else:
                            first = n - shard.size
                            tensors = self._encoded(shard, first, advance)
                            with whole_file(target) as fresh:
                                fresh.write_bytes(packed(tensors, KEY, about.stamp(i)))
                            made += 1
                            continue
                advance(shard.size)
        if not n:
            raise UsageError(f"{self.pictures.name} holds no images")
        return made, kept, n

    def _whole(self, path: Path, shard: int, count: int) -> bool:
        about = self.about
        try:
            unpacked(path, KEY, about.stamp(shard), about.shapes(count), "", verify=True)
        except UsageError:
            return False
        return True

    def _encoded(
        self, shard: Shard, first: int, advance: Callable[[int], None]
    ) -> dict[str, Tensor]:
        """The tensors of a shard, whose first sample has that number in the source."""
        parts: list[dict[str, Tensor]] = []
        for samples in shard.batches:
            parts.append(self._batch(samples, first))
            first += len(samples.x)
            advance(len(samples.x))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _batch(self, samples: Samples, first: int) -> dict[str, Tensor]:
        codec, text = self.frontend.codec, self.frontend.text
        if codec is None:
            x = ((samples.x + 1) * 127.5).round().to(torch.uint8)
        else:
            z = codec.encode(samples.x.to(self.device)).cpu()
            fine = z.isfinite().flatten(1).all(1) & (z != 0).flatten(1).any(1)
            if not bool(fine.all()):
                raise UsageError(
                    f"the latents of image {first + int((~fine).nonzero()[0])} of "
                    f"{self.pictures.name} are all zero or not finite; the codec does not fit it"
                )
            x = z.to(DTYPES[self.about.stored])
        cond = {} if samples.label is None else {"label": samples.label}
        tensors = {"x": x}
        if text is not None:
            cond |= text.encode(samples.captions)
            cut = torch.zeros(len(x), dtype=torch.bool)
            cut[text.cut(samples.captions)] = True
            tensors[CUT] = cut
        return tensors | stored_conditions(cond, self.about.spec, DTYPES[self.about.stored])


def _complete(out: Path, about: About, n: int) -> Encoded | None:
    """Write the outcome of all shards, if all are there."""
    sizes = [min(about.shard_size, n - i) for i in range(0, n, about.shard_size)]
    names = [name_of(i) for i in range(len(sizes))]
    if not all((out / name).exists() for name in names):
        return None
    cut, sums = 0, torch.zeros(3, about.spec.shape[0] or 1, dtype=torch.float64)
    for i, (name, size) in enumerate(zip(names, sizes, strict=True)):
        tensors = unpacked(out / name, KEY, about.stamp(i), about.shapes(size), AGAIN)
        cut += int(tensors[CUT].sum()) if CUT in tensors else 0
        if tensors["x"].dtype != torch.uint8:
            x = tensors["x"].double().transpose(0, 1).flatten(1)
            sums += torch.stack([torch.full((len(x),), x.shape[1]), x.sum(1), (x**2).sum(1)])
    count, first, second = sums
    measured = bool((count > 0).all())
    mean = first / count if measured else first[:0]
    std = (second / count - mean**2).clamp(min=0).sqrt() if measured else first[:0]
    outcome = {
        "n": n,
        "cut": cut,
        "mean": tuple(mean.tolist()),
        "std": tuple(std.tolist()),
        "sha256": {name: file_digest(out / name) for name in names},
    }
    write_json(out / RECORD, about.model_copy(update=outcome).model_dump(mode="json"))
    return Encoded(out)
