"""Images and captions into latents and the conditions of texts: ``fewstep data encode``.

Every shard is encoded in batches of its own, so its bytes depend on the command alone: a killed
command that is repeated, and any number of processes, leave the same folder. Processes never meet:
they share the folder and the locks in it, and the last to finish completes ``encoded.json``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from fewstep.conditions import Condition
from fewstep.core import UsageError
from fewstep.data.captioned import Pictures, Samples, Shard
from fewstep.data.encoded import (
    AGAIN,
    CUT,
    KEY,
    RECORD,
    About,
    Encoded,
    Scaling,
    Stored,
    name_of,
    read_record,
    stored_conditions,
)
from fewstep.data.shards import compare_settings, file_digest, held, packed, unpacked
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
    before = read_record(out) if (out / RECORD).exists() else None
    if codec is not None:
        codec = codec.to(device)
        if normalise and before is not None and before.scaling:
            # Measured again, in batches of another size or elsewhere, it would differ a little.
            codec = Codec(codec.net, before.scaling.shift, before.scaling.scale)
        elif normalise:
            codec = _normalised(codec, pictures, batch, device)
    if isinstance(text, Movable):
        text.to(device)
    frontend = Frontend(codec, text)
    conditions: dict[str, Condition] = dict(pictures.spec.conditions)
    conditions |= {} if text is None else text.conditions
    about = About(
        source=pictures.name,
        origin=pictures.origin,
        reading=dict(pictures.reading),
        spec=make_spec(shape, (-1.0, 1.0) if codec is None else None, conditions),
        frontend=frontend.digests,
        stored=stored,
        shard_size=shard_size,
        scaling=Scaling(**codec.scaling) if codec is not None and normalise else None,
    )
    if before is not None:
        compare_settings(before.settings(), about.settings(), out, "encoded data")
        _mend(out, frontend)
    else:
        frontend.write(out)
        write_json(out / RECORD, about.model_dump(mode="json"))
    return _Work(out, pictures, frontend, about, batch, torch.device(device))


def _mend(out: Path, frontend: Frontend) -> None:
    """Write the files of codec and reader again that are not as they were, or missing."""
    for name, content in frontend.files.items():
        path = out / name
        if not path.is_file() or path.read_bytes() != content:
            with whole_file(path) as fresh:
                fresh.write_bytes(content)


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
