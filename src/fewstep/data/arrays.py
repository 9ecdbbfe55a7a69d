"""Data that lies in numpy arrays: pixels, latents, spectrograms, action chunks, toys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fewstep.conditions import Mask
from fewstep.contract import DataSpec
from fewstep.core import Batch, UsageError, entropy
from fewstep.data.checks import channels_advice, looks_like_pixels, looks_like_shares
from fewstep.data.columns import Column, columns, label_column
from fewstep.data.specs import make_spec
from fewstep.values import lengths_of

Indices = Sequence[int] | np.ndarray
"""Integers in [0, n)."""


class Arrays:
    """A dataset over one array, and arrays of what its samples depend on.

    Args:
        x: ``(n, *shape)``. uint8 must be ``(n, c, h, w)`` and is read as pixels, mapped from
            [0, 255] to [-1, 1] on access; floats are handed out as they are, in float32.
            A memory-mapped array stays one.
        label: integers ``(n,)`` in [0, ``labels``), names of classes, or None.
        labels: number of classes; if not given every one from 0 to the largest label must occur.
        image: whether the values are pictures in [-1, 1]; true for uint8 only if not given.
        conditions: arrays ``(n, ...)`` by name; a pair of tokens and mask is a sequence.
        mask: 1 where a sample is real, ``(n, 1, *space)`` or ``(n, *space)``, or the lengths
            ``(n,)``, where samples that differ in length are filled up along the last axis.
        range: of the values; None if they are unbounded, (-1, 1) for images.
        spec: what all this is; what the arrays show if not given.
        check: read all values, and refuse those that are not finite or out of range.

    Attributes:
        shape: of a sample as it is stored.
        spec: what a sample is and depends on.

    Raises:
        UsageError: the array is empty, of another type, not finite, or not in its range; a
            condition is of another length, kind or range.
    """

    def __init__(
        self,
        x: ArrayLike,
        label: ArrayLike | None = None,
        *,
        labels: int | None = None,
        image: bool | None = None,
        conditions: Mapping[str, Any] | None = None,
        mask: ArrayLike | None = None,
        range: tuple[float, float] | None = None,
        spec: DataSpec | None = None,
        check: bool = True,
    ) -> None:
        self._x = np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x)
        self.image = self._x.dtype == np.uint8 if image is None else image
        bounds = spec.range if spec else (-1.0, 1.0) if self.image and range is None else range
        plain = image is None and spec is None
        _check_kind(self._x, self.image, bounds, plain)
        if check and self._x.dtype != np.uint8:
            _check_values(self._x, self.image, bounds, plain)
        self.shape: tuple[int, ...] = self._x.shape[1:]
        self._mask = None if mask is None else _checked_mask(mask, self._x.shape)
        given = {**({} if label is None else {"label": label}), **(conditions or {})}
        self._columns = self._checked(given, labels, spec, check)
        self.spec = self._described(bounds) if spec is None else spec
        self.labels = self.spec.labels
        if not self.spec.fits(self.shape) or self.spec.masked != (self._mask is not None):
            raise UsageError(
                f"samples of shape {self.shape} {'with' if self.spec.masked else 'without'} a mask "
                f"are declared as {self.spec.shape}, and the arrays are of {self.shape}, "
                f"{'without' if self._mask is None else 'with'} one"
            )

    def __len__(self) -> int:
        return len(self._x)

    def batch(self, indices: Indices) -> Batch:
        """The samples at ``indices``: ``x0`` ``(b, *shape)``, their conditions and mask."""
        index = np.asarray(indices, dtype=np.int64)
        x0 = self._x[index].astype(np.float32)
        if self._x.dtype == np.uint8:
            x0 = x0 / 127.5 - 1
        cond = dict(
            pair for name, column in self._columns.items() for pair in column.batch(name, index)
        )
        if self._mask is None:
            return Batch(torch.from_numpy(x0), cond)
        mask = self._mask[index].astype(np.float32)
        real = torch.from_numpy(mask)
        return Batch(torch.from_numpy(x0 * mask), {**cond, "mask": real}, real)

    @property
    def given_labels(self) -> np.ndarray | None:
        """The class of each sample, integers, or None."""
        label = self._columns.get("label")
        return None if label is None else label.arrays[0]

    def unlabelled(self) -> Arrays:
        """The same samples (not copied) without their labels."""
        kept = {k: v for k, v in self.spec.conditions.items() if k != "label"}
        return self._like(slice(None), self.spec.model_copy(update={"conditions": kept}))

    def subset(self, indices: Indices) -> Arrays:
        """The samples at ``indices`` (or where a boolean mask is true), with the same classes."""
        return self._like(np.asarray(indices), self.spec)

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name: ``x``, ``mask`` if there is one, ``cond.KEY`` of each condition."""
        arrays = {"x": self._x, **({} if self._mask is None else {"mask": self._mask})}
        for name, column in self._columns.items():
            arrays |= {f"cond.{key}": array for key, array in column.items(name)}
        return arrays

    def _like(self, index: Any, spec: DataSpec) -> Arrays:
        columns = {k: v for k, v in self._columns.items() if k in spec.conditions}
        parts = {
            name: column._replace(arrays=tuple(a[index] for a in column.arrays)).value()
            for name, column in columns.items()
        }
        mask = None if self._mask is None else self._mask[index]
        x = self._x[index]
        return Arrays(x, image=self.image, conditions=parts, mask=mask, spec=spec, check=False)

    def _checked(
        self, given: dict[str, Any], labels: int | None, spec: DataSpec | None, check: bool
    ) -> dict[str, Column]:
        if spec is not None:
            declared = {k: v for k, v in spec.conditions.items() if k != "mask"}
            return columns(given, len(self), declared, check)
        label = given.pop("label", None)
        if label is None and labels:
            raise UsageError(f"labels={labels} was given without labels; pass label as well")
        first = {} if label is None else {"label": label_column(label, len(self), labels)}
        return {**first, **columns(given, len(self), None, check)}

    def _described(self, bounds: tuple[float, float] | None) -> DataSpec:
        conditions = {name: column.kind for name, column in self._columns.items()}
        if self._mask is None:
            return make_spec(self.shape, bounds, conditions)
        longest = max(lengths_of(torch.from_numpy(self._mask)))
        return make_spec(
            (*self.shape[:-1], None), bounds, {**conditions, "mask": Mask(length=longest)}
        )


