"""What a sample can depend on: each kind of condition with its null, its default and its checks.

A condition occupies one key among the tensors that a network reads, ``cond``; a sequence or a text
occupies two, ``NAME`` and ``NAME_mask``. The kinds are pydantic models, so that they can be written
into ``config.json``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Ordered
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from torch import Tensor

from fewstep.errors import UsageError, nearest
from fewstep.values import (
    FILES,
    LARGEST,
    array_of,
    masks_of,
    numbers,
    packed,
    rows_of,
    shape_text,
    unpacked,
)


class _Kind(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _WithNull(_Kind):
    """A kind whose null may be something else than zeros; files say so only where it is."""

    empty: str = Field(default="", repr=False)

    @model_serializer(mode="wrap")
    def _in_short(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in whole(self).items() if key != "empty" or value}


class Label(_Kind):
    """One class of several.

    Args:
        classes: their number k; the classes are 0 to k - 1, and k stands for no class.
        names: of the classes, if they have names.
    """

    kind: Literal["label"] = "label"
    classes: PositiveInt
    names: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _each_class_has_a_name(self) -> Label:
        if self.names is not None and len(self.names) != self.classes:
            raise ValueError(f"{self.classes} classes cannot have {len(self.names)} names")
        return self

    def null(self, name: str) -> dict[str, Tensor]:
        """The number of classes, which no class has."""
        return {name: torch.tensor(self.classes)}

    def default(self, name: str, own: Ordered[int]) -> dict[str, Tensor]:
        """The samples' own numbers, modulo the number of classes."""
        return {name: torch.tensor([i % self.classes for i in own], dtype=torch.int64)}

    def convert(self, name: str, value: Any, n: int) -> dict[str, Tensor]:
        """int64 ``(n,)`` of one class or of n, each a number or a name."""
        allowed = f"in [0, {self.classes - 1}], or {self.classes} for none"
        if isinstance(value, str):
            value = self._number(name, value)
        elif isinstance(value, list | tuple):
            value = [self._number(name, v) if isinstance(v, str) else v for v in value]
        try:
            given = torch.as_tensor(value).cpu()
        except (OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise UsageError(f"{name} must be an integer {allowed}; got {value!r}") from error
        given = given.expand(n) if given.shape in {(), (1,)} else given
        if given.shape != (n,) or given.is_floating_point() or given.dtype == torch.bool:
            raise UsageError(
                f"expected one {name}, a name or a whole number, for all samples or {n} of them, "
                f"got {value!r}"
            )
        if bool((given < 0).any() or (given > self.classes).any()):
            raise UsageError(f"{name} must be {allowed}; got {value!r}")
        return {name: given.long()}

    def parse(self, name: str, text: str) -> int:
        """The class that a text names, or numbers."""
        try:
            return int(text)
        except ValueError:
            return self._number(name, text)

    def _number(self, name: str, text: str) -> int:
        if self.names is None:
            raise UsageError(
                f"the classes of {name} have no names, got {text!r}; give a number "
                f"in [0, {self.classes - 1}]"
            )
        if text not in self.names:
            raise UsageError(f"{name} has no class {text!r}; {nearest(text, self.names)}")
        return self.names.index(text)


class Vector(_WithNull):
    """Numbers of a fixed shape, such as what a robot observes or an embedding.

    Args:
        shape: of one sample's numbers.
        empty: the null as packed float16 numbers, see :func:`fewstep.values.packed`; nothing is
            zeros.
    """

    kind: Literal["vector"] = "vector"
    shape: tuple[PositiveInt, ...]

    @model_validator(mode="after")
    def _fits(self) -> Vector:
        _check_size(self.shape)
        if self.empty:
            unpacked(self.empty, math.prod(self.shape))
        return self

    def with_null(self, value: Tensor) -> Vector:
        """The same kind with this null, ``shape``, rounded to float16."""
        return Vector(shape=self.shape, empty=packed(value))

    def null(self, name: str) -> dict[str, Tensor]:
        """The numbers of nothing: zeros, or what ``empty`` says."""
        if not self.empty:
            return {name: torch.zeros(self.shape)}
        return {name: unpacked(self.empty, math.prod(self.shape)).reshape(self.shape).clone()}

    def default(self, name: str, own: Ordered[int]) -> dict[str, Tensor]:
        """The null for every sample."""
        return _repeated(self.null(name), len(own))

    def convert(self, name: str, value: Any, n: int) -> dict[str, Tensor]:
        """float32 ``(n, *shape)`` of one row or of n."""
        return {name: rows_of(name, value, self.shape, n).expand(n, *self.shape)}

    def parse(self, name: str, text: str) -> list[float]:
        """Numbers between commas."""
        return numbers(name, text)


class Image(_Kind):
    """An image that a sample depends on, such as its low resolution.

    Args:
        shape: ``(channels, height, width)``.
    """

    kind: Literal["image"] = "image"
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]

    @model_validator(mode="after")
    def _fits(self) -> Image:
        _check_size(self.shape)
        return self

    def null(self, name: str) -> dict[str, Tensor]:
        """Zeros, which are grey."""
        return {name: torch.zeros(self.shape)}

    def default(self, name: str, own: Ordered[int]) -> dict[str, Tensor]:
        """The null for every sample."""
        return _repeated(self.null(name), len(own))

    def convert(self, name: str, value: Any, n: int) -> dict[str, Tensor]:
        """float32 ``(n, c, h, w)`` of one image or of n; uint8 pixels are mapped to [-1, 1]."""
        value = array_of(name, value)
        value = value / 127.5 - 1 if value.dtype == torch.uint8 else value
        return {name: rows_of(name, value, self.shape, n).expand(n, *self.shape)}

    def parse(self, name: str, text: str) -> Any:
        """Refuse: an image is read from a file."""
        raise UsageError(f"{name} is an image; give a {' or '.join(FILES)} file, got {text!r}")


