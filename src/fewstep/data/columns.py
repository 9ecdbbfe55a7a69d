"""The conditions of samples that lie in arrays: one array a key, and what each condition is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fewstep.conditions import OF_TOKENS, Condition, Image, Label, Mask, Sequence, Text, Vector
from fewstep.data.naming import in_order, shortened
from fewstep.errors import UsageError, nearest


class Column(NamedTuple):
    """A condition and its arrays: one of ``(n, ...)``, or the tokens and the mask of a sequence."""

    kind: Condition
    arrays: tuple[np.ndarray, ...]

    def batch(self, name: str, index: np.ndarray) -> Iterator[tuple[str, Tensor]]:
        """The tensors of the samples at ``index``, by key."""
        rows = self.arrays[0][index]
        if isinstance(self.kind, Label):
            yield name, torch.from_numpy(rows)
            return
        integers = isinstance(self.kind, Text)
        values = rows.astype(np.int64 if integers else np.float32)
        if isinstance(self.kind, Image) and rows.dtype == np.uint8:
            values = values / 127.5 - 1
        yield name, torch.from_numpy(values)
        if isinstance(self.kind, OF_TOKENS):
            yield f"{name}_mask", torch.from_numpy(self.arrays[1][index].astype(bool))

    def value(self) -> Any:
        """What :func:`columns` made it of."""
        first, *mask = self.arrays
        return (first, *mask) if mask else first

    def items(self, name: str) -> Iterator[tuple[str, np.ndarray]]:
        """The arrays by key."""
        yield from zip((name, f"{name}_mask"), self.arrays, strict=False)


def columns(
    given: Mapping[str, Any],
    n: int,
    declared: Mapping[str, Condition] | None,
    check: bool = True,
) -> dict[str, Column]:
    """Checked columns of the conditions that are given.

    Args:
        given: arrays ``(n, ...)`` by name; of a sequence a pair of tokens and mask. uint8 images
            are read as pixels.
        n: samples.
        declared: what they are; where it is None, the arrays show it: integers ``(n,)`` are
            classes, four axes an image, a pair a sequence, all else a vector.
        check: read all values, and refuse those that are not finite.

    Raises:
        UsageError: an array does not fit, or a condition is missing or not declared.
    """
    if declared is not None:
        for name in given:
            if name not in declared:
                raise UsageError(f"unknown condition {name!r}; {nearest(name, declared)}")
        missing = [name for name in declared if name not in given]
        if missing:
            raise UsageError(f"the data has no values of the condition(s) {', '.join(missing)}")
    return {
        name: _column(name, value, n, None if declared is None else declared[name], check)
        for name, value in given.items()
    }


def label_column(label: ArrayLike, n: int, classes: int | None) -> Column:
    """Classes of n samples: names, or integers from 0, below ``classes`` if those are given.

    Without ``classes`` every integer up to the largest must occur.
    """
    array = np.asarray(label)
    if array.shape != (n,):
        advice = ": one-hot rows become label.argmax(1)" if array.ndim == 2 else ""
        raise UsageError(
            f"got labels of shape {array.shape} for {n} samples; expected ({n},){advice}"
        )
    if array.dtype.kind == "U":
        return _named(array, classes)
    if not np.issubdtype(array.dtype, np.integer):
        raise UsageError(f"got labels of {array.dtype}; expected integers that count from 0")
    low, high = int(array.min()), int(array.max())
    if low < 0 or (classes is not None and high >= classes):
        top = "k" if classes is None else str(classes)
        raise UsageError(f"labels lie in [{low}, {high}]; expected integers in [0, {top})")
    values = np.unique(array)
    if classes is None and len(values) != high + 1:
        shown = shortened([*map(str, values.tolist())])
        raise UsageError(
            f"the labels {shown} do not count from 0 without gaps; pass "
            "numpy.unique(label, return_inverse=True)[1], which numbers them in that order, or "
            f"labels={high + 1} if the other classes only have no samples"
        )
    known = Label(classes=high + 1 if classes is None else classes)
    return Column(known, (array.astype(np.int64),))


def _named(array: np.ndarray, classes: int | None) -> Column:
    names, _ = in_order(array.tolist())
    if classes not in {None, len(names)}:
        raise UsageError(f"got labels={classes} and {len(names)} names: {shortened(names)}")
    number = {name: k for k, name in enumerate(names)}
    label = np.array([number[name] for name in array.tolist()], np.int64)
    return Column(Label(classes=len(names), names=names), (label,))


def _column(name: str, value: Any, n: int, kind: Condition | None, check: bool) -> Column:
    pair = isinstance(value, tuple) and len(value) == 2
    first = np.asarray(value[0] if pair else value)
    if kind is None:
        kind = _infer(first, pair)
    if isinstance(kind, Label):
        column = label_column(first, n, kind.classes)
        return Column(kind, column.arrays)
    if not isinstance(kind, Vector | Image | Sequence | Text):
        raise UsageError(
            f"the condition {name!r}, a {type(kind).__name__}, cannot be given as an array"
            + ("; give mask=..." if isinstance(kind, Mask) else "")
        )
    shape = _shape(kind)
    if first.shape != (n, *shape):
        raise UsageError(
            f"the condition {name!r} has the shape {first.shape}; expected {(n, *shape)}"
        )
    if not (np.issubdtype(first.dtype, np.floating) or np.issubdtype(first.dtype, np.integer)):
        raise UsageError(f"the condition {name!r} is of {first.dtype}; expected numbers")
    if check:
        _check_finite(name, first)
        _check_tokens(name, first, kind)
    if not isinstance(kind, OF_TOKENS):
        return Column(kind, (first,))
    there = np.ones((n, kind.length), bool) if not pair or value[1] is None else value[1]
    there = np.asarray(there)
    if there.shape != (n, kind.length) or not ((there == 0) | (there == 1)).all():
        raise UsageError(
            f"the mask of {name!r} must be 0 and 1 of shape {(n, kind.length)}, got {there.dtype} "
            f"of shape {there.shape}"
        )
    return Column(kind, (first, there.astype(bool)))


def _shape(kind: Vector | Image | Sequence | Text) -> tuple[int, ...]:
    """The shape of one sample's values."""
    if isinstance(kind, Text):
        return (kind.length,)
    return (kind.length, *kind.shape) if isinstance(kind, Sequence) else kind.shape


