"""Tensors of a file before they are read: shape, kind and place, checked against the file."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UsageError

DTYPES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
"""The kinds of numbers of torch's storages."""


@dataclass(frozen=True, eq=False)
class Storage:
    """Numbers in a file, in a row.

    Args:
        dtype: of the numbers.
        count: how many.
        read: reads their bytes.
    """

    dtype: torch.dtype
    count: int
    read: Callable[[], memoryview | bytes]


@dataclass(frozen=True, eq=False)
class Lazy:
    """A tensor of a file, whose bytes are read by :meth:`tensor`.

    Args:
        shape: of the tensor.
        dtype: of the numbers.
        load: reads the tensor.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def tensor(self) -> Tensor:
        """The tensor, in memory of its own."""
        return self.load()


def lazy_tensor(storage: Storage, offset: Any, shape: Any, stride: Any) -> Lazy:
    """A view of a storage.

    Raises:
        ValueError: the view does not lie inside of the storage, or repeats its numbers.
    """
    whole = (offset, *shape, *stride)
    if not all(type(n) is int and n >= 0 for n in whole) or len(shape) != len(stride):
        raise ValueError("a tensor's sizes are no whole numbers")
    count = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if count > storage.count or (count and last >= storage.count):
        raise ValueError(f"a tensor of shape {tuple(shape)} is larger than its storage")

    def load() -> Tensor:
        if not count:
            return torch.empty(shape, dtype=storage.dtype)
        numbers = torch.frombuffer(bytearray(storage.read()), dtype=storage.dtype)
        return numbers.as_strided(shape, stride, offset).clone(
            memory_format=torch.contiguous_format
        )

    return Lazy(tuple(shape), storage.dtype, load)


def sized(name: Any, count: Any, available: int) -> tuple[torch.dtype, int]:
    """The kind and the number of a storage's numbers, for which bytes are available.

    Args:
        name: the full name of the storage's class.
        count: the number that the file declares.
        available: bytes that are there.

    Raises:
        ValueError: they do not fit.
    """
    dtype = DTYPES.get(str(name).removeprefix("torch."))
    if dtype is None:
        raise ValueError(f"a storage is of the unknown kind {name}")
    if type(count) is not int or count < 0 or count * dtype.itemsize > available:
        raise ValueError(f"a storage declares {count} numbers where {available} bytes are")
    return dtype, count


def checked(name: str, lazy: Lazy) -> Tensor:
    """A weight in float32, or in its own kind where that holds whole numbers.

    Raises:
        UsageError: a number is not finite.
    """
    tensor = lazy.tensor()
    if not tensor.is_floating_point():
        return tensor
    if not bool(torch.isfinite(tensor).all()):
        raise UsageError(
            f"{name} holds numbers that are not finite; the checkpoint comes from a training that "
            "diverged, or is damaged: give an earlier one"
        )
    return tensor.float()
