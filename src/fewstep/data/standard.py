"""MNIST, Fashion-MNIST and CIFAR-10 from whichever of their usual files is at hand.

Looked for in turn: the folder ``$FEWSTEP_DATA/NAME``, the system's data sets
(``/usr/share/datasets/NAME``), the Hugging Face Hub (extra ``datasets``). Nothing that a file
holds is executed: CIFAR-10's "python version", which is pickles, is not read; its binary version
is.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from fewstep.core import UsageError
from fewstep.data.arrays import Arrays
from fewstep.data.specs import image_spec
from fewstep.errors import in_words

Split = Literal["train", "held_out"]
Images = tuple[np.ndarray, np.ndarray]
"""uint8 ``(n, c, h, w)`` and labels ``(n,)``."""

SYSTEM = Path("/usr/share/datasets")


@dataclass(frozen=True)
class Standard:
    """One data set.

    Args:
        name: of its folder.
        shape: of an image.
        counts: of training and of held-out images.
        hub: its name on the Hugging Face Hub, and the column of images there.
        readers: folder and split to images, or None if the reader's files are not there.
        classes: the names that the authors give them.
        source: its name in full and its authors.
    """

    name: str
    shape: tuple[int, int, int]
    counts: tuple[int, int]
    hub: tuple[str, str]
    readers: tuple[Callable[[Path, Split], Images | None], ...]
    classes: tuple[str, ...]
    source: str

    def __call__(self, split: Split) -> Arrays:
        """Images in [-1, 1] of ten classes; ``held_out`` is what the authors call test.

        Raises:
            UsageError: another split; the data is nowhere; a file is damaged.
        """
        if split not in {"train", "held_out"}:
            raise UsageError(f"{self.name} has no split {split!r}; choose train or held_out")
        images_and_label = next((x for x in self._on_disk(split) if x is not None), None)
        if images_and_label is None:
            images_and_label = self._from_hub(split)
        images, label = images_and_label
        expected = (self.counts[split == "held_out"], *self.shape)
        if images.shape != expected or images.dtype != np.uint8:
            raise UsageError(
                f"{self.name} ({split}) has images {images.shape} of {images.dtype}, expected "
                f"{expected} of uint8; the files are of another data set"
            )
        return Arrays(images, label, spec=image_spec(self.shape, self.classes))

    def _on_disk(self, split: Split) -> Iterator[Images | None]:
        given = os.environ.get("FEWSTEP_DATA")
        for folder in [*([Path(given)] if given else []), SYSTEM]:
            for read in self.readers:
                place = folder / self.name
                try:
                    yield read(place, split) if place.is_dir() else None
                except UsageError:
                    raise
                except Exception as error:  # decoders raise all kinds on damaged files
                    raise UsageError(
                        f"{self.name} in {place} cannot be read ({in_words(error)}); "
                        "repair or remove it"
                    ) from error

    def _from_hub(self, split: Split) -> Images:
        name, column = self.hub
        asked = (
            f"{self.name} was not found: put its files into $FEWSTEP_DATA/{self.name}, or install "
            f"the extra, pip install 'fewstep[datasets]', to fetch {name} from the Hugging Face Hub"
        )
        try:
            from datasets import load_dataset  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UsageError(asked) from error
        try:
            rows = load_dataset(name, split="train" if split == "train" else "test")
        except Exception as error:  # no network, no such set, a broken cache: all say the same
            raise UsageError(f"{asked}; the Hub said: {error}") from error
        pixels = [np.asarray(image) for image in rows[column]]
        return _channels_first(np.stack(pixels)), np.asarray(rows["label"], np.int64)


def _idx(folder: Path, split: Split) -> Images | None:
    """LeCun's files, compressed or not."""
    prefix = "train" if split == "train" else "t10k"
    names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    files = [_either(folder / f"{name}.gz", folder / name) for name in names]
    if None in files:
        return None
    images, label = (_read_idx(file) for file in files if file)
    return images[:, None], label.astype(np.int64)


