"""Kinds of options of the command line: how each is read, and what its help shows.

Importing this imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec


def optional(metavar: str | None = None, **further: Any) -> Any:
    """How the help shows an option that may be left out: no None as a value, nor as a default.

    Args:
        metavar: what stands for the value, such as INT.
        further: other keywords of ``tyro.conf.arg``.
    """

    def default(label: str) -> str:
        return "" if label == "None" else f"(default: {label})"

    return arg(metavar=metavar, help_behavior_hint=default, **further)


def _number(kind: type, metavar: str, noun: str) -> Any:
    def read(words: list[str]) -> Any:
        try:
            return None if words == ["None"] else kind(words[0])
        except ValueError:
            raise ValueError(f"expected {noun}, got {words[0]!r}") from None

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: value is None or isinstance(value, int | kind),
        str_from_instance=lambda value: [str(value)],
    )


Whole = Annotated[int | None, _number(int, "INT", "a whole number"), optional("INT")]
"""A whole number, or None for what the help says."""

Real = Annotated[float | None, _number(float, "FLOAT", "a number"), optional("FLOAT")]
"""A number, or None for what the help says."""

Text = Annotated[str | None, optional("STR")]
"""A text, or None for what the help says."""

File = Annotated[Path | None, optional("PATH")]
"""A path, or None for what the help says."""


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


Wholes = Annotated[
    tuple[int, ...] | None,
    _several(int, "INT ...", "whole numbers", "16 32"),
    optional(),
]
"""Whole numbers; None leaves a default."""

Reals = Annotated[tuple[float, ...], _several(float, "FLOAT ...", "numbers", "0.05 0.1")]
"""Numbers."""

Names = Annotated[
    tuple[str, ...] | None, _several(str, "NAME ...", "names", "to_q to_v"), optional()
]
"""Names; None leaves a default."""
