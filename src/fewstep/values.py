"""Values of conditions as tensors, checked: numbers, rows of a shape, masks and lengths."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Sequence as Ordered
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import UsageError

LARGEST = 2**28
"""The most values that one condition of one sample may have."""

FILES = (".npy", ".npz")
"""Suffixes of the files from which the command line reads a condition."""


def lengths_of(mask: Tensor) -> list[int]:
    """One more than the last real position of each sample, along the last axis."""
    real = (mask != 0).flatten(1, -2).any(1)
    places = torch.arange(1, real.shape[1] + 1, device=mask.device)
    return (real * places).amax(1).tolist()


def masks_of(name: str, given: Tensor, n: int, space: Ordered[int | None]) -> Tensor:
    """bool ``(n, 1, *space)`` of one length or n, along the last axis."""
    lengths = given.expand(n) if given.shape in {(), (1,)} else given
    if lengths.shape != (n,):
        raise UsageError(f"expected one length or {n} as {name}, got {len(lengths)}")
    longest = int(lengths.max())
    last = longest if space[-1] is None else space[-1]
    if int(lengths.min()) < 1 or longest > last or longest > LARGEST:
        raise UsageError(f"lengths must be in [1, {space[-1] or LARGEST}], got {lengths.tolist()}")
    row = torch.arange(last) < lengths[:, None]
    row = row.reshape(n, *[1] * len(space), last)
    return row.expand(n, 1, *(s or 1 for s in space[:-1]), last)


def array_of(name: str, value: Any) -> Tensor:
    """A tensor on the CPU of anything that holds numbers."""
    try:
        if not isinstance(value, Tensor):
            value = torch.as_tensor(np.asarray(value))
        if value.dtype.is_complex:
            raise TypeError("complex numbers")
        return value.detach().cpu()
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"{name} must be numbers, got {_brief(value)} ({error})") from error


def undeclared(name: str, value: Any, n: int) -> Tensor:
    """A condition that only the network knows, ``(n, ...)``: floats as float32, integers as such.

    Args:
        name: for messages.
        value: numbers with a row for each sample, or one row for all.
        n: samples.

    Raises:
        UsageError: these are no numbers, or they have another number of rows.
    """
    given = array_of(name, value)
    if given.ndim == 0 or len(given) not in {1, n}:
        raise UsageError(
            f"{name} must have one row, or {n} with one a sample; got the shape "
            f"{tuple(given.shape)}"
        )
    given = given.to(torch.float32) if given.is_floating_point() else given
    return given.expand(n, *given.shape[1:])


def rows_of(name: str, value: Any, shape: Ordered[int], n: int) -> Tensor:
    """float32 ``(n, *shape)``, or ``(1, *shape)`` where one row is given for all."""
    given = array_of(name, value)
    row = given[None] if given.ndim == len(shape) else given
    if tuple(row.shape[1:]) != tuple(shape) or row.ndim == 0 or len(row) not in {1, n}:
        wanted = shape_text(shape)
        raise UsageError(
            f"{name} must have the shape ({wanted}), or ({n}, {wanted}) with a row for each "
            f"sample; got {tuple(given.shape)}"
        )
    row = row.to(torch.float32)
    if not bool(row.isfinite().all()):
        raise UsageError(f"{name} holds NaN, infinite or larger values than float32 can")
    return row


def numbers(name: str, text: str) -> list[float]:
    """Numbers with commas between them."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"{name} must be numbers with commas between them, or a {' or '.join(FILES)} file; "
            f"got {text!r}"
        ) from None


def shape_text(shape: Ordered[int | None]) -> str:
    """A shape in words, free axes included."""
    return ", ".join("any" if size is None else str(size) for size in shape)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def packed(value: Tensor) -> str:
    """Numbers as a text of letters: float16, compressed; a mask is numbers too.

    Raises:
        ValueError: a number is not finite in float16.
    """
    half = value.detach().cpu().to(torch.float16)
    if not bool(half.isfinite().all()):
        raise ValueError("a number is not finite, or above 65,504")
    return base64.b64encode(zlib.compress(half.numpy().astype("<f2").tobytes(), 9)).decode("ascii")


@lru_cache(maxsize=16)
def unpacked(text: str, count: int) -> Tensor:
    """The float32 ``(count,)`` of :func:`packed`; the result is shared and must not be changed.

    Raises:
        ValueError: the text does not hold so many finite numbers.
    """
    try:
        reader = zlib.decompressobj()
        content = reader.decompress(base64.b64decode(text, validate=True), 2 * count + 1)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise ValueError(f"packed numbers cannot be read: {error}") from error
    if len(content) != 2 * count:
        raise ValueError(f"expected {count} packed numbers, got {len(content) // 2} or more")
    numbers_ = torch.from_numpy(np.frombuffer(content, "<f2").astype(np.float32))
    if not bool(numbers_.isfinite().all()):
        raise ValueError("packed numbers are not finite")
    return numbers_