def _read_idx(path: Path) -> np.ndarray:
    data = path.read_bytes()
    if path.suffix == ".gz":
        inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        data = inflate.decompress(data, 2**28)
    kind, dims = data[2], data[3]
    shape = tuple(np.frombuffer(data, ">u4", dims, 4).tolist())
    if data[:2] != b"\0\0" or kind != 8:
        raise UsageError(f"{path} is no IDX file of unsigned bytes")
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * dims)
    if values.size != np.prod(shape):
        raise UsageError(f"{path} holds {values.size} values, its header promises {shape}")
    return values.reshape(shape)


def _npz(folder: Path, split: Split) -> Images | None:
    """``NAME.npz`` with train_images, train_labels, test_images, test_labels."""
    file = folder / f"{folder.name}.npz"
    if not file.exists():
        return None
    prefix = "train" if split == "train" else "test"
    with np.load(file, allow_pickle=False) as archive:
        images, label = archive[f"{prefix}_images"], archive[f"{prefix}_labels"]
    return _channels_first(images), label.astype(np.int64)


def _cifar_binary(folder: Path, split: Split) -> Images | None:
    """The official binary version: records of a label and 3,072 bytes."""
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]
    inside = folder / "cifar-10-batches-bin"
    files = [(inside if inside.is_dir() else folder) / name for name in names]
    if not all(file.exists() for file in files):
        return None
    data = np.concatenate([np.frombuffer(file.read_bytes(), np.uint8) for file in files])
    records = data.reshape(-1, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


def _cifar_mosaics(folder: Path, split: Split) -> Images | None:
    """Lossless WebP mosaics of 50 x 50 images in two .npz files."""
    files = [folder / "cifar10_a.npz", folder / "cifar10_b.npz"]
    if not all(file.exists() for file in files):
        return None
    prefix = "train" if split == "train" else "test"
    mosaics: dict[str, np.ndarray] = {}
    for file in files:
        with np.load(file, allow_pickle=False) as archive:
            names = [k for k in archive.files if k.startswith(prefix)]
            mosaics |= {name: archive[name] for name in names}
    label = mosaics.pop(f"{prefix}_labels").astype(np.int64)
    tiles = [_tiles(mosaics[name]) for name in sorted(mosaics)]
    return np.concatenate(tiles), label


def _tiles(encoded: np.ndarray) -> np.ndarray:
    image = Image.open(io.BytesIO(encoded.tobytes()), formats=["WEBP"])
    if image.size != (1600, 1600):
        raise UsageError(f"a mosaic measures {image.size}, expected 1600 x 1600")
    grid = np.asarray(image.convert("RGB")).reshape(50, 32, 50, 32, 3)
    return grid.transpose(0, 2, 4, 1, 3).reshape(2500, 3, 32, 32)


def _channels_first(images: np.ndarray) -> np.ndarray:
    if images.ndim == 3:
        return images[:, None]
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _either(*paths: Path) -> Path | None:
    return next((path for path in paths if path.exists()), None)


mnist = Standard(
    "mnist",
    (1, 28, 28),
    (60_000, 10_000),
    ("ylecun/mnist", "image"),
    (_idx, _npz),
    tuple("0123456789"),
    "MNIST, LeCun, Cortes and Burges",
)
fashion_mnist = Standard(
    "fashion-mnist",
    (1, 28, 28),
    (60_000, 10_000),
    ("zalando-datasets/fashion_mnist", "image"),
    (_idx, _npz),
    (
        *("t-shirt", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
    "Fashion-MNIST, Xiao, Rasul and Vollgraf 2017, Zalando, MIT licence",
)
cifar10 = Standard(
    "cifar10",
    (3, 32, 32),
    (50_000, 10_000),
    ("uoft-cs/cifar10", "img"),
    (_cifar_binary, _cifar_mosaics, _npz),
    (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
    "CIFAR-10, Krizhevsky 2009",
)

STANDARD = {data.name: data for data in (mnist, fashion_mnist, cifar10)}
"""The data sets by name."""
