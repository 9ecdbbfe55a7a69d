"""Map-style torch data sets, such as torchvision's, as data to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from fewstep.conditions import Label
from fewstep.contract import DataSpec
from fewstep.core import Batch, UsageError
from fewstep.data.arrays import Indices
from fewstep.data.checks import channels_advice, looks_like_pixels, looks_like_shares
from fewstep.data.decoding import BadFile, square
from fewstep.data.formats import background_of, header_of
from fewstep.data.specs import make_spec

Named = int | Sequence[str] | Literal["auto", "none"]
"""What says which classes there are."""


def from_torch(
    dataset: Any,
    labels: Named = "auto",
    *,
    resolution: int | None = None,
    range: tuple[float, float] | None = None,
    background: str = "white",
) -> TorchData:
    """A map-style torch data set as data to learn from.

    Items are samples, or pairs of a sample and a label. A sample is a PIL image, which is read as
    ``ImageFolder`` reads one; a uint8 tensor ``(c, h, w)``, which is read as pixels; or a tensor of
    floats, which is handed out as it is unless ``range`` is given.

    Args:
        dataset: anything with a length and items by index.
        labels: the number of classes, their names, or ``none`` to read no labels. ``auto`` takes
            the names from the data set's ``classes``, as torchvision's have them, and reads no
            labels where items are no pairs.
        resolution: height and width of PIL images; of the first image if not given.
        range: of images that are floats, e.g. (0, 1) after ``ToTensor``; they are mapped to
            [-1, 1].
        background: colour behind transparent pixels of PIL images.

    Raises:
        UsageError: the data set has no random access, an item cannot be used, or nobody says how
            many classes there are.
    """
    return TorchData(dataset, labels, resolution, range, background)


class TorchData:
    """What :func:`from_torch` returns.

    Attributes:
        shape: of a sample.
        labels: number of classes, 0 without labels.
        image: whether the values are pictures in [-1, 1].
        spec: what a sample is and depends on.
        notes: what a user has to notice, in sentences.
    """

    def __init__(
        self,
        dataset: Any,
        labels: Named,
        resolution: int | None,
        range: tuple[float, float] | None,
        background: str,
    ) -> None:
        _check_access(dataset)
        self.dataset, self._range, self._background = dataset, range, background_of(background)
        item = dataset[0]
        self._paired = isinstance(item, tuple | list) and len(item) == 2
        if isinstance(item, tuple | list | dict) and not self._paired:
            raise UsageError(
                f"item 0 of the data set is a {type(item).__name__} of {len(item)}; expected a "
                "sample, or a pair of a sample and a label: wrap the data set"
            )
        first = item[0] if self._paired else item
        self._side, self._channels = self._square(first, resolution)
        sample = self._sample(item, 0)
        self.image = self._side is not None or _is_pixels(first) or range is not None
        self.shape = tuple(sample.shape)
        classes = _classes(dataset, labels, item if self._paired else None)
        self._labelled = classes is not None
        if not self.image:
            _check_floats(self.shape, sample)
            low, high = float(sample.min()), float(sample.max())
            self.image = len(self.shape) == 3 and self.shape[0] in (1, 3) and -1 <= low < 0 <= 1
            self.image &= high <= 1
        bounds = (-1.0, 1.0) if self.image else None
        self.spec: DataSpec = make_spec(self.shape, bounds, {} if classes is None else classes)
        self.labels = self.spec.labels
        self.notes = self._noticed(sample, labels)

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Indices) -> Batch:
        """The samples at ``indices``: ``x0`` ``(b, *shape)``; with labels, ``cond["label"]``.

        Raises:
            UsageError: an item is of another shape, not finite, or of no class; it is named.
        """
        samples, label = [], []
        for i in np.asarray(indices, dtype=np.int64).tolist():
            item = self.dataset[i]
            one = self._sample(item, i)
            if tuple(one.shape) != self.shape:
                raise UsageError(
                    f"sample {i} has the shape {tuple(one.shape)}, sample 0 {self.shape}; resize "
                    "them to one shape"
                )
            if not one.isfinite().all():
                raise UsageError(f"sample {i} of the data holds NaN or infinite values; remove it")
            samples.append(one)
            if self._labelled:
                label.append(self._label(item, i))
        cond = {"label": torch.tensor(label, dtype=torch.int64)} if self._labelled else {}
        return Batch(torch.stack(samples), cond)

    def _sample(self, item: Any, i: int) -> Tensor:
        value = item[0] if self._paired else item
        if isinstance(value, Image.Image):
            return self._picture(value, i)
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.ascontiguousarray(value))
        if not isinstance(value, Tensor):
            raise UsageError(
                f"sample {i} is a {type(value).__name__}; expected a tensor or a PIL image"
            )
        if value.dtype == torch.uint8:
            advice = channels_advice(value.shape, None)
            if value.ndim != 3 or advice:
                raise UsageError(
                    f"sample {i} is uint8 of shape {tuple(value.shape)}; expected (c, h, w)"
                    f"{advice.replace('0, 3, 1, 2', '2, 0, 1')}"
                )
            return value.float() / 127.5 - 1
        if not value.is_floating_point():
            raise UsageError(f"sample {i} is of {value.dtype}; expected floats, or uint8 pixels")
        if self._range is None:
            return value.float()
        low, high = self._range
        if float(value.min()) < low - 1e-3 or float(value.max()) > high + 1e-3:
            raise UsageError(
                f"sample {i} has values from {float(value.min()):g} to {float(value.max()):g}; "
                f"range={self._range} was given"
            )
        return (value.float() - low) * (2 / (high - low)) - 1

    def _picture(self, image: Image.Image, i: int) -> Tensor:
        if self._side is None or self._channels is None:
            raise UsageError(f"sample {i} is a PIL image, sample 0 is none")
        if not self._resized and image.size != (self._side, self._side):
            raise UsageError(
                f"sample {i} has {image.width} x {image.height} pixels, sample 0 {self._side} x "
                f"{self._side}; give from_torch(..., resolution=N)"
            )
        try:
            content = square(
                image.copy(), f"sample {i}", self._channels, self._side, "center", self._background
            )
        except BadFile as error:
            raise UsageError(str(error)) from error
        return torch.from_numpy(content.astype(np.float32) / 127.5 - 1)

    def _square(self, first: Any, resolution: int | None) -> tuple[int | None, int | None]:
        """Side and channels of PIL images; None of tensors."""
        self._resized = resolution is not None
        if not isinstance(first, Image.Image):
            if resolution is not None:
                raise UsageError("resolution= is for PIL images; resize tensors in the data set")
            return None, None
        if resolution is None and first.width != first.height:
            raise UsageError(
                f"sample 0 has {first.width} x {first.height} pixels and is not square; give "
                "from_torch(..., resolution=N)"
            )
        # All images would have to be read to know that none has colour.
        return resolution or first.width, 1 if "grey" in header_of(first).traits else 3

    def _label(self, item: Any, i: int) -> int:
        value = item[1]
        if isinstance(value, Tensor | np.ndarray | np.generic) and np.ndim(value) == 0:
            value = value.item()
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < self.labels:
            raise UsageError(
                f"sample {i} has the label {value!r:.80}; expected an integer in "
                f"[0, {self.labels}), as there are {self.labels} classes"
            )
        return value

    def _noticed(self, sample: Tensor, labels: Named) -> tuple[str, ...]:
        notes = []
        if self._paired and not self._labelled:
            notes.append("the labels of the data set are not read")
        if not torch.equal(self._sample(self.dataset[0], 0), sample):
            notes.append(
                "the data set changes its samples at random: a resumed run sees others than an "
                "uninterrupted one; augment with fewstep's augmentations instead"
            )
        return tuple(notes)


def _check_access(dataset: Any) -> None:
    if isinstance(dataset, DataLoader):
        raise UsageError("got a DataLoader; give its data set: from_torch(loader.dataset)")
    able = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if isinstance(dataset, IterableDataset) or not able:
        raise UsageError(
            f"a {type(dataset).__name__} cannot be read in any order, as training must; write its "
            "images to a folder or to shards, run fewstep data prepare SOURCE --out "
            "NAME.safetensors --resolution N, and give that file"
        )
    if not len(dataset):
        raise UsageError("the data set holds no samples")


def _classes(dataset: Any, labels: Named, pair: Any) -> dict[str, Any] | None:
    if labels == "none" or (labels == "auto" and pair is None):
        return None
    if pair is None:
        raise UsageError(f"got labels={labels!r}, but the data set's items are no pairs")
    names = getattr(dataset, "classes", None) if labels == "auto" else labels
    if isinstance(names, int) and not isinstance(names, bool):
        return {"label": Label(classes=names)} if names > 0 else None
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise UsageError(
            f"the items are pairs, the second of item 0 being {pair[1]!r:.60}, and nothing says of "
            "how many classes; give labels=K, the names of the classes, or labels='none'"
        )
    return {"label": Label(classes=len(names), names=tuple(map(str, names)))}


def _check_floats(shape: tuple[int, ...], sample: Tensor) -> None:
    low, high = float(sample.min()), float(sample.max())
    advice = channels_advice(shape, None).replace("0, 3, 1, 2", "2, 0, 1")
    if advice:
        raise UsageError(f"sample 0 has the shape {shape}; expected (c, h, w){advice}")
    pixels = looks_like_pixels(shape, low, high)
    unit = looks_like_shares(shape, low, high)
    if pixels or unit:
        top = 255 if pixels else 1
        raise UsageError(
            f"sample 0 has values from {low:g} to {high:g} and looks like an image in [0, {top}]; "
            f"give range=(0, {top}), which maps it to [-1, 1]"
        )


def _is_pixels(value: Any) -> bool:
    return getattr(value, "dtype", None) in (torch.uint8, np.uint8)
