"""Images in a folder or a zip, cropped and resized to one square resolution.

Labels come from ``dataset.json`` at the root in the format of EDM's data sets (Karras et al. 2022),
``{"labels": [["00000/img00000000.png", 6], ...]}`` or ``{"labels": null}``, else from folder names.
"""

from __future__ import annotations

import io
import json
import os
import threading
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
from PIL import Image

from fewstep.core import Batch, UsageError
from fewstep.data.arrays import Indices

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_PIXELS = 64 * 10**6
MAX_BYTES = 256 * 2**20
MAX_CLASSES = 2**20
IN_MEMORY = 2**30
CHUNK = 1024
_quiet = threading.Lock()


class ImageFolder:
    """A folder (with its sub-folders) or a zip of images, as a dataset.

    Images are taken in the order of their POSIX paths; hidden files are left out. Each is cropped
    to its central square and resized. Transparency is dropped, and EXIF rotation is not applied
    (as in EDM's data sets). Pixels are decoded once if they fit in 1 GiB, else on every access.

    Args:
        path: the folder or zip.
        resolution: height and width, at least 1.
        channels: 1 or 3; if not given 1 when the images are grey (up to 64 are looked at), else 3.
        labels: ``auto`` reads ``dataset.json`` at the root; without one, if every image lies in a
            sub-folder of the folder common to all, those sub-folders, sorted, are the classes.
            ``none`` reads no labels.

    Attributes:
        shape: ``(channels, resolution, resolution)``.
        labels: number of classes, 0 without labels.
        image: True; values are in [-1, 1].
        names: paths of the images inside ``path``.
        class_names: one a class: the sub-folder, or the number given in ``dataset.json``.

    Raises:
        UsageError: an argument, a file or ``dataset.json`` cannot be used; the message names it.
            Images of more than 64 megapixels and files of more than 256 MiB are refused.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        resolution: int,
        *,
        channels: Literal[1, 3] | None = None,
        labels: Literal["auto", "none"] = "auto",
    ) -> None:
        if resolution < 1:
            raise UsageError(f"got resolution={resolution}; expected at least 1 pixel")
        if channels not in {None, 1, 3}:
            raise UsageError(f"got channels={channels}; expected 1 (grey) or 3 (colour)")
        if labels not in {"auto", "none"}:
            raise UsageError(f"got labels={labels!r}; expected auto or none")
        self._files = _Files(Path(path))
        self.names = sorted(filter(_is_image, self._files.names))
        if not self.names:
            raise UsageError(f"{path} holds no images; files that end in {' '.join(SUFFIXES)} are")
        self._label, self.class_names = None, ()
        if labels == "auto" and "dataset.json" in self._files.names:
            self._label, self.class_names = _json_labels(self._files, self.names)
        elif labels == "auto":
            self._label, self.class_names = _folder_labels(self.names)
        self.labels = len(self.class_names)
        self.image = True
        if channels is None:
            sampled = self.names[:: -(-len(self.names) // 64)]
            grey = all(_is_grey(self._files.opened(name).mode) for name in sampled)
            channels = 1 if grey else 3
        self.shape = (channels, resolution, resolution)
        fits = len(self.names) * channels * resolution**2 <= IN_MEMORY
        self._pixels = self._decode_all(self.names) if fits else None

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, indices: Indices) -> Batch:
        """The images at ``indices``: ``x0`` ``(b, c, h, w)``; with labels, ``cond["label"]``."""
        index = np.asarray(indices, dtype=np.int64)
        if self._pixels is None:
            pixels = self._decode_all([self.names[i] for i in index])
        else:
            pixels = self._pixels[index]
        cond = {} if self._label is None else {"label": torch.from_numpy(self._label[index])}
        return Batch(torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1), cond)

    def _decode_all(self, names: Sequence[str]) -> np.ndarray:
        pixels = np.empty((len(names), *self.shape), np.uint8)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            # Chunks bound how much is queued, and how late a bad file is reported.
            for start in range(0, len(names), CHUNK):
                chunk = names[start : start + CHUNK]
                for i, decoded in enumerate(pool.map(self._decode, chunk), start):
                    pixels[i] = decoded
        return pixels

    def _decode(self, name: str) -> np.ndarray:
        channels, resolution, _ = self.shape
        image = self._files.opened(name)
        with _naming(f"{name} in {self._files.path}"):
            return _square(image, channels, resolution)


class _Files:
    """The files of a folder or a zip, by their POSIX path inside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = None
        if path.is_dir():
            files = (file for file in path.rglob("*") if file.is_file())
            self.names = {file.relative_to(path).as_posix() for file in files}
            return
        if not path.exists():
            raise UsageError(f"{path} does not exist; give a folder or a zip of images")
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise UsageError(f"{path} is neither a folder nor a zip of images ({error})") from error
        self.names = {info.filename for info in self._zip.infolist() if not info.is_dir()}

    def read(self, name: str) -> bytes:
        where = f"{name} in {self.path}"
        with _naming(where):
            file = self.path / name
            size = self._zip.getinfo(name).file_size if self._zip else file.stat().st_size
            if size > MAX_BYTES:
                raise UsageError(f"{where} has {size} bytes; at most {MAX_BYTES} are read")
            return self._zip.read(name) if self._zip else file.read_bytes()

    def opened(self, name: str) -> Image.Image:
        """The image with its header read and its size checked, not yet decoded."""
        data = io.BytesIO(self.read(name))
        with _naming(f"{name} in {self.path}"):
            # Pillow warns of odd EXIF data in good files. The filters of warnings belong to the
            # process, hence the lock; it is held for headers only.
            with _quiet, warnings.catch_warnings(action="ignore"):
                image = Image.open(data, formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
        return image


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Turn whatever goes wrong with one file into a message that names it."""
    pixels = f"{where} has more than {MAX_PIXELS // 10**6} megapixels; make it smaller or remove it"
    try:
        yield
    except UsageError:
        raise
    except Image.DecompressionBombError as error:
        raise UsageError(pixels) from error
    except Image.UnidentifiedImageError as error:
        raise UsageError(f"{where} is broken or none of {', '.join(FORMATS)}") from error
    except Exception as error:  # decoders and zips raise all kinds on damaged data
        raise UsageError(f"{where} cannot be read ({error}); repair or remove it") from error


def _is_image(name: str) -> bool:
    # Archives made on a Mac hold, beside each picture, a "._name.png" that is none.
    hidden = any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
    return not hidden and name.lower().endswith(SUFFIXES)


def _is_grey(mode: str) -> bool:
    return mode in {"1", "L", "LA", "I"} or mode.startswith("I;16")


def _square(image: Image.Image, channels: int, resolution: int) -> np.ndarray:
    """The central square of an image as uint8 ``(channels, resolution, resolution)``."""
    # JPEG decodes to a fraction of its size much faster; twice the target leaves the last
    # halving to the better filter below. Other formats ignore it.
    image.draft(None, (2 * resolution, 2 * resolution))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    image.info.pop("transparency", None)  # with it, conversions recolour or warn
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16 bits at 255 instead of scaling them.
        deep = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray((deep >> 8).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    if side < resolution:
        filter = Image.Resampling.BICUBIC
    else:
        filter = Image.Resampling.LANCZOS if side % resolution else Image.Resampling.BOX
    pixels = np.asarray(image.resize((resolution, resolution), filter)).reshape(
        resolution, resolution, channels
    )
    return pixels.transpose(2, 0, 1)


def _json_labels(files: _Files, names: Sequence[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    where = f"dataset.json in {files.path}"
    expected = 'expected {"labels": [["image path", class], ...]} or {"labels": null}'
    text = files.read("dataset.json")
    try:
        entries = json.loads(text)["labels"]
        given = None if entries is None else dict(entries)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UsageError(f"{where} cannot be used ({error!r}); {expected}") from error
    if given is None:
        return None, ()
    for name in names:
        if name not in given:
            raise UsageError(f"{where} has no label for {name}; add it, or pass labels=none")
        label = given[name]
        if type(label) is not int or not 0 <= label < MAX_CLASSES:
            wanted = f"expected an integer in [0, {MAX_CLASSES})"
            raise UsageError(f"{where} gives {name} the label {label!r}; {wanted}")
    label = np.array([given[name] for name in names], np.int64)
    return label, tuple(str(k) for k in range(label.max() + 1))


def _folder_labels(names: Sequence[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    parents = [PurePosixPath(name).parent.parts for name in names]
    shared = takewhile(lambda level: len(set(level)) == 1, zip(*parents, strict=False))
    common = len(list(shared))
    if any(len(parts) == common for parts in parents):
        return None, ()
    classes = sorted({parts[common] for parts in parents})
    index = {name: k for k, name in enumerate(classes)}
    return np.array([index[parts[common]] for parts in parents], np.int64), tuple(classes)