def _check_kind(
    x: np.ndarray, image: bool, bounds: tuple[float, float] | None, plain: bool
) -> None:
    """Refuse arrays of another kind; ``plain`` says that nobody says whether they are images."""
    if x.ndim < 2 or x.size == 0:
        raise UsageError(
            f"got an array of shape {x.shape}; expected (n, *event) with at least one sample"
        )
    pixels = x.dtype == np.uint8
    if not pixels and not np.issubdtype(x.dtype, np.floating):
        raise UsageError(f"got an array of {x.dtype}; expected floats, or uint8 for pixels")
    if (pixels or image) and x.ndim != 4:
        advice = ": grey images become x[:, None]" if x.ndim == 3 else ""
        raise UsageError(f"got images of shape {x.shape}; expected (n, c, h, w){advice}")
    advice = channels_advice(x.shape[1:], None) if pixels or image or plain else ""
    if advice:
        other = "" if pixels or image else " (if these are no images say image=False)"
        raise UsageError(f"got images of shape {x.shape}; expected (n, c, h, w){advice}{other}")
    if (pixels or image) and bounds != (-1.0, 1.0):
        raise UsageError(f"images lie in [-1, 1], got the range {bounds}")


def _check_values(
    x: np.ndarray, image: bool, bounds: tuple[float, float] | None, plain: bool
) -> None:
    # Two reductions need no second array, and a NaN comes through both.
    with np.errstate(invalid="ignore"):
        low, high = float(x.min()), float(x.max())
    largest = float(np.finfo(np.float32).max)
    if not (low >= -largest and high <= largest):
        first = next(i for i, one in enumerate(x) if not (np.abs(one) <= largest).all())
        raise UsageError(
            f"sample {first} of the array holds NaN, infinite or larger values than float32 can; "
            "remove such samples before making a dataset"
        )
    if plain and bounds is None and looks_like_pixels(x.shape[1:], low, high):
        raise UsageError(
            f"the values lie in [{low:g}, {high:g}] and look like pixels: pass them as uint8, or "
            "say range=(0, 255) if they are none"
        )
    if plain and bounds is None and looks_like_shares(x.shape[1:], low, high):
        raise UsageError(
            f"the values lie in [{low:g}, {high:g}] and look like images in [0, 1]: pass 2 * x - 1 "
            "and say image=True, or say range=(0, 1) if they are none"
        )
    if bounds is not None and (low < bounds[0] or high > bounds[1]):
        advice = "rescale them, or pass uint8 pixels in [0, 255]" if image else "rescale them"
        raise UsageError(
            f"{'image ' if image else ''}values lie in [{low:g}, {high:g}]; expected "
            f"[{bounds[0]:g}, {bounds[1]:g}]: {advice}"
        )


