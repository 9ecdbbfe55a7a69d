"""The one verified file that ``fewstep data prepare`` writes: pixels at one resolution, labels.

It is a safetensors file: an eight-byte length, a JSON header, then ``labels`` (int64 ``(n,)``, if
there are any) and ``images`` (uint8 ``(n, c, h, w)``) as they lie in memory, so that training maps
the file instead of reading it. The header's ``__metadata__`` holds ``dataset``, JSON in turn.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fewstep.core import Batch, UsageError
from fewstep.data.arrays import Arrays, Indices
from fewstep.data.specs import image_spec
from fewstep.system.files import whole_file

SUFFIX = ".safetensors"
MAX_HEADER = 100 * 10**6
"""What safetensors allows."""
PIECE = 2**24
UNKNOWN = "0" * 64


class About(BaseModel):
    """What a prepared file says of itself.

    Args:
        format: of this file.
        count: images.
        shape: ``(c, h, w)``.
        labels: number of classes, 0 without labels.
        class_names: one a class.
        source: the name, not the place, of what was prepared.
        resolution: height and width.
        crop: how images became square.
        background: colour behind transparent pixels.
        skipped: name and reason of each image that was left out.
        notes: what a user has to notice, in sentences.
        sha256: of the bytes of each tensor.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    count: int = Field(ge=1)
    shape: tuple[int, int, int]
    labels: int = Field(ge=0)
    class_names: tuple[str, ...]
    source: str
    resolution: int = Field(ge=1)
    crop: str
    background: str = "white"
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    sha256: dict[str, str]


