"""Data that lies in a numpy array: pixels, latents, spectrograms, action chunks, toys."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike

from fewstep.core import Batch, UsageError, entropy

Indices = Sequence[int] | np.ndarray
"""Integers in [0, n)."""


class Arrays:
    """A dataset over one array.

    Args:
        x: ``(n, *event)``. uint8 must be ``(n, c, h, w)`` and is read as pixels, mapped from
            [0, 255] to [-1, 1] on access; floats are handed out as they are, in float32.
            A memory-mapped array stays one.
        label: integers ``(n,)`` in [0, ``labels``), or None.
        labels: number of classes; the largest label plus one if not given.
        image: whether the values are pictures in [-1, 1]; true for uint8 only if not given.

    Raises:
        UsageError: the array is empty, of another type, not finite, or not in [-1, 1] though
            ``image``; the labels are of another length, not integers, or out of range.
    """

    def __init__(
        self,
        x: ArrayLike,
        label: ArrayLike | None = None,
        *,
        labels: int | None = None,
        image: bool | None = None,
    ) -> None:
        self._x = np.asarray(x)
        self.image = self._x.dtype == np.uint8 if image is None else image
        _check_values(self._x, self.image)
        self._label = None if label is None else _checked_label(label, len(self._x), labels)
        if self._label is None:
            if labels:
                raise UsageError(f"labels={labels} was given without labels; pass label as well")
            self.labels = 0
        else:
            self.labels = int(self._label.max()) + 1 if labels is None else labels
        self.shape: tuple[int, ...] = self._x.shape[1:]

    def __len__(self) -> int:
        return len(self._x)

    def batch(self, indices: Indices) -> Batch:
        """The samples at ``indices``: ``x0`` ``(b, *event)``; with labels, ``cond["label"]``."""
        index = np.asarray(indices, dtype=np.int64)
        x0 = self._x[index].astype(np.float32)
        if self._x.dtype == np.uint8:
            x0 = x0 / 127.5 - 1
        cond = {} if self._label is None else {"label": torch.from_numpy(self._label[index])}
        return Batch(torch.from_numpy(x0), cond)

    def unlabelled(self) -> Arrays:
        """The same samples (not copied) without their labels."""
        return Arrays(self._x, image=self.image)

    def subset(self, indices: Indices) -> Arrays:
        """The samples at ``indices`` (or where a boolean mask is true), with the same classes."""
        index = np.asarray(indices)
        label = None if self._label is None else self._label[index]
        return Arrays(self._x[index], label, labels=self.labels, image=self.image)


def _check_values(x: np.ndarray, image: bool) -> None:
    if x.ndim < 2 or x.size == 0:
        raise UsageError(
            f"got an array of shape {x.shape}; expected (n, *event) with at least one sample"
        )
    pixels = x.dtype == np.uint8
    if not pixels and not np.issubdtype(x.dtype, np.floating):
        raise UsageError(f"got an array of {x.dtype}; expected floats, or uint8 for pixels")
    if (pixels or image) and x.ndim != 4:
        raise UsageError(f"got images of shape {x.shape}; expected (n, c, h, w)")
    if pixels:
        return
    # Two reductions need no second array, and a NaN comes through both.
    with np.errstate(invalid="ignore"):
        low, high = float(x.min()), float(x.max())
    largest = float(np.finfo(np.float32).max)
    if not (low >= -largest and high <= largest):
        raise UsageError(
            "the array holds NaN, infinite or larger values than float32 can; "
            "remove those samples before making a dataset"
        )
    if image and (low < -1 or high > 1):
        raise UsageError(
            f"image values lie in [{low:g}, {high:g}]; expected [-1, 1]: "
            "rescale them, or pass uint8 pixels in [0, 255]"
        )


def _checked_label(label: ArrayLike, n: int, labels: int | None) -> np.ndarray:
    array = np.asarray(label)
    if array.shape != (n,):
        raise UsageError(f"got labels of shape {array.shape} for {n} samples; expected ({n},)")
    if not np.issubdtype(array.dtype, np.integer):
        raise UsageError(f"got labels of {array.dtype}; expected integers that count from 0")
    low, high = int(array.min()), int(array.max())
    if low < 0 or (labels is not None and high >= labels):
        top = "k" if labels is None else str(labels)
        raise UsageError(f"labels lie in [{low}, {high}]; expected integers in [0, {top})")
    return array.astype(np.int64)


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
