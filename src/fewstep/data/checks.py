"""Whether a batch of data is what its specification says, in a sentence where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions import Label
from fewstep.contract import DataSpec
from fewstep.core import Batch, UsageError

FIRST = 64
"""Samples that are checked before training."""
SLACK = 1e-3
"""How far values may lie outside their range, for rounding."""


def first_batch(data: Any, n: int = FIRST) -> Batch:
    """The first samples of a data set, at most ``n``.

    Raises:
        UsageError: there are none, or what the data set returns is no batch of them.
    """
    described = () if getattr(data, "spec", None) is not None else ("shape", "labels", "image")
    needed = ("batch", "__len__", *described)
    missing = [name for name in needed if not hasattr(data, name)]
    if missing:
        raise UsageError(
            f"a {type(data).__name__} is no data set, as it has no {', '.join(missing)}; give "
            "fewstep.data.Arrays(x, label) of arrays, fewstep.data.from_torch(dataset) of a torch "
            "data set, or ImageFolder(path, resolution) of images"
        )
    count = min(len(data), n)
    if count < 1:
        raise UsageError("the data holds no samples")
    batch = data.batch([*range(count)])
    if not isinstance(batch, Batch):
        raise UsageError(
            f"the data's batch(indices) returns a {type(batch).__name__}; it must return "
            "fewstep.core.Batch(x0, cond)"
        )
    if not isinstance(batch.x0, Tensor) or batch.x0.ndim < 2 or len(batch.x0) != count:
        shape = tuple(getattr(batch.x0, "shape", ()))
        raise UsageError(
            f"the data's batch of {count} indices holds x0 as a {type(batch.x0).__name__} of shape "
            f"{shape}; expected a tensor ({count}, *shape)"
        )
    return batch


def check_batch(batch: Batch, spec: DataSpec, indices: Sequence[int] | None = None) -> None:
    """That samples have the shape, type and range of their specification, and are finite.

    Args:
        batch: of samples.
        spec: what they should be.
        indices: of the samples in the data, for messages; from 0 if not given.

    Raises:
        UsageError: they are not; the first sample at fault is named.
    """
    index = range(len(batch)) if indices is None else indices
    shape = tuple(batch.x0.shape[1:])
    if not spec.fits(shape):
        raise UsageError(
            f"the data holds samples of shape {shape}; its spec says {spec.shape}"
            + channels_advice(shape, spec.shape)
        )
    if not batch.x0.is_floating_point():
        advice = ": pixels become x0.float() / 127.5 - 1" if batch.x0.dtype == torch.uint8 else ""
        raise UsageError(f"the data holds samples of {batch.x0.dtype}; expected float32{advice}")
    if batch.x0.dtype != torch.float32:
        raise UsageError(
            f"the data holds samples of {batch.x0.dtype}; expected float32: return x0.float()"
        )
    rows = batch.x0.reshape(len(batch), -1)
    bad = (~rows.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise UsageError(
            f"sample {index[bad[0]]} of the data holds NaN or infinite values, as do {len(bad)} of "
            f"the {len(batch)} samples looked at; remove them"
        )
    _check_range(rows, spec, shape, index)
    label = spec.conditions.get("label")
    if isinstance(label, Label) and "label" in batch.cond:
        _check_labels(batch.cond["label"], label.classes, index)


def looks_like_pixels(shape: Sequence[int | None], low: float, high: float) -> bool:
    """Whether values are probably pixels from 0 to 255, in floats."""
    return len(shape) == 3 and shape[0] in (1, 3) and low >= 0 and 200 <= high <= 255


def looks_like_shares(shape: Sequence[int | None], low: float, high: float) -> bool:
    """Whether values are probably pixels from 0 to 1."""
    return len(shape) == 3 and shape[0] in (1, 3) and low >= 0 and 0.5 < high <= 1


def channels_advice(shape: Sequence[int | None], expected: Sequence[int | None] | None) -> str:
    """The transpose that is needed, where channels come last but should come first."""
    if len(shape) != 3:
        return ""
    height, width, channels = shape
    if expected is None:
        alike = channels == 3 or height == width
        last = channels in (1, 3, 4) and height not in (1, 3, 4) and (width or 0) > 4 and alike
    else:
        last = (channels, height, width) == tuple(expected) and tuple(shape) != tuple(expected)
    return "; put channels first: x.transpose(0, 3, 1, 2), torch: x.permute(0, 3, 1, 2)" * last


def _check_range(rows: Tensor, spec: DataSpec, shape: Sequence[int], index: Sequence[int]) -> None:
    low, high = float(rows.min()), float(rows.max())
    if spec.range is None:
        if looks_like_pixels(shape, low, high):
            raise UsageError(
                f"the data's values lie in [{low:g}, {high:g}] and look like pixels; return "
                "x0 / 127.5 - 1 and say image = True, or declare them with a spec of that range"
            )
        return
    least, most = spec.range
    room = SLACK * (most - least)
    if low >= least - room and high <= most + room:
        # Pixels are never 0 in [-1, 1], as 127.5 is none; in [0, 1] black is.
        if (least, most) == (-1, 1) and low == 0 < high and len(shape) == 3:
            raise UsageError(
                f"the data's values lie in [{low:g}, {high:g}] and its spec says [-1, 1]; if 0 is "
                "black return 2 * x0 - 1"
            )
        return
    outside = ((rows < least - room) | (rows > most + room)).any(1)
    first = index[int(outside.nonzero()[0])]
    advice = ": return x0 / 127.5 - 1" if low >= 0 and 2 < high <= 255 else ""
    raise UsageError(
        f"the data's values lie in [{low:g}, {high:g}], first in sample {first}; its spec says "
        f"[{least:g}, {most:g}]{advice}"
    )


def _check_labels(label: Tensor, classes: int, index: Sequence[int]) -> None:
    if label.shape != (len(index),) or label.dtype != torch.int64:
        advice = ": one-hot rows become label.argmax(1)" if label.ndim == 2 else ""
        raise UsageError(
            f"the data holds the labels as {label.dtype} of shape {tuple(label.shape)}; expected "
            f"torch.int64 of shape ({len(index)},){advice}"
        )
    outside = ((label < 0) | (label >= classes)).nonzero().flatten().tolist()
    if outside:
        raise UsageError(
            f"sample {index[outside[0]]} of the data has the label {int(label[outside[0]])}; "
            f"label must be in [0, {classes - 1}], as there are {classes} classes"
        )
