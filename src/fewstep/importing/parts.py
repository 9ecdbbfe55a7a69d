"""Networks that a file holds as objects: classes, attributes and tensors, never code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fewstep.errors import UsageError
from fewstep.importing.inert import Inert, Module, Persistent
from fewstep.importing.storages import Lazy

DEEPEST = 20
"""Levels of modules within modules; published networks have five."""


@dataclass(frozen=True)
class Part:
    """A module of a network in a file.

    Args:
        kind: the name of its class; empty for a container.
        attributes: its plain attributes, such as the number of heads.
        tensors: its own parameters and buffers.
        children: its modules.
    """

    kind: str
    attributes: Mapping[str, Any]
    tensors: Mapping[str, Lazy]
    children: Mapping[str, Part]

    def walk(self, prefix: str = "") -> Iterator[tuple[str, Part]]:
        """This module and all within it, with their names."""
        yield prefix.rstrip("."), self
        for name, child in self.children.items():
            yield from child.walk(f"{prefix}{name}.")

    def state(self) -> dict[str, Lazy]:
        """All parameters and buffers by their full names."""
        return {
            f"{name}.{own}".lstrip("."): tensor
            for name, part in self.walk()
            for own, tensor in part.tensors.items()
        }

    def number(self, name: str) -> float:
        """A numeric attribute.

        Raises:
            UsageError: there is none of that name.
        """
        value = self.attributes.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"the file's {self.kind} has no number {name}, got {value!r:.100}")
        return value

    def whole(self, name: str) -> int:
        """A whole numeric attribute.

        Raises:
            UsageError: there is none of that name.
        """
        value = self.number(name)
        if not isinstance(value, int):
            raise UsageError(f"the file's {self.kind} has no whole number {name}, got {value!r}")
        return value


def is_network(value: Any) -> bool:
    """Whether a value of a file is a network that was stored as an object."""
    return (
        isinstance(value, Persistent)
        and isinstance(value.state, dict)
        and "_modules" in value.state
    )


def part_of(value: Any, depth: int = 0) -> Part:
    """The module that an inert object describes.

    Raises:
        UsageError: it describes none.
    """
    state = value.state if isinstance(value, Inert) else None
    if not isinstance(state, dict) or depth > DEEPEST:
        raise UsageError("the file holds an object where a network's module is expected")
    own = {name: state.get(name) or {} for name in ("_parameters", "_buffers", "_modules")}
    if not all(isinstance(group, dict) for group in own.values()):
        raise UsageError("a module of the file holds its tensors in an unknown way")
    tensors = {**own["_parameters"], **own["_buffers"]}
    wrong = [name for name, one in tensors.items() if not isinstance(one, Lazy | None)]
    if wrong:
        raise UsageError(f"{wrong[0]} in the file is no tensor")
    return Part(
        kind="" if isinstance(value, Module) else value.name,
        attributes={str(k): v for k, v in state.items() if not str(k).startswith("_")},
        tensors={str(name): one for name, one in tensors.items() if one is not None},
        children={
            str(name): part_of(child, depth + 1)
            for name, child in own["_modules"].items()
            if child is not None
        },
    )


def plain_state(content: Any) -> dict[str, Lazy] | None:
    """A state dict, if that is what a value of a file is: nothing but tensors by name."""
    if not isinstance(content, dict) or not content:
        return None
    if all(isinstance(k, str) and isinstance(v, Lazy) for k, v in content.items()):
        return content
    return None