class Prepared:
    """A file that ``fewstep data prepare`` wrote, as a memory-mapped dataset.

    It is pickled by its path: other processes map the file for themselves.

    Args:
        path: the file.
        labels: ``none`` hides the labels.
        verify: read the whole file and compare its sha256.

    Attributes:
        shape: ``(channels, resolution, resolution)``.
        labels: number of classes, 0 without labels.
        image: True; values are in [-1, 1].
        spec: what an image is and depends on.
        about: what the file says of itself, ``About``.
        notes: what a user has to notice, in sentences.

    Raises:
        UsageError: the file is missing, cut short, changed, or none that ``fewstep data prepare``
            wrote.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        labels: Literal["auto", "none"] = "auto",
        verify: bool = False,
    ) -> None:
        if labels not in {"auto", "none"}:
            raise UsageError(f"got labels={labels!r}; expected auto or none")
        self.path, self._kind = Path(path), labels
        self.about, start = _read_header(self.path)
        if verify:
            self._verify(start)
        self._arrays = self._mapped(start)
        self.shape, self.labels, self.image = self.about.shape, self._arrays.labels, True
        names = self.about.class_names if self.labels else None
        self.spec = image_spec(self.shape, names)
        hidden = ("the labels of the file are not read",) if labels == "none" else ()
        self.notes = (*self.about.notes, *(hidden if self.about.labels else ()))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "labels": self._kind}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def __len__(self) -> int:
        return self.about.count

    def batch(self, indices: Indices) -> Batch:
        """The images at ``indices``: ``x0`` ``(b, c, h, w)``; with labels, ``cond["label"]``."""
        return self._arrays.batch(indices)

    @property
    def given_labels(self) -> np.ndarray | None:
        """The class of each image, int64, or None."""
        return self._arrays.given_labels

    def _mapped(self, start: int) -> Arrays:
        about, label = self.about, None
        if about.labels:
            label = np.fromfile(self.path, "<i8", about.count, offset=start)
            start += label.nbytes
            if label.min() < 0 or label.max() >= about.labels:
                raise UsageError(f"{self.path} has labels out of range; {DAMAGED}")
        shape = (about.count, *about.shape)
        images = np.memmap(self.path, np.uint8, "r", offset=start, shape=shape)
        if label is None or self._kind == "none":
            return Arrays(images)
        return Arrays(images, label, labels=about.labels)

    def _verify(self, start: int) -> None:
        with self.path.open("rb") as file:
            file.seek(start)
            for name, size in _sizes(self.about).items():
                digest = hashlib.sha256()
                for piece in range(0, size, PIECE):
                    digest.update(file.read(min(PIECE, size - piece)))
                if digest.hexdigest() != self.about.sha256.get(name):
                    raise UsageError(
                        f"the {name} of {self.path} do not match their sha256; {DAMAGED}"
                    )


DAMAGED = "the file is damaged: write it again with fewstep data prepare"


def printable(text: str) -> str:
    """A name from a file as it can be shown and stored: no control codes, no broken letters."""
    return "".join(c if c.isprintable() else "?" for c in text)


def advice(path: str | os.PathLike[str], resolution: int | None = None) -> str:
    """The command by which a source becomes a file to train on."""
    side = "N" if resolution is None else resolution
    return f"run fewstep data prepare {path} --out NAME.safetensors --resolution {side}"


def write_prepared(
    path: Path, images: Iterable[np.ndarray], label: np.ndarray | None, about: About
) -> About:
    """Write a prepared file, whole or not at all.

    Args:
        path: of the file.
        images: uint8 ``(_, c, h, w)`` stretches that add up to ``about.count``.
        label: int64 ``(count,)``, or None.
        about: all but its ``sha256``.

    Returns:
        ``about`` with its ``sha256``.
    """
    hashes = {name: hashlib.sha256() for name in _sizes(about)}
    with whole_file(path) as fresh, fresh.open("wb") as file:
        # The digests are known once the pixels have passed, and as long as what stands for them.
        file.write(_header(about, dict.fromkeys(hashes, UNKNOWN)))
        if label is not None:
            _pass(label.astype("<i8"), file, hashes["labels"])
        for stretch in images:
            _pass(stretch, file, hashes["images"])
        digests = {name: digest.hexdigest() for name, digest in hashes.items()}
        file.seek(0)
        file.write(_header(about, digests))
    return about.model_copy(update={"sha256": digests})


def _pass(array: np.ndarray, file: Any, digest: Any) -> None:
    content = array.tobytes()
    digest.update(content)
    file.write(content)


def _sizes(about: About) -> dict[str, int]:
    """Bytes of each tensor, in their order."""
    sizes = {"labels": 8 * about.count} if about.labels else {}
    return {**sizes, "images": about.count * int(np.prod(about.shape, dtype=object))}


def _header(about: About, digests: dict[str, str]) -> bytes:
    text = about.model_copy(update={"sha256": digests}).model_dump_json()
    header: dict[str, Any] = {"__metadata__": {"dataset": text}, **_tensors(about)}
    content = json.dumps(header, ensure_ascii=True).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content


def _tensors(about: About) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    start = 0
    for name, size in _sizes(about).items():
        shape = [about.count] if name == "labels" else [about.count, *about.shape]
        kind = "I64" if name == "labels" else "U8"
        tensors[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, start + size]}
        start += size
    return tensors


def _read_header(path: Path) -> tuple[About, int]:
    """What the file says of itself, and where its data begins."""
    if not path.is_file():
        raise UsageError(f"{path} does not exist, or is no file; {advice('SOURCE')}")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise UsageError(f"{path} is not what fewstep data prepare writes, or cut short")
        content = file.read(length)
    try:
        header = json.loads(content)
        text = header["__metadata__"]["dataset"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{path} holds no data set of fewstep; give what fewstep data prepare wrote"
        ) from error
    try:
        about = About.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"{path} describes its data in a way this version does not know "
            f"({'.'.join(map(str, first['loc']))}: {first['msg']}); write it again with fewstep "
            "data prepare"
        ) from error
    tensors = {name: value for name, value in header.items() if name != "__metadata__"}
    side = about.resolution
    shaped = about.shape in {(1, side, side), (3, side, side)}
    if not shaped or tensors != _tensors(about) or len(about.class_names) != about.labels:
        raise UsageError(f"{path} contradicts itself in its header; {DAMAGED}")
    start, expected = 8 + length, 8 + length + sum(_sizes(about).values())
    if size != expected:
        raise UsageError(f"{path} has {size} bytes, expected {expected}; {DAMAGED}")
    return about, start
