"""Options that are lists: how the command line reads them, or says what it expects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from tyro.constructors import PrimitiveConstructorSpec


def _read(kind: Callable[[str], Any], noun: str, example: str) -> Callable[[list[str]], Any]:
    """A function from the words of an option to its value."""

    def read(words: list[str]) -> tuple[Any, ...] | None:
        if words == ["None"]:
            return None
        try:
            return tuple(kind(word) for word in words)
        except ValueError:
            given = " ".join(words)
            raise ValueError(
                f"expected {noun} with spaces between them, such as {example}; got {given!r}"
            ) from None

    return read


def _several(kind: type, metavar: str, noun: str, example: str) -> Any:
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=metavar,
        instance_from_str=_read(kind, noun, example),
        is_instance=lambda value: value is None or isinstance(value, tuple),
        str_from_instance=lambda value: ["None"] if value is None else [*map(str, value)],
    )


Wholes = Annotated[tuple[int, ...] | None, _several(int, "INT ...", "whole numbers", "16 32")]
"""Whole numbers; None leaves a default."""

Reals = Annotated[tuple[float, ...], _several(float, "FLOAT ...", "numbers", "0.05 0.1")]
"""Numbers."""

Names = Annotated[tuple[str, ...] | None, _several(str, "NAME ...", "names", "to_q to_v")]
"""Names; None leaves a default."""
