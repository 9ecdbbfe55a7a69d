"""A reader of pickles that executes nothing: instructions build inert values, never call anything.

Every name that a pickle may mention is a key of ``GLOBALS`` and stands for an inert value. Any
other name ends the reading with a message that has the name. Sizes are checked against the
bytes that are there before anything is allocated.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fewstep.errors import in_words
from fewstep.importing.inert import GLOBALS, Broken, Inert, Name
from fewstep.importing.storages import Lazy

LARGEST_COUNT = 2_000_000
"""Instructions of one pickle; the largest networks' have some hundred thousands."""


Persist = Callable[[Any], Any]
"""What a persistent identifier stands for."""


_MARK = object()


@dataclass
class Reader:
    """One pickle inside of a buffer.

    Args:
        data: the buffer.
        at: where the pickle begins; after :meth:`read`, where it ended.
        persist: makes a value of a persistent identifier; None where there is none.
    """

    data: memoryview
    at: int = 0
    persist: Persist | None = None
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def read(self) -> Any:
        """The value that the pickle describes.

        Raises:
            Broken: it is not well formed, or it asks for something that is refused.
        """
        try:
            for _ in range(LARGEST_COUNT):
                code = self.data[self.at]
                self.at += 1
                if code == 0x2E:
                    return self.stack.pop()
                instruction = _INSTRUCTIONS.get(code)
                if instruction is None:
                    raise Broken(f"instruction {code:#04x} is not among those that are read")
                instruction(self)
        except (IndexError, KeyError, ValueError, TypeError, struct.error) as error:
            raise Broken(f"the pickle is damaged at byte {self.at}: {in_words(error)}") from error
        raise Broken(f"the pickle has more than {LARGEST_COUNT} instructions")

    # Bytes.

    def take(self, count: int) -> memoryview:
        """The next bytes."""
        if count < 0 or count > len(self.data) - self.at:
            raise Broken(f"the pickle declares {count} bytes where {len(self.data) - self.at} are")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> Any:
        """The next number."""
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def text(self, count: int) -> str:
        """The next characters."""
        return str(self.take(count), "utf-8", "surrogatepass")

    def line(self) -> str:
        """The text up to the end of the line."""
        end = bytes(self.data[self.at : self.at + 4096]).find(b"\n")
        if end < 0:
            raise Broken("a line of the pickle does not end")
        text = str(self.take(end), "utf-8")
        self.at += 1
        return text

    # The stack.

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """The top of the stack."""
        value = self.stack.pop()
        if value is _MARK:
            raise Broken("the pickle's marks do not match")
        return value

    def popped(self, count: int) -> tuple[Any, ...]:
        """The uppermost values of the stack."""
        return tuple(self.pop() for _ in range(count))[::-1]

    def marked(self) -> list[Any]:
        """The values above the last mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise Broken("the pickle's marks do not match")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    # What an instruction does.

    def mention(self, module: Any, name: Any) -> None:
        """Put a name on the stack, if it is one of those that are known."""
        full = f"{module}.{name}"
        if full not in GLOBALS:
            raise Broken(
                f"it names {full[:200]!r}, which is not among the names that are read; nothing was "
                "executed"
            )
        self.push(Name(full))

    def call(self) -> None:
        """Make an inert value of a name and its arguments."""
        args, name = self.pop(), self.pop()
        if not isinstance(name, Name) or not isinstance(args, tuple):
            raise Broken("the pickle calls something that is no name")
        self.push(GLOBALS[name.full](name.full, args))

    def build(self) -> None:
        """Set the state of an inert value; that of a mapping or a tensor is not needed."""
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, dict | Lazy):
            raise Broken("the pickle sets the state of a plain value")

    def set_items(self, values: list[Any]) -> None:
        """Put pairs of keys and values into the mapping on top of the stack."""
        target = self.stack[-1]
        keys, items = values[::2], values[1::2]
        if isinstance(target, Inert):
            return
        if not isinstance(target, dict) or len(keys) != len(items):
            raise Broken("the pickle sets items of something that is no mapping")
        for key, item in zip(keys, items, strict=True):
            # Other kinds of keys occur in optimizers' states only as numbers or text.
            if not isinstance(key, str | int | float | None):
                raise Broken("a mapping has a key that is neither text nor a number")
            target[key] = item

    def extend(self, values: list[Any]) -> None:
        """Append to the list on top of the stack."""
        target = self.stack[-1]
        if not isinstance(target, list):
            raise Broken("the pickle appends to something that is no list")
        target.extend(values)

    def remember(self, index: int) -> None:
        """Keep the top of the stack under a number."""
        self.memo[index] = self.stack[-1]

    def identify(self) -> None:
        """Replace a persistent identifier by what it stands for."""
        if self.persist is None:
            raise Broken("the pickle refers to something outside of it")
        self.push(self.persist(self.pop()))


def _whole(text: str) -> Any:
    return {"00": False, "01": True}.get(text) if text in {"00", "01"} else int(text)


def _little(data: memoryview) -> int:
    return int.from_bytes(data, "little", signed=True)


_INSTRUCTIONS: dict[int, Callable[[Reader], Any]] = {
    ord(code): instruction
    for code, instruction in {
        "\x80": lambda r: r.take(1),
        "\x95": lambda r: r.take(8),
        "(": lambda r: r.push(_MARK),
        "0": lambda r: r.stack.pop(),
        "1": lambda r: r.marked(),
        "N": lambda r: r.push(None),
        "\x88": lambda r: r.push(True),
        "\x89": lambda r: r.push(False),
        "I": lambda r: r.push(_whole(r.line())),
        "J": lambda r: r.push(r.number("<i")),
        "K": lambda r: r.push(r.number("<B")),
        "M": lambda r: r.push(r.number("<H")),
        "\x8a": lambda r: r.push(_little(r.take(r.number("<B")))),
        "G": lambda r: r.push(r.number(">d")),
        "X": lambda r: r.push(r.text(r.number("<I"))),
        "\x8c": lambda r: r.push(r.text(r.number("<B"))),
        "\x8d": lambda r: r.push(r.text(r.number("<Q"))),
        "B": lambda r: r.push(r.take(r.number("<I"))),
        "C": lambda r: r.push(r.take(r.number("<B"))),
        "\x8e": lambda r: r.push(r.take(r.number("<Q"))),
        ")": lambda r: r.push(()),
        "t": lambda r: r.push(tuple(r.marked())),
        "\x85": lambda r: r.push(r.popped(1)),
        "\x86": lambda r: r.push(r.popped(2)),
        "\x87": lambda r: r.push(r.popped(3)),
        "]": lambda r: r.push([]),
        "l": lambda r: r.push(r.marked()),
        "a": lambda r: r.extend([r.pop()]),
        "e": lambda r: r.extend(r.marked()),
        "}": lambda r: r.push({}),
        "s": lambda r: r.set_items([*r.popped(2)]),
        "u": lambda r: r.set_items(r.marked()),
        # A set, which is a list of its members here.
        "\x8f": lambda r: r.push([]),
        "\x90": lambda r: r.extend(r.marked()),
        "c": lambda r: r.mention(r.line(), r.line()),
        "\x93": lambda r: r.mention(*r.popped(2)),
        "R": lambda r: r.call(),
        "\x81": lambda r: r.call(),
        "b": lambda r: r.build(),
        "Q": lambda r: r.identify(),
        "q": lambda r: r.remember(r.number("<B")),
        "r": lambda r: r.remember(r.number("<I")),
        "\x94": lambda r: r.remember(len(r.memo)),
        "h": lambda r: r.push(r.memo[r.number("<B")]),
        "j": lambda r: r.push(r.memo[r.number("<I")]),
    }.items()
}
