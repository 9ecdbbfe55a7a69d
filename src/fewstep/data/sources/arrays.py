"""Pixels in .npz files and in MNIST's IDX files, read row by row."""

from __future__ import annotations

import gzip
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from fewstep.core import UsageError
from fewstep.data.decoding import BadFile, check_size, naming
from fewstep.data.members import unpacked
from fewstep.data.sources.base import Item, Source, picture

Shape = tuple[int, ...]
IMAGES = ("x", "images", "data", "arr_0")
"""Names of the array of images, the first that is there being read."""
PIXELS = np.dtype(np.uint8)
FLOATS = [np.dtype(kind) for kind in ("<f2", "<f4", "<f8")]


def npz(paths: list[Path], labels: str, captions: str = "none") -> Source:
    """Arrays of images and labels.

    ``x``, ``images`` or ``arr_0`` (as in the sample files of OpenAI's code) is uint8
    ``(n, c, h, w)``, ``(n, h, w, c)`` or ``(n, h, w)``, or floats in [-1, 1], as ``fewstep sample``
    writes them; ``label``, ``labels`` or ``arr_1`` is an integer each. ``data`` ``(n, 3 s^2)`` with
    ``labels`` from 1 is the layout of the downsampled ImageNet (Chrabaszcz et al. 2017), of 1,000
    classes; its labels are counted from 0 here.

    Raises:
        UsageError: an array is missing, holds objects, or has another shape or type; or captions
            are asked for.
    """
    if captions != "none":
        raise UsageError(f"{paths[0]} holds arrays without captions; give a folder or shards")
    opened = [_Npz.of(path, labels) for path in paths]
    items = chain.from_iterable(one.items() for one in opened)
    imagenet = labels == "auto" and all(one.key == "data" and one.label for one in opened)
    names = tuple(map(str, range(1000))) if imagenet else None
    notes = tuple(note for one in opened for note in one.notes)
    return Source(items, sum(one.shape[0] for one in opened), names, lambda: notes)


def idx(path: Path, labels: str) -> Source:
    """MNIST's format, compressed or not; labels lie in the file of labels beside it.

    Raises:
        UsageError: the file is none of images, is cut short, or its labels are not there.
    """
    if labels not in {"auto", "none"}:
        raise UsageError(f"got labels={labels!r}; IDX files have auto or none")
    with naming(str(path)), _uncompressed(path) as file:
        n, height, width = _idx_shape(file, 3, path)
    beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    label = None
    if labels == "auto" and beside != path and beside.exists():
        with naming(str(beside)), _uncompressed(beside) as file:
            (count,) = _idx_shape(file, 1, beside)
            check_size(count, str(beside))
            label = list(file.read(count))
            if count != n or len(label) != n or file.read(1):
                raise UsageError(f"{beside} does not hold one label for each of {n} images")
    return Source(_idx_items(path, (n, 1, height, width), label), n)


def _idx_items(path: Path, shape: Shape, label: list[int] | None) -> Iterator[Item]:
    with naming(str(path)), _uncompressed(path) as file:
        _idx_shape(file, 3, path)
        yield from _rows(file, path, shape, (0, 1, 2), label)


def _idx_shape(file: IO[bytes], dims: int, path: Path) -> Shape:
    magic = file.read(4)
    if magic != bytes([0, 0, 8, dims]):
        raise UsageError(f"{path} is no IDX file of {'images' if dims == 3 else 'labels'}")
    shape = tuple(int.from_bytes(file.read(4), "big") for _ in range(dims))
    if min(shape) < 1:
        raise UsageError(f"{path} has shape {shape}; expected at least one image")
    return shape


def _uncompressed(path: Path) -> IO[bytes]:
    # One type for both kinds, though gzip's is no IO for the type checker.
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # pyright: ignore