class Sequence(_WithNull):
    """Tokens, some of which are there, such as the embedded words of a text.

    Args:
        shape: of one token.
        length: the most tokens of a sample.
        empty: the null as packed float16 numbers, see :func:`fewstep.values.packed`: all tokens,
            then 1 for each that is there and 0 for each that is not. Nothing is zeros without any
            token.
    """

    kind: Literal["sequence"] = "sequence"
    shape: tuple[PositiveInt, ...]
    length: PositiveInt

    @model_validator(mode="after")
    def _fits(self) -> Sequence:
        _check_size((self.length, *self.shape))
        if self.empty:
            unpacked(self.empty, self._count)
        return self

    @property
    def _count(self) -> int:
        return self.length * (math.prod(self.shape) + 1)

    def with_null(self, tokens: Tensor, mask: Tensor) -> Sequence:
        """The same kind with this null, rounded to float16.

        Args:
            tokens: ``(length, *shape)``.
            mask: bool ``(length,)``.
        """
        empty = packed(torch.cat([tokens.flatten().float(), mask.float()]))
        return Sequence(shape=self.shape, length=self.length, empty=empty)

    def null(self, name: str) -> dict[str, Tensor]:
        """The tokens of nothing and which of them are there: none, or what ``empty`` says."""
        if not self.empty:
            tokens = torch.zeros(self.length, *self.shape)
            return {name: tokens, f"{name}_mask": torch.zeros(self.length, dtype=torch.bool)}
        values = unpacked(self.empty, self._count)
        tokens = values[: -self.length].reshape(self.length, *self.shape).clone()
        return {name: tokens, f"{name}_mask": values[-self.length :] != 0}

    def default(self, name: str, own: Ordered[int]) -> dict[str, Tensor]:
        """The null for every sample."""
        return _repeated(self.null(name), len(own))

    def convert(self, name: str, value: Any, n: int) -> dict[str, Tensor]:
        """float32 ``(n, length, *shape)`` and bool ``(n, length)``.

        ``value`` is the tokens, or a pair of tokens and mask. Fewer tokens than ``length`` are
        filled up with tokens that are not there.
        """
        tokens, mask = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
        given = array_of(name, tokens)
        here = given.shape[given.ndim - len(self.shape) - 1] if given.ndim > len(self.shape) else 0
        if not 1 <= here <= self.length:
            raise UsageError(
                f"{name} must have the shape (b, tokens, {shape_text(self.shape)}) with 1 to "
                f"{self.length} tokens, got {tuple(given.shape)}"
            )
        rows = rows_of(name, given, (here, *self.shape), n)
        whole = torch.zeros(len(rows), self.length, *self.shape)
        whole[:, :here] = rows
        there = torch.ones(1, here) if mask is None else rows_of(f"{name}_mask", mask, (here,), n)
        known = torch.zeros(len(there), self.length, dtype=torch.bool)
        known[:, :here] = there != 0
        return {
            name: whole.expand(n, *whole.shape[1:]),
            f"{name}_mask": known.expand(n, self.length),
        }

    def parse(self, name: str, text: str) -> Any:
        """Refuse: tokens are read from a file."""
        raise UsageError(
            f"{name} is a sequence; give a .npy file of its tokens or a .npz file with tokens and "
            f"mask, got {text!r}"
        )