def _checked_mask(mask: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """bool ``(n, 1, *space)`` of a mask or of lengths."""
    array, (n, *event) = np.asarray(mask), shape
    if len(event) < 2:
        raise UsageError(f"a mask needs an axis after the channels, got samples of {tuple(event)}")
    if array.shape == (n,) and np.issubdtype(array.dtype, np.integer):
        if array.min() < 1 or array.max() > event[-1]:
            raise UsageError(
                f"lengths lie in [{array.min()}, {array.max()}]; expected [1, {event[-1]}]"
            )
        row = np.arange(event[-1]) < array[:, None]
        array = np.broadcast_to(
            row.reshape(n, *[1] * (len(event) - 1), event[-1]), (n, 1, *event[1:])
        )
    if array.shape == (n, *event[1:]):
        array = array[:, None]
    if array.shape != (n, 1, *event[1:]) or not ((array == 0) | (array == 1)).all():
        raise UsageError(
            f"the mask must be 0 and 1 of shape {(n, 1, *event[1:])}, or {n} lengths; got "
            f"{array.dtype} of shape {array.shape}"
        )
    if not array.reshape(n, -1).any(1).all():
        raise UsageError("the mask says of a sample that nothing of it is real; leave it out")
    return array.astype(bool)


def stratified_split(
    label: ArrayLike, sizes: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint random parts of labelled data in which the classes keep their proportions.

    Each class gives its share of the first part rounded down; what is missing comes from the
    classes with the largest remainders, so that the sizes are met exactly.

    Args:
        label: integers ``(n,)``.
        sizes: of both parts; they add up to ``n``.
        seed: two splits with the same seed are the same.

    Returns:
        Two ascending int64 index arrays of those sizes.

    Raises:
        UsageError: the sizes are negative or do not add up to ``n``.
    """
    _, class_of, counts = np.unique(np.asarray(label), return_inverse=True, return_counts=True)
    n = len(class_of)
    if min(sizes) < 0 or sum(sizes) != n:
        raise UsageError(f"cannot split {n} samples into {sizes}; the two sizes must add up to {n}")
    share, remainder = np.divmod(counts * sizes[0], n)
    share[np.argsort(-remainder, kind="stable")[: sizes[0] - share.sum()]] += 1
    rng = np.random.Generator(np.random.PCG64(entropy(seed, "split")))
    first = np.zeros(n, dtype=bool)
    for k, size in enumerate(share):
        first[rng.permutation(np.flatnonzero(class_of == k))[:size]] = True
    return np.flatnonzero(first), np.flatnonzero(~first)