@dataclass(frozen=True)
class _Npz:
    """One file whose arrays' headers are read.

    Args:
        path: the file.
        key: of the images.
        shape: ``(n, ...)`` as stored.
        kind: of the images.
        label: one an image, from 0.
        notes: what users have to notice.
    """

    path: Path
    key: str
    shape: Shape
    kind: np.dtype
    label: list[int] | None
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(path: Path, labels: str) -> _Npz:
        with naming(str(path)), zipfile.ZipFile(path) as archive:
            keys = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
            key = next((k for k in IMAGES if k in keys), None)
            if key is None:
                held = ", ".join(keys) or "nothing"
                raise UsageError(f"{path} holds {held}; expected images as {', '.join(IMAGES)}")
            with _member(archive, key, path) as file:
                shape, kind = _npy_header(file, archive.getinfo(f"{key}.npy"), path)
            if kind != np.uint8 and kind not in FLOATS:
                raise UsageError(
                    f"{path} has images of {kind}; expected uint8 pixels in [0, 255], or floats in "
                    "[-1, 1]"
                )
            label = _labels(archive, path, labels, keys, shape[0], key)
            notes = ()
            if kind in FLOATS and labels == "auto" and label and not any(label):
                label, notes = None, (f"all labels of {path.name} are 0 and are not read",)
            one = _Npz(path, key, shape, kind, label, notes)
            one._order()
            return one

    def items(self) -> Iterator[Item]:
        shape, order = self._order()
        with (
            naming(str(self.path)),
            zipfile.ZipFile(self.path) as archive,
            _member(archive, self.key, self.path) as file,
        ):
            _npy_header(file, archive.getinfo(f"{self.key}.npy"), self.path)
            yield from _rows(file, self.path, shape, order, self.label, self.kind)

    def _order(self) -> tuple[Shape, Shape]:
        """The shape as ``(n, three axes)``, and the order in which they are ``(c, h, w)``."""
        n, *event = self.shape
        if self.key == "data" and len(event) == 1:
            side = math.isqrt(event[0] // 3)
            if 3 * side**2 == event[0]:
                return (n, 3, side, side), (0, 1, 2)
        elif len(event) == 2:
            return (n, 1, *event), (0, 1, 2)
        elif len(event) == 3 and event[0] in {1, 3}:
            return (n, *event), (0, 1, 2)
        elif len(event) == 3 and event[2] in {1, 3}:
            return (n, *event), (2, 0, 1)
        raise UsageError(
            f"{self.path} has {self.key} of shape {self.shape}; expected (n, c, h, w), "
            "(n, h, w, c) or (n, h, w) with 1 or 3 channels, or data (n, 3 s^2)"
        )


def _labels(
    archive: zipfile.ZipFile, path: Path, labels: str, keys: list[str], n: int, images: str
) -> list[int] | None:
    if labels == "none":
        return None
    wanted = ("label", "labels", "arr_1") if labels == "auto" else (labels,)
    key = next((k for k in wanted if k in keys), None)
    if key is None:
        if labels == "auto":
            return None
        raise UsageError(f"{path} holds no labels {labels!r}; it holds {', '.join(keys)}")
    info = archive.getinfo(f"{key}.npy")
    check_size(info.file_size, f"{key} in {path}")
    with _member(archive, key, path) as file:
        shape, kind = _npy_header(file, info, path)
        if shape != (n,) or kind.kind not in "iu":
            raise UsageError(
                f"{path} has {key} of {kind} and shape {shape}; expected ({n},) integers"
            )
        content = file.read(n * kind.itemsize)
    label = np.frombuffer(content, kind).astype(np.int64)
    return (label - (images == "data" and labels == "auto")).tolist()


def _member(archive: zipfile.ZipFile, key: str, path: Path) -> IO[bytes]:
    return unpacked(archive, archive.getinfo(f"{key}.npy"), f"{key} in {path}")


def _npy_header(file: IO[bytes], info: zipfile.ZipInfo, path: Path) -> tuple[Shape, np.dtype]:
    """Shape and type of an array that holds numbers in C order, all of them."""
    where = f"{info.filename} in {path}"
    with naming(where):
        version = np.lib.format.read_magic(file)  # pyright: ignore[reportArgumentType]
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, kind = read(file)  # pyright: ignore[reportArgumentType]
        if kind.hasobject:
            raise BadFile(where, "holds pickled objects, which are never read; save numbers")
        if fortran or kind.fields is not None or kind.subdtype is not None:
            raise BadFile(where, "must hold plain numbers in C order; save it again")
        if not shape or min(shape) < 1:
            raise BadFile(where, f"has shape {shape}; expected at least one image")
        if file.tell() + math.prod(shape) * kind.itemsize != info.file_size:
            raise BadFile(where, f"is shorter or longer than its shape {shape}; repair it")
    return shape, kind


def _rows(
    file: IO[bytes],
    path: Path,
    shape: Shape,
    order: Shape,
    label: list[int] | None,
    kind: np.dtype = PIXELS,
) -> Iterator[Item]:
    n, *stored = shape
    size = math.prod(stored) * kind.itemsize
    for i in range(n):
        check_size(size, str(path))
        name = f"{path.name} row {i}"
        content = file.read(size)
        if len(content) != size:
            raise BadFile(str(path), f"ends within row {i} of {n}; it is cut short")
        values = np.frombuffer(content, kind).reshape(stored).transpose(order)
        where = f"row {i} in {path}"
        load = partial(_picture, values, where)
        yield Item(name, where, load, None if label is None else label[i])
    if file.read(1):
        raise BadFile(str(path), f"goes on after the {n} images it announces")


def _picture(values: np.ndarray, where: str) -> Image.Image:
    """Pixels, or floats in [-1, 1] rounded as pictures of samples are, as an image."""
    if values.dtype == np.uint8:
        return picture(values, where)
    low, high = float(values.min()), float(values.max())
    if not (low >= -1 and high <= 1):
        raise BadFile(where, f"holds floats from {low:g} to {high:g}; expected [-1, 1], or uint8")
    levels = (values.astype(np.float64) * 127.5 + 128).clip(0, 255)
    return picture(levels.astype(np.uint8), where)