class Text(_Kind):
    """A text as the numbers of its tokens, which a network embeds itself.

    Args:
        vocabulary: number of tokens k; the numbers are 0 to k - 1.
        length: the most tokens of a text.
        empty: the tokens of the text that says nothing.
    """

    kind: Literal["text"] = "text"
    vocabulary: PositiveInt
    length: PositiveInt
    empty: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Text:
        _check_size((self.length,))
        if len(self.empty) > self.length or any(
            not 0 <= token < self.vocabulary for token in self.empty
        ):
            raise ValueError(f"the empty text {self.empty} is none of these tokens")
        return self

    def null(self, name: str) -> dict[str, Tensor]:
        """The empty text."""
        tokens = torch.zeros(self.length, dtype=torch.int64)
        tokens[: len(self.empty)] = torch.tensor(self.empty, dtype=torch.int64)
        return {name: tokens, f"{name}_mask": torch.arange(self.length) < len(self.empty)}

    def default(self, name: str, own: Ordered[int]) -> dict[str, Tensor]:
        """The empty text for every sample."""
        return _repeated(self.null(name), len(own))

    def convert(self, name: str, value: Any, n: int) -> dict[str, Tensor]:
        """int64 ``(n, length)`` and bool ``(n, length)``.

        ``value`` is token numbers, or a pair of them and a mask. Fewer tokens than ``length`` are
        filled up with tokens that are not there.
        """
        if isinstance(value, str) or (
            isinstance(value, list | tuple) and value and isinstance(value[0], str)
        ):
            raise UsageError(
                f"{name} is read by the model's tokenizer, which this one lacks; give the numbers "
                "of its tokens"
            )
        tokens, mask = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
        given = array_of(name, tokens)
        here = given.shape[-1] if given.ndim else 0
        if given.is_floating_point() or not 1 <= here <= self.length:
            raise UsageError(
                f"{name} must be integers (b, tokens) with 1 to {self.length} tokens, got "
                f"{given.dtype} of shape {tuple(given.shape)}"
            )
        rows = rows_of(name, given.double(), (here,), n).long()
        if bool((rows < 0).any() or (rows >= self.vocabulary).any()):
            raise UsageError(f"{name} must have tokens in [0, {self.vocabulary - 1}]")
        whole = torch.zeros(len(rows), self.length, dtype=torch.int64)
        whole[:, :here] = rows
        there = torch.ones(1, here) if mask is None else rows_of(f"{name}_mask", mask, (here,), n)
        known = torch.zeros(len(there), self.length, dtype=torch.bool)
        known[:, :here] = there != 0
        return {
            name: whole.expand(n, self.length),
            f"{name}_mask": known.expand(n, self.length),
        }

    def parse(self, name: str, text: str) -> str:
        """The text itself, which the model's tokenizer reads."""
        return text


