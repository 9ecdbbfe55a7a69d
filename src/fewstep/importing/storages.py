"""Tensors of a file before they are read: shape, kind and place, checked against the file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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


def merged(tensors: Mapping[str, Lazy], first: str, second: str) -> Lazy:
    """One linear layer's tensor of two layers' whose answers are added.

    Weights stand side by side, so that the layer reads both inputs; biases are added.

    Args:
        tensors: of the network, by name.
        first: the name of one layer's weight or bias.
        second: the name of the other layer's.

    Raises:
        UsageError: the two do not fit together.
    """
    one, other = tensors[first], tensors[second]
    if len(one.shape) not in (1, 2) or one.shape[0] != other.shape[0] or one.dtype != other.dtype:
        raise UsageError(f"{first} and {second} in the file do not fit together")
    if len(one.shape) == 1:
        return Lazy(one.shape, one.dtype, lambda: one.tensor() + other.tensor())
    shape = (one.shape[0], one.shape[1] + other.shape[-1])
    return Lazy(shape, one.dtype, lambda: torch.cat([one.tensor(), other.tensor()], dim=1))


def sizes(tensors: Mapping[str, Lazy], name: str, rank: int) -> tuple[int, ...]:
    """The shape of a tensor that a network must have.

    Args:
        tensors: of the network, by name.
        name: of the tensor.
        rank: the number of its dimensions.

    Raises:
        UsageError: it is missing, or has another number of dimensions, or none of its sizes.
    """
    tensor = tensors.get(name)
    if tensor is None:
        raise UsageError(f"the file's network has no tensor {name}")
    if len(tensor.shape) != rank or 0 in tensor.shape:
        raise UsageError(
            f"{name} in the file has the shape {tensor.shape}, expected {rank} sizes above 0"
        )
    return tensor.shape


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
    tensor = tensor.float()
    if not bool(torch.isfinite(tensor).all()):
        raise UsageError(
            f"{name} holds numbers that are not finite; the checkpoint comes from a training that "
            "diverged, or is damaged: give an earlier one"
        )
    return tensor