def _infer(array: np.ndarray, pair: bool) -> Condition:
    """What an array shows of its condition."""
    if pair and array.ndim >= 2:
        return Sequence(shape=array.shape[2:], length=array.shape[1])
    if array.ndim == 1 and np.issubdtype(array.dtype, np.integer) and len(array):
        return Label(classes=max(int(array.max()), 0) + 1)
    if array.ndim == 4:
        return Image(shape=array.shape[1:])
    return Vector(shape=array.shape[1:])


def _check_tokens(name: str, array: np.ndarray, kind: Condition) -> None:
    if not isinstance(kind, Text):
        return
    if not np.issubdtype(array.dtype, np.integer) or not (
        0 <= int(array.min()) <= int(array.max()) < kind.vocabulary
    ):
        raise UsageError(
            f"the text {name!r} must have integers in [0, {kind.vocabulary - 1}] as tokens, got "
            f"{array.dtype} in [{array.min()}, {array.max()}]"
        )


def _check_finite(name: str, array: np.ndarray) -> None:
    with np.errstate(invalid="ignore"):
        low, high = float(array.min()), float(array.max())
    largest = float(np.finfo(np.float32).max)
    if not (low >= -largest and high <= largest):
        raise UsageError(
            f"the condition {name!r} holds NaN, infinite or larger values than float32 can; remove "
            "those samples"
        )