class Mask(_Kind):
    """Which positions of a sample are real, where samples differ in length.

    It is no condition that can be left out: it has no null.

    Args:
        length: of the longest sample, which is the default length of generated ones.
    """

    kind: Literal["mask"] = "mask"
    length: PositiveInt | None = None

    def null(self, name: str) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def default(
        self, name: str, own: Ordered[int], space: Ordered[int | None] = (None,)
    ) -> dict[str, Tensor]:
        """Samples of full length.

        Raises:
            UsageError: nobody knows what that is.
        """
        last = space[-1] or self.length
        if last is None:
            raise UsageError("this model makes samples of any length; say which with lengths=...")
        return self.convert(name, last, len(own), space)

    def convert(
        self, name: str, value: Any, n: int, space: Ordered[int | None] = (None,)
    ) -> dict[str, Tensor]:
        """float32 ``(n, 1, *space)``, 1 where a sample is real.

        Args:
            name: of the condition.
            value: one length or n of them (integers), or a mask ``(n, 1, *space)`` of 0 and 1.
            n: samples.
            space: the data's shape without channels; None is a free axis.
        """
        given = array_of(name, value)
        if given.ndim <= 1 and not (given.is_floating_point() or given.dtype == torch.bool):
            given = masks_of(name, given, n, space)
        if given.ndim == len(space) + 1:
            given = given[None]
        given = given.expand(n, *given.shape[1:]) if len(given) == 1 else given
        wanted = [n, 1, *(s or g for s, g in zip(space, given.shape[2:], strict=False))]
        if list(given.shape) != wanted or 0 in given.shape:
            raise UsageError(
                f"{name} must have the shape ({n}, 1, {shape_text(space)}), or be {n} lengths, got "
                f"{tuple(given.shape)}"
            )
        if not bool(((given == 0) | (given == 1)).all()):
            raise UsageError(f"{name} must be 1 where a sample is real and 0 elsewhere")
        if not bool((given != 0).flatten(1).any(1).all()):
            raise UsageError(f"{name} says of a sample that nothing of it is real")
        return {name: given.float()}

    def parse(self, name: str, text: str) -> list[int]:
        """Lengths between commas."""
        try:
            lengths = [int(part) for part in text.split(",")]
        except ValueError:
            raise UsageError(f"{name} must be one or more lengths, got {text!r}") from None
        return lengths


OF_TOKENS = (Sequence, Text)
"""Kinds that have a mask of their own, under ``NAME_mask``."""

Condition = Annotated[
    Label | Vector | Sequence | Text | Image | Mask,
    Field(discriminator="kind"),
]


def parse(name: str, text: str, condition: Any) -> Any:
    """The value that ``--cond NAME=TEXT`` gives: what the condition reads, or a file's arrays.

    Raises:
        UsageError: it cannot be read.
    """
    path = Path(text)
    if path.suffix not in FILES:
        return condition.parse(name, text)
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"": loaded} if isinstance(loaded, np.ndarray) else {**loaded}
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{name}: {path} cannot be read as arrays ({error})") from error
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    for tokens, mask in (("tokens", "mask"), (name, f"{name}_mask")):
        if isinstance(condition, OF_TOKENS) and arrays.keys() == {tokens, mask}:
            return arrays[tokens], arrays[mask]
    if name in arrays:
        return arrays[name]
    raise UsageError(f"{name}: {path} holds {', '.join(arrays)}; expected one array, or {name}")


def _repeated(null: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
    return {key: value.expand(n, *value.shape) for key, value in null.items()}


def _check_size(shape: Ordered[int]) -> None:
    if math.prod(shape) > LARGEST:
        raise ValueError(f"a condition of shape {tuple(shape)} has more than {LARGEST} values")
